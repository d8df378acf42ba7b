//! Calls of other programs.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;

use crate::Failure;

/// Returns the directory of the workspace in which xtask was called.
pub(crate) fn workspace() -> PathBuf {
    // Read at run time too, because the binary may have been built in another clone.
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.ancestors().nth(2).map_or_else(|| package.clone(), Path::to_owned)
}

/// Returns the cargo that called this program, in the workspace.
pub(crate) fn cargo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace()).args(arguments);
    // These variables describe this crate, not the crates that cargo builds next.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Returns a git command in the workspace.
pub(crate) fn git<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new("git");
    command.current_dir(workspace()).args(arguments);
    command
}

/// Reports whether a command runs and succeeds. Its output is discarded.
pub(crate) fn works(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Runs a command and returns an error if it fails.
pub(crate) fn succeed(command: &mut Command) -> Result<(), Failure> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cannot run {}: {error}", command.get_program().display()))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} ended with {status}").into()) }
}

/// Returns all files below a folder, sorted.
pub(crate) fn files_below(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

/// Reports whether cargo has a subcommand.
pub(crate) fn has_subcommand(name: &str) -> bool {
    works(&mut cargo([name, "--version"]))
}

/// Reports whether a program is on the `PATH`. It is not started: programs do not agree on an option
/// that does nothing, and minisign knows only `-v`.
pub(crate) fn has_program(name: &str) -> bool {
    let file = format!("{name}{}", env::consts::EXE_SUFFIX);
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(&file).is_file())
}

/// Installs packages of the system, if that is possible without a prompt.
pub(crate) fn apt_install(packages: &[&str]) -> bool {
    if !is_root() || !works(Command::new("apt-get").arg("--version")) {
        return false;
    }
    println!("installing {}", packages.join(", "));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        works(&mut command)
    };
    let install = [&["install", "--yes", "--no-install-recommends"], packages].concat();
    apt(&install) || (apt(&["update"]) && apt(&install))
}

/// Reports whether this process runs as root.
#[cfg(unix)]
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Reports whether this process runs as root.
#[cfg(not(unix))]
pub(crate) fn is_root() -> bool {
    false
}

/// Returns cargo's target directory.
pub(crate) fn target_directory() -> Result<PathBuf, Failure> {
    Ok(metadata()?.target_directory)
}

/// Returns the folders of all packages of the workspace.
pub(crate) fn packages() -> Result<Vec<PathBuf>, Failure> {
    let folder = |package: Package| package.manifest_path.parent().map(Path::to_owned);
    Ok(metadata()?.packages.into_iter().filter_map(folder).collect())
}

#[derive(Deserialize)]
struct Metadata {
    target_directory: PathBuf,
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    manifest_path: PathBuf,
}

fn metadata() -> Result<Metadata, Failure> {
    let output = cargo(["metadata", "--no-deps", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err("cargo metadata failed".into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Builds binaries of the workspace, and returns their paths in the given order.
pub(crate) fn build<const N: usize>(
    packages: [&str; N],
    binaries: [&str; N],
    release: bool,
) -> Result<[PathBuf; N], Failure> {
    let mut command = cargo(["build", "--message-format=json-render-diagnostics"]);
    for (package, binary) in packages.iter().zip(binaries) {
        command.args(["--package", package, "--bin", binary]);
    }
    if release {
        command.arg("--release");
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err("the build failed".into());
    }
    let mut paths = binaries.map(|_| PathBuf::new());
    for (name, path) in executables(&output.stdout) {
        if let Some(index) = binaries.iter().position(|binary| *binary == name) {
            paths[index] = path;
        }
    }
    match binaries.iter().zip(&paths).find(|(_, path)| path.as_os_str().is_empty()) {
        Some((missing, _)) => Err(format!("cargo did not build `{missing}`").into()),
        None => Ok(paths),
    }
}

/// Returns the executables in cargo's messages.
fn executables(messages: &[u8]) -> Vec<(String, PathBuf)> {
    #[derive(Deserialize)]
    struct Message {
        target: Option<Target>,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let lines = messages.split(|byte| *byte == b'\n');
    let messages = lines.filter_map(|line| serde_json::from_slice::<Message>(line).ok());
    messages.filter_map(|message| Some((message.target?.name, message.executable?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_cargo_messages() {
        let messages = br#"{"reason":"compiler-artifact","target":{"name":"lib"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"ai-agent"},"executable":"/t/debug/ai-agent"}
{"reason":"build-finished","success":true}
"#;
        let found = executables(messages);
        assert_eq!(found, [("ai-agent".to_owned(), PathBuf::from("/t/debug/ai-agent"))]);
    }

    #[test]
    fn program_is_found_without_being_started() {
        assert!(has_program("cargo"));
        assert!(!has_program("a-program-that-is-not-there"));
    }

    #[test]
    fn workspace_contains_the_lock_file() {
        assert!(workspace().join("Cargo.lock").is_file());
    }
}
