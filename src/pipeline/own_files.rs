//! Files that no sink may write: those of the agent itself, and those that it reads as sessions.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ai_agent_stage::BuildError;

use crate::platform::call_scope::in_scope;

/// Files and directories of the agent in its state directory.
const OF_AGENT: [&str; 19] = [
    "account.json",
    "agent.lock",
    "agent.new",
    "agent.pid",
    "agent.sock",
    "agent.sock.at",
    "checkpoints.bak",
    "checkpoints.bak.new",
    "compliance.json",
    "device.key",
    "logs",
    "managed.json",
    "outbox.quarantine",
    "outbox.redb",
    "policy.json",
    "spool",
    "status.json",
    "trust.json",
    "update",
];

/// Checks a file of a sink. It would destroy the agent's own, or be read as a session, sent, written
/// again, and so on.
///
/// # Errors
/// [`BuildError`] about the option `path`.
pub(super) fn check(
    file: &Path,
    state_dir: &Path,
    roots: impl FnOnce() -> Vec<PathBuf>,
) -> Result<(), BuildError> {
    let refused = |problem: &str| {
        Err(BuildError::invalid("path", format!("is `{}`, {problem}", file.display())))
    };
    let (Some(parent), Some(name)) = (file.parent(), file.file_name()) else { return Ok(()) };
    let place = real(parent).join(name);
    let dir = real(state_dir);
    if OF_AGENT.iter().any(|own| place.starts_with(dir.join(own))) {
        return refused("a file of the agent itself");
    }
    let is_session = file.extension().is_some_and(|ending| ending == "jsonl")
        && roots().iter().any(|root| place.starts_with(real(root)));
    if is_session {
        return refused("which the agent would read as a session: name a file elsewhere");
    }
    Ok(())
}

/// Returns a path without links, if it exists.
fn real(path: &Path) -> PathBuf {
    let of_call = path.to_owned();
    in_scope(path, move || fs::canonicalize(of_call)).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sink that wrote into a directory of sessions filled the disk with its own lines.
    #[test]
    fn own_file_or_session_is_no_file_of_a_sink() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        for dir in ["state/logs", "root/p"] {
            fs::create_dir_all(path(dir)).unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(path("root"), path("link")).unwrap();
        let is_refused =
            |name: &str| check(&path(name), &path("state"), || vec![path("root")]).is_err();
        for refused in ["state/outbox.redb", "state/logs/out", "root/out.jsonl", "root/p/x.jsonl"] {
            assert!(is_refused(refused), "{refused}");
        }
        assert!(cfg!(windows) || is_refused("link/p/x.jsonl"));
        for permitted in ["state/out.ndjson", "root/out.log", "out.jsonl", "absent/out.jsonl"] {
            assert!(!is_refused(permitted), "{permitted}");
        }
    }
}
