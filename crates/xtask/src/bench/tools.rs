//! Tools that the runner needs besides the agent: a counting receiver, and syslog-ng.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::{Failure, sh};

/// Message if syslog-ng is missing.
pub(super) const NO_SYSLOG_NG: &str = "syslog-ng is not installed (Debian: syslog-ng-core, syslog-ng-mod-http), so there are no ratios";

/// Builds the counting receiver. Its sources are copied below `target` first, because cargo writes
/// a lock file beside them.
pub(super) fn sink(shared: &Path, bench: &Path) -> Result<PathBuf, Failure> {
    let (from, to) = (shared.join("sink"), bench.join("sink"));
    fs::create_dir_all(to.join("src"))?;
    for file in ["Cargo.toml", "src/main.rs"] {
        let bytes = fs::read(from.join(file))?;
        // An unchanged file keeps its time, so that it is not compiled again.
        if fs::read(to.join(file)).ok().as_ref() != Some(&bytes) {
            fs::write(to.join(file), bytes)?;
        }
    }
    let target = bench.join("sink-target");
    let mut build = sh::cargo(["build", "--release", "--quiet", "--manifest-path"]);
    build.arg(to.join("Cargo.toml")).arg("--target-dir").arg(&target);
    if !build.stdin(Stdio::null()).status()?.success() {
        return Err("cannot build the counting receiver".into());
    }
    Ok(target.join("release/bench-sink"))
}

/// Reports whether syslog-ng is installed, after installing it if possible.
pub(super) fn syslog_ng() -> bool {
    const PROGRAM: &str = "/usr/sbin/syslog-ng";
    let there = sh::has_program(PROGRAM)
        || (sh::apt_install(&["syslog-ng-core", "syslog-ng-mod-http"]) && sh::has_program(PROGRAM));
    if !there {
        println!("skipped: {NO_SYSLOG_NG}");
    }
    there
}
