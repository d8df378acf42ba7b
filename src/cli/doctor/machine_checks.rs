//! Checks of this machine: state directory, disk, session logs, watches, open files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::check_result::{CheckResult, Checkup};
use crate::{
    pipeline::assembly,
    platform::{
        self,
        bounded::{BoundedCalls, CurrentPlace, DoesNotAnswer},
        file, secure_file,
        state_dir::{self, DirUse},
        watch,
    },
    text::{causes, counted},
};
use config_text::Size;

/// Open files that are enough for the agent and its sources.
const ENOUGH_FILES: u64 = 256;

/// `calls` read what is not the agent's own.
pub(super) fn run(checkup: &Checkup, calls: &BoundedCalls) -> Vec<CheckResult> {
    let settings = &checkup.loaded.settings;
    let state_dir = &settings.agent.state_dir;
    let mut results = vec![state_directory(state_dir)];
    results.push(disk_space(platform::free_space(existing(state_dir)), settings.outbox.max_bytes));
    let mut directories = 0;
    // A source that cannot be built is reported with the configuration.
    let roots = assembly::session_roots(&checkup.loaded, &checkup.context).unwrap_or_default();
    for root in &roots {
        let seen = SessionLogs::find(root, calls);
        directories += seen.directories;
        results.extend(session_logs(root, &seen));
    }
    if results.iter().all(|result| result.subject != "sessions") {
        let first = roots.first().map(|root| root.display().to_string()).unwrap_or_default();
        let text = format!("none yet: Claude Code writes them below `{first}`");
        results.push(CheckResult::warn("sessions", text));
    }
    results.extend(watch::limit().map(|limit| watches(directories, limit)));
    results.extend(file::open_limit().map(open_files));
    results
}

fn state_directory(dir: &Path) -> CheckResult {
    const SUBJECT: &str = "state";

    let shown = dir.display();
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => CheckResult::fail(
            SUBJECT,
            format!(
                "`{shown}` is not a directory: move it away, or set `state_dir` under `[agent]` to another"
            ),
        ),
        Ok(_) => match state_dir::check(dir, DirUse::Write).map(|()| try_to_write(dir)) {
            Err(refused) => CheckResult::fail(SUBJECT, causes(&refused)),
            Ok(Ok(())) => CheckResult::ok(SUBJECT, format!("`{shown}` is writable")),
            Ok(Err(error)) => CheckResult::fail(
                SUBJECT,
                format!(
                    "cannot write to `{shown}`: {error}; fix that, or set `state_dir` under `[agent]` to another directory"
                ),
            ),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => CheckResult::warn(
            SUBJECT,
            format!("`{shown}` does not exist yet: the agent has not run"),
        ),
        Err(error) => CheckResult::fail(SUBJECT, format!("cannot inspect `{shown}`: {error}")),
    }
}

/// Writes a file and deletes it.
fn try_to_write(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!("doctor.{}", std::process::id()));
    secure_file::replace(&path, b"written by ai-agent doctor\n")?;
    fs::remove_file(path)
}

/// Returns the nearest ancestor that exists.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(dir)
}

fn disk_space(free: Option<u64>, max: u64) -> CheckResult {
    const SUBJECT: &str = "disk";

    let Some(free) = free else {
        return CheckResult::warn(SUBJECT, "free space is unknown");
    };
    let (shown, wanted) = (Size(free), Size(max));
    if free < max / 10 {
        CheckResult::fail(
            SUBJECT,
            format!(
                "{shown} free, and the outbox may take {wanted}: free space, or lower `outbox.max_bytes`"
            ),
        )
    } else if free < max {
        CheckResult::warn(
            SUBJECT,
            format!("{shown} free, less than the {wanted} that the outbox may take"),
        )
    } else {
        CheckResult::ok(SUBJECT, format!("{shown} free, the outbox may take {wanted}"))
    }
}

/// Session logs below a directory.
#[derive(Debug, Default)]
struct SessionLogs {
    exists: bool,
    directories: u64,
    files: u64,
    /// The first path that cannot be read, and the error.
    unreadable: Option<(PathBuf, io::Error)>,
}

/// Entries of one directory of sessions.
#[derive(Default)]
struct Folder {
    folders: Vec<PathBuf>,
    files: u64,
    /// The first file that cannot be read, and the error.
    unreadable: Option<(PathBuf, io::Error)>,
}

impl SessionLogs {
    fn find(root: &Path, calls: &BoundedCalls) -> Self {
        let mut seen = Self::default();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            let of_call = folder.clone();
            let found = calls.run_with(&folder, move |current| Folder::list(&of_call, current));
            match found {
                Ok(found) => {
                    seen.exists = true;
                    seen.directories += 1;
                    seen.files += found.files;
                    folders.extend(found.folders);
                    seen.unreadable = seen.unreadable.or(found.unreadable);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let silent = DoesNotAnswer::of(&error).map(|silent| silent.place.clone());
                    seen.unreadable.get_or_insert((silent.unwrap_or(folder), error));
                }
            }
        }
        seen
    }
}

impl Folder {
    fn list(path: &Path, current: &CurrentPlace) -> io::Result<Self> {
        let mut folder = Self::default();
        for entry in fs::read_dir(path)?.flatten() {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folder.folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "jsonl") {
                folder.files += 1;
                current.set(&path);
                if let Err(error) = file::open_regular(&path) {
                    folder.unreadable.get_or_insert((path, error));
                }
            }
        }
        Ok(folder)
    }
}

