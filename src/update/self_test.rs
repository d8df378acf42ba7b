//! Test of a new program before it is put into place: the program itself reads the real configuration, a
//! copy of the store, and answers a hook.

use std::{fs, path::Path, process::Command, time::Duration};

use super::child::{self, ChildError};
use crate::text::causes;

/// Argument with which a program tests itself.
pub(crate) const SELF_TEST: &str = "--self-test";
/// Start of the name of a directory with a copy of the store, in that of downloads.
pub(crate) const COPY_PREFIX: &str = "self-test-";
/// Longest time that a self-test may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Part of the error output in a report, in characters.
const MAX_DETAIL: usize = 1000;

/// Returns the last line that a successful self-test prints.
pub(crate) fn success(version: &str) -> String {
    format!("self-test of ai-agent {version}: ok")
}

/// Reason why a new program is not installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelfTestFailure {
    #[error("the new program {}", causes(.0))]
    Child(#[from] ChildError),
    #[error("the self-test of the new program failed ({status}): {output}")]
    Failed { status: String, output: String },
    #[error("the new program is not version {expected}: it printed `{printed}`")]
    OtherVersion { expected: String, printed: String },
}

/// Runs the self-test of the program at `candidate`, which must be `version`, with the configuration files
/// of this machine and `config`, the file of `--config`. Blocks for up to 30 s.
///
/// # Errors
/// [`SelfTestFailure`]: the program must not be installed.
pub(crate) fn self_test(
    candidate: &Path,
    version: &str,
    config: Option<&Path>,
) -> Result<(), SelfTestFailure> {
    self_test_within(candidate, version, config, TIMEOUT)
}

/// Removes the copies of the store in `dir` that self-tests left because they were killed: they contain
/// session content.
pub(super) fn remove_copies(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(COPY_PREFIX)) {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

fn self_test_within(
    candidate: &Path,
    version: &str,
    config: Option<&Path>,
    timeout: Duration,
) -> Result<(), SelfTestFailure> {
    let mut command = Command::new(candidate);
    command.arg(SELF_TEST);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    let end = child::run(&mut command, timeout)?;
    let last = |text: &str| text.trim().lines().last().unwrap_or_default().to_owned();
    if !end.status.success() {
        let output = if end.stderr.trim().is_empty() { &end.stdout } else { &end.stderr };
        let output = output.trim().chars().take(MAX_DETAIL).collect();
        return Err(SelfTestFailure::Failed { status: end.status.to_string(), output });
    }
    let printed: String = last(&end.stdout).chars().take(MAX_DETAIL).collect();
    if printed != success(version) {
        return Err(SelfTestFailure::OtherVersion { expected: version.to_owned(), printed });
    }
    Ok(())
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn test(content: &str, mode: u32) -> &'static str {
        let dir = tempfile::tempdir().unwrap();
        let candidate = dir.path().join("candidate");
        fs::write(&candidate, content).unwrap();
        fs::set_permissions(&candidate, fs::Permissions::from_mode(mode)).unwrap();
        let tested = self_test_within(&candidate, "0.2.0", None, Duration::from_millis(500));
        match tested {
            Ok(()) => "ok",
            Err(SelfTestFailure::Child(ChildError::NotStarted(_))) => "not started",
            Err(SelfTestFailure::Child(ChildError::TimedOut(_))) => "timed out",
            Err(SelfTestFailure::Failed { .. }) => "failed",
            Err(SelfTestFailure::OtherVersion { .. }) => "other version",
        }
    }

    #[test]
    fn only_a_program_that_tests_itself_passes() {
        for (content, mode, expected) in [
            ("#!/bin/sh\necho 'self-test of ai-agent 0.2.0: ok'", 0o755, "ok"),
            ("#!/bin/sh\necho 'self-test of ai-agent 0.3.0: ok'", 0o755, "other version"),
            ("#!/bin/sh\nexit 0", 0o755, "other version"),
            ("#!/bin/sh\necho no store >&2; exit 1", 0o755, "failed"),
            ("#!/bin/sh\nkill -ABRT $$", 0o755, "failed"),
            ("#!/bin/sh\nexec tail -f /dev/null", 0o755, "timed out"),
            ("#!/none/such", 0o755, "not started"),
            ("\x7fELF", 0o755, "not started"),
            ("#!/bin/sh\necho", 0o644, "not started"),
        ] {
            assert_eq!(test(content, mode), expected, "{content:?} {mode:o}");
        }
    }

    #[test]
    fn copies_of_killed_self_tests_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("self-test-7")).unwrap();
        fs::write(dir.path().join("self-test-7/outbox.redb"), "content").unwrap();
        fs::write(dir.path().join("ai-agent-0.2.0"), "a download").unwrap();
        remove_copies(dir.path());
        let left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["ai-agent-0.2.0"]);
    }
}
