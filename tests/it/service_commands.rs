//! Service commands where there is no service, and no service manager.
#![cfg(target_os = "linux")]

use std::fs;

use crate::support::home::Home;

/// The process has no variables of a session, as with `su` or in a container.
#[test]
fn service_commands_without_a_bus_name_the_remedy() {
    let home = Home::new();
    for command in ["install", "start", "stop", "restart"] {
        let error = home.agent(&[command]).ships_to("http://127.0.0.1:9").fail(1);
        assert!(error.contains("loginctl enable-linger"), "{command}: {error}");
    }
}

#[test]
fn uninstall_without_an_installation_says_so() {
    let home = Home::new();
    for arguments in [&["uninstall"][..], &["uninstall", "--dry-run"]] {
        let ended = home.agent(arguments).succeed();
        assert!(ended.text().contains("not installed"), "{}", ended.text());
        assert!(!ended.text().contains("state"), "{}", ended.text());
    }
    fs::create_dir_all(home.state_dir()).unwrap();
    let ended = home.agent(&["uninstall"]).succeed();
    let state = home.state_dir();
    let text = ended.text();
    assert!(text.contains("not installed") && text.contains(state.to_str().unwrap()), "{text}");
    assert!(!text.contains("is uninstalled"), "{text}");
    home.agent(&["uninstall", "--purge"]).succeed();
    assert!(!state.try_exists().unwrap());
}

#[test]
fn deadletter_without_a_number_names_all() {
    let home = Home::new();
    for action in ["retry", "show", "purge", "export"] {
        let error = home.agent(&["deadletter", action]).fail(2);
        assert!(error.contains("--all"), "{action}: {error}");
    }
    home.agent(&["deadletter", "retry", "1", "2"]).config("").ships_to("http://127.0.0.1:9").run();
    let both = home.agent(&["deadletter", "retry", "1", "--all"]).fail(2);
    assert!(both.contains("--all"), "{both}");
}
