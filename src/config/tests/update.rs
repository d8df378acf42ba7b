//! Settings of updates.

use super::*;

const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

fn mode(machine: &Machine) -> UpdateMode {
    machine.load().unwrap().settings.update.mode
}

#[test]
fn mode_depends_on_keys_unless_it_is_set() {
    assert_eq!(mode(&user("")), UpdateMode::Off);
    assert_eq!(mode(&user(&format!("update.keys = ['{KEY}']"))), UpdateMode::Notify);
    assert_eq!(mode(&user("update.mode = 'notify'")), UpdateMode::Notify);
    let off = format!("[update]\nmode = 'off'\nkeys = ['{KEY}']");
    assert_eq!(mode(&user(&off)), UpdateMode::Off);
    let install = format!("[update]\nmode = 'install'\nkeys = ['{KEY}']\ninterval = '5m'");
    let loaded = user(&install).load().unwrap();
    assert_eq!(loaded.settings.update.mode, UpdateMode::Install);
    assert_eq!(loaded.settings.update.keys.len(), 1);
    assert_eq!(loaded.settings.update.interval.as_secs(), 300);
}

#[test]
fn wrong_update_settings_are_errors() {
    for (text, words) in [
        ("mode = 'install'", "`update.mode` in FILE is \"install\", which needs a key"),
        ("keys = ['RW']", "`update.keys[0]` in FILE is not a key"),
        ("interval = '4m'", "`update.interval` in FILE is 4m, must be from 5m to 7days"),
        ("interval = '8d'", "`update.interval` in FILE is 8days, must be from 5m to 7days"),
        ("channel = 'beta'", "unknown key `update.channel` in FILE"),
    ] {
        let error = user(&format!("[update]\n{text}")).error();
        let words = words.replace("FILE", "the user's file `DIR/home/config.toml:2`");
        assert!(error.starts_with(&words), "{error}");
    }
}

/// A user who may set it would install programs with the rights of the agent, and one who switches it
/// off would keep a machine on a release with a defect.
#[test]
fn only_the_machines_file_sets_updates_if_there_is_one() {
    let machine = user("update.mode = 'notify'").machine("update.mode = 'off'");
    assert_eq!(mode(&machine), UpdateMode::Off);
    let machine = user("update.mode = 'notify'").machine("agent.require_tls = true");
    assert_eq!(mode(&machine), UpdateMode::Off);
    let locked = machine.load().unwrap().locked_overrides;
    assert_eq!(locked.iter().map(|it| &*it.key).collect::<Vec<_>>(), ["update"]);
}
