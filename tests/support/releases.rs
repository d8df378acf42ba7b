//! Releases of the agent, made by a test.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Writes a release with a version and a fault, see `test_release.rs`, to `path`.
pub(crate) fn write_release(path: &Path, version: &str, fault: &str) {
    fs::copy(small_program(), path).unwrap();
    let mut file = fs::File::options().append(true).open(path).unwrap();
    write!(file, "{:<64}", format!("\n#release {version} {fault}")).unwrap();
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// Returns the program without its symbols, which are most of it. Tests share the file.
pub(crate) fn small_program() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_ai-agent-test-release"));
    let small = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ai-agent-test-release");
    let modified = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    if modified(&small).is_none_or(|small| modified(built).is_none_or(|built| built > small)) {
        let new = small.with_extension(std::process::id().to_string());
        let stripped = Command::new("strip").arg("-o").arg(&new).arg(built).status();
        if !stripped.is_ok_and(|status| status.success()) {
            fs::copy(built, &new).unwrap();
        }
        fs::rename(new, &small).unwrap();
    }
    small
}
