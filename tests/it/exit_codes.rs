//! Exit codes of the commands, as docs/scripts.md lists them.

use std::fs;

use crate::support::home::Home;

/// A command with a mistyped `--config` answered for the agent of the default configuration.
#[test]
fn unreadable_explicit_config_exits_2_and_is_named() {
    let home = Home::new();
    let missing = home.path().join("missing.toml");
    for path in [missing.as_path(), home.path()] {
        for arguments in [
            &["status"][..],
            &["status", "--json"],
            &["status", "--watch"],
            &["check"],
            &["check", "--strict"],
            &["flush"],
            &["reload"],
            &["log-level"],
            &["outbox", "status"],
            &["deadletter", "list"],
            &["device", "show"],
            &["config", "show"],
            &["test"],
            &["run"],
        ] {
            let error = home.agent(arguments).arg("--config").arg(path).fail(2);
            let name = path.display().to_string();
            assert!(error.contains(&name), "{arguments:?}: {error}");
        }
    }
}

/// The mistake of another layer must not hide that the file is missing.
#[test]
fn unreadable_explicit_config_is_named_beside_a_broken_layer() {
    let home = Home::new();
    let user = home.path().join(".config/ai-agent/config.toml");
    fs::create_dir_all(user.parent().unwrap()).unwrap();
    fs::write(&user, "= broken").unwrap();
    home.agent(&["status"]).fail(1);
    let missing = home.path().join("missing.toml");
    let error = home.agent(&["status"]).arg("--config").arg(&missing).fail(2);
    assert!(error.contains("missing.toml"), "{error}");
}
