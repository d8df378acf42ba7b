//! Deletes the agent's state and nothing else: `state_dir` may be a directory with other files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    cli::{failure::Failure, output::print},
    platform::{LockRole, StateLock},
    update,
};

/// Prefixes of the names of the agent's files.
const PREFIXES: [&str; 14] = [
    "account.",
    "agent.",
    "audit-tail.json",
    "checkpoints.",
    "compliance.json",
    "device.key",
    "logs",
    "machine-id",
    "managed.json",
    "outbox.",
    "policy.json",
    "spool",
    "status.json",
    "trust.json",
];

/// Prints the paths that would be deleted.
pub(super) fn preview(state_dir: &Path) -> Result<(), Failure> {
    let (ours, _) = list(state_dir)?;
    let updates = Some(update::dir(state_dir)).filter(|dir| dir.is_dir());
    let mut paths = ours.iter().chain(&updates);
    paths.try_for_each(|path| print(format_args!("would remove `{}`", path.display())))
}

/// Deletes the state in `state_dir`, and the pointer to it.
pub(super) fn execute(state_dir: &Path, pointer: &Path) -> Result<(), Failure> {
    if !state_dir.try_exists().unwrap_or(true) {
        return Ok(());
    }
    // Prevents an agent from starting in the meantime.
    let lock = StateLock::acquire(state_dir, LockRole::Command).map_err(Failure::failed)?;
    update::remove_all(state_dir);
    let (ours, others) = list(state_dir)?;
    let last = |path: &PathBuf| path.file_name().is_some_and(|name| name == "agent.lock");
    let (locks, ours): (Vec<_>, Vec<_>) = ours.into_iter().partition(last);
    ours.iter().try_for_each(|path| remove(path))?;
    drop(lock);
    locks.iter().try_for_each(|path| remove(path))?;
    if pointer.try_exists().unwrap_or(false) {
        remove(pointer)?;
    }
    if others.iter().all(|path| path == pointer) {
        remove(state_dir)?;
        return print(format_args!("removed `{}`", state_dir.display()));
    }
    print(format_args!(
        "removed the agent's state from `{}`; other files stay",
        state_dir.display()
    ))
}

/// Lists the agent's files in a state directory, and the others.
fn list(state_dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), Failure> {
    let entries = match fs::read_dir(state_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        entries => entries.map_err(|error| wrong(state_dir, &error))?,
    };
    let paths: Result<Vec<PathBuf>, _> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(|error| wrong(state_dir, &error))?;
    paths.sort();
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        PREFIXES.iter().any(|beginning| name.starts_with(beginning))
    };
    Ok(paths.into_iter().partition(is_ours))
}

fn remove(path: &Path) -> Result<(), Failure> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(wrong(path, &error)),
        _ => Ok(()),
    }
}

fn wrong(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot delete `{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state directory may be set to a home directory.
    #[test]
    fn other_files_are_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in
            ["outbox.redb", "outbox.redb.damaged-1", "status.json", "thesis.tex", "agent.lock"]
        {
            fs::write(at(name), "").unwrap();
        }
        fs::create_dir_all(at("spool")).unwrap();
        fs::write(at("spool/x.json"), "").unwrap();
        fs::create_dir_all(at("update/self-test-1")).unwrap();
        for name in ["self-test-1/outbox.redb", "state.json", "ai-agent-0.2.0-linux-x86_64"] {
            fs::write(at("update").join(name), "").unwrap();
        }
        execute(dir.path(), &at("state-dir")).unwrap();
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["thesis.tex"]);
    }

    #[test]
    fn a_directory_without_other_files_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        for name in ["outbox.redb", "state-dir", "machine-id", "device.key", "trust.json"] {
            fs::write(state.join(name), "").unwrap();
        }
        execute(&state, &state.join("state-dir")).unwrap();
        assert!(!state.try_exists().unwrap());
    }

    #[test]
    fn the_state_of_a_running_agent_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let _held = StateLock::acquire(dir.path(), LockRole::Agent).unwrap();
        fs::write(dir.path().join("outbox.redb"), "").unwrap();
        assert!(execute(dir.path(), &dir.path().join("state-dir")).is_err());
        assert!(dir.path().join("outbox.redb").try_exists().unwrap());
    }
}
