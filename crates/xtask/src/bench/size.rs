//! The size of the agent as one file that runs on any Linux: static and stripped.

use std::{fs, process::Command};

use crate::{Failure, sh};

/// A static binary.
pub(super) struct Binary {
    /// How it was linked.
    pub(super) how: &'static str,
    pub(super) bytes: u64,
}

const MUSL: &str = "x86_64-unknown-linux-musl";
const GLIBC: &str = "x86_64-unknown-linux-gnu";

/// Builds it with musl where its C compiler and Rust's target are there, else with glibc.
///
/// musl is what is given away: a static glibc still loads parts of itself to look up names, and
/// works only where its version does. Both are about as large.
pub(super) fn measure() -> Result<Option<Binary>, Failure> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        println!("skipped: the static binary is built on x86-64 Linux only");
        return Ok(None);
    }
    let has_compiler = sh::has_program("musl-gcc")
        || (sh::apt_install(&["musl-tools"]) && sh::has_program("musl-gcc"));
    let has_target = || {
        let installed = Command::new("rustup").args(["target", "list", "--installed"]).output();
        installed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(MUSL))
    };
    let (target, how) = if has_compiler && has_target() {
        (MUSL, "musl")
    } else {
        println!("without musl-gcc (Debian: musl-tools) or `rustup target add {MUSL}`: with glibc");
        (GLIBC, "glibc")
    };
    println!("── building the agent as a static binary, with {how}");
    let mut build = sh::cargo(["build", "--release", "--quiet", "--package", "ai-agent"]);
    build.args(["--bin", "ai-agent", "--target", target]);
    // For musl `.cargo/config.toml` says how it is linked.
    if target == GLIBC {
        build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    }
    if !build.status()?.success() {
        return Err("the static binary could not be built".into());
    }
    let path = sh::target_directory()?.join(target).join("release/ai-agent");
    Ok(Some(Binary { how, bytes: fs::metadata(path)?.len() }))
}