fn session_logs(root: &Path, seen: &SessionLogs) -> Option<CheckResult> {
    const SUBJECT: &str = "sessions";

    let shown = root.display();
    match &seen.unreadable {
        Some((path, error)) if DoesNotAnswer::of(error).is_some() => Some(CheckResult::fail(
            SUBJECT,
            format!("`{}` {error}; check its mount, or the permission to read it", path.display()),
        )),
        Some((path, error)) => Some(CheckResult::fail(
            SUBJECT,
            format!(
                "cannot read `{}`: {error}; make it readable for the agent's user",
                path.display()
            ),
        )),
        None if seen.exists => Some(CheckResult::ok(
            SUBJECT,
            format!("{} below `{shown}`", counted(seen.files, "file", "files")),
        )),
        None => None,
    }
}

fn watches(directories: u64, limit: u64) -> CheckResult {
    if directories < limit / 2 {
        CheckResult::ok(
            "watches",
            format!("{directories} of at most {limit} directories are watched"),
        )
    } else {
        CheckResult::warn(
            "watches",
            format!(
                "{directories} directories, and all programs of this user may watch only {limit}: changes \
                 in the others are found by sweeps, seconds later; raise the limit with `sysctl \
                 fs.inotify.max_user_watches`"
            ),
        )
    }
}

fn open_files(limit: u64) -> CheckResult {
    if limit < ENOUGH_FILES {
        CheckResult::warn(
            "open files",
            format!(
                "at most {limit}: the agent works with few, but slower; raise the limit with `ulimit -n`"
            ),
        )
    } else {
        CheckResult::ok("open files", format!("at most {limit}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{super::check_result::CheckOutcome, *};
    use crate::platform::SystemClock;

    #[test]
    fn low_disk_space_warns_before_it_fails() {
        let outcome = |free| disk_space(free, 1000).outcome;
        assert_eq!(outcome(Some(1000)), CheckOutcome::Ok);
        assert_eq!(outcome(Some(999)), CheckOutcome::Warn);
        assert_eq!(outcome(Some(99)), CheckOutcome::Fail);
        assert_eq!(outcome(None), CheckOutcome::Warn);
    }

    #[test]
    fn low_limits_warn() {
        assert_eq!(watches(10, 8192).outcome, CheckOutcome::Ok);
        assert_eq!(watches(5000, 8192).outcome, CheckOutcome::Warn);
        assert_eq!(open_files(1024).outcome, CheckOutcome::Ok);
        assert_eq!(open_files(64).outcome, CheckOutcome::Warn);
    }

    #[test]
    fn the_state_directory_is_left_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(state_directory(dir.path()).outcome, CheckOutcome::Ok);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(state_directory(&dir.path().join("none")).outcome, CheckOutcome::Warn);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(state_directory(&file).outcome, CheckOutcome::Fail);
    }

    fn find(root: &Path) -> SessionLogs {
        SessionLogs::find(root, &BoundedCalls::new(Arc::new(SystemClock)))
    }

    #[test]
    fn session_logs_are_counted_and_unreadable_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(session_logs(dir.path(), &find(&dir.path().join("none"))).is_none());
        fs::create_dir(dir.path().join("p")).unwrap();
        fs::write(dir.path().join("p/s.jsonl"), "{}\n").unwrap();
        let seen = find(dir.path());
        assert_eq!((seen.directories, seen.files), (2, 1));
        assert_eq!(session_logs(dir.path(), &seen).unwrap().outcome, CheckOutcome::Ok);
        let unreadable = Some(("/x".into(), io::Error::other("no")));
        let finding = session_logs(dir.path(), &SessionLogs { unreadable, ..seen }).unwrap();
        assert_eq!(finding.outcome, CheckOutcome::Fail);
        assert!(finding.text.starts_with("cannot read `/x`: no"));
    }

    /// A share without its server made doctor hang, which is there to say so.
    #[cfg(unix)]
    #[test]
    fn session_log_that_hangs_is_a_failure() {
        use std::time::Duration;

        use crate::platform::faults::{self, Call};

        let dir = tempfile::tempdir().unwrap();
        for name in ["hangs.jsonl", "s.jsonl"] {
            fs::create_dir_all(dir.path().join("p")).unwrap();
            fs::write(dir.path().join("p").join(name), "{}\n").unwrap();
        }
        fs::write(dir.path().join("other.jsonl"), "{}\n").unwrap();
        let hanging = dir.path().join("p/hangs.jsonl");
        faults::hang(Call::Open, &hanging);
        let calls = BoundedCalls::with_limit(Arc::new(SystemClock), Duration::from_millis(300));
        let seen = SessionLogs::find(dir.path(), &calls);
        faults::end();
        assert_eq!((seen.directories, seen.files), (1, 1), "the others are counted");
        let finding = session_logs(dir.path(), &seen).unwrap();
        assert_eq!(finding.outcome, CheckOutcome::Fail);
        let expected = format!("`{}` does not answer", hanging.display());
        assert!(finding.text.starts_with(&expected), "{}", finding.text);
    }
}
