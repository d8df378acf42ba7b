//! `ai-agent audit install` runs as root only what root has installed.
#![cfg(target_os = "linux")]

use std::{env, fs, os::unix::fs::PermissionsExt as _, path::Path};

use crate::support::home::Home;

fn write_program(path: &Path) {
    fs::write(path, "#!/bin/sh\nexit 0\n").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Programs of the user's PATH were passed to sudo, so that anything that could write there became root.
#[test]
fn audit_install_ignores_programs_on_the_path() {
    let home = Home::new();
    let bin = home.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for name in ["sudo", "auditctl", "augenrules", "ausearch", "install", "rm"] {
        write_program(&bin.join(name));
    }
    let path = format!("{}:{}", bin.display(), env::var("PATH").unwrap());
    for action in ["install", "uninstall"] {
        let ended = home.agent(&["audit", action, "--dry-run"]).env("PATH", &path).run();
        let shown = format!("{}{}", ended.text(), ended.stderr);
        assert!(!shown.contains(bin.to_str().unwrap()), "{action}: {shown}");
    }
}

#[test]
fn docker_that_its_user_can_replace_is_refused() {
    let home = Home::new();
    write_program(&home.path().join("docker"));
    let install = home.agent(&["audit", "install", "--dry-run"]);
    let error = install.env("PATH", home.path()).fail(2);
    assert!(error.contains("could replace the program"), "{error}");
}
