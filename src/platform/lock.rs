//! The state directory, and the lock that gives it to one agent.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::secure_file;

/// For how long somebody may hold the lock who only looks at it, or does not say who it is.
const PROBE_GRACE: Duration = Duration::from_millis(50);
/// For how long a command that is at work on the store is waited for.
const COMMAND_WAIT: Duration = Duration::from_secs(10);
/// How often the lock is tried.
const PAUSE: Duration = Duration::from_millis(10);

/// Held by the process that has the store of a state directory open; given back when dropped, and
/// by the system when the process dies, however it dies.
#[derive(Debug)]
pub struct StateLock {
    dir: PathBuf,
    /// Locked as long as it is open.
    _file: File,
}

impl StateLock {
    /// Creates the state directory if it is not there, for its owner only, and takes it for `role`.
    /// A command that has it is waited for: it ends soon, or else that is said.
    ///
    /// # Errors
    /// [`LockError::Held`] when an agent has it: the caller talks to that one, or ends.
    /// [`LockError::Busy`] when a command has it for longer than 10 s. The other errors say that the
    /// directory can't be used.
    pub fn acquire(dir: &Path, role: LockRole) -> Result<Self, LockError> {
        Self::acquire_within(dir, role, COMMAND_WAIT)
    }

    fn acquire_within(
        dir: &Path,
        role: LockRole,
        command_wait: Duration,
    ) -> Result<Self, LockError> {
        create(dir)?;
        let unusable = |source| LockError::unusable(dir, source);
        let file = secure_file::options().open(dir.join("agent.lock")).map_err(unusable)?;
        acquire_or_wait(&file, dir, command_wait)?;
        let pid_file = dir.join("agent.pid");
        let text = match role {
            LockRole::Agent => format!("{}\n", std::process::id()),
            LockRole::Command => format!("{} {COMMAND}\n", std::process::id()),
        };
        let written = secure_file::options().truncate(true).open(pid_file).and_then(|mut file| {
            use io::Write as _;
            file.write_all(text.as_bytes())
        });
        written.map_err(unusable)?;
        Ok(Self { dir: dir.to_owned(), _file: file })
    }

    /// Who holds the state directory `dir`, if somebody does.
    ///
    /// # Errors
    /// [`LockError`] when that can't be found out.
    pub fn current_holder(dir: &Path) -> Result<Option<LockHolder>, LockError> {
        let unusable = |source| LockError::unusable(dir, source);
        let file = match File::open(dir.join("agent.lock")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unusable(error)),
        };
        // Given back at once, with the file.
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(recorded_holder(dir))),
            Err(TryLockError::Error(source)) => Err(unusable(source)),
        }
    }

    /// The state directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for StateLock {
    fn drop(&mut self) {
        // For information only: the lock decides. Removed while it is still held, so that the file
        // of the next holder is not.
        if let Err(error) = fs::remove_file(self.dir.join("agent.pid")) {
            tracing::debug!(%error, "PID file left behind");
        }
    }
}

/// Takes the lock, though somebody may be looking at it just now, or a command be at work.
fn acquire_or_wait(file: &File, dir: &Path, command_wait: Duration) -> Result<(), LockError> {
    let begun = Instant::now();
    // Who has it may change meanwhile: a command ends, and an agent was quicker.
    let (mut known, mut since) = (None, begun);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => return Err(LockError::unusable(dir, source)),
        }
        let holder = recorded_holder(dir);
        if known.replace(holder) != Some(holder) {
            since = Instant::now();
            if holder.role == LockRole::Command {
                tracing::info!(
                    code = "state_dir_busy",
                    "waits for a command of ai-agent{holder} that is at work here"
                );
            }
        }
        let dir = || dir.to_owned();
        match holder.role {
            LockRole::Agent if since.elapsed() >= PROBE_GRACE => {
                return Err(LockError::Held { dir: dir(), holder });
            }
            LockRole::Command if begun.elapsed() >= command_wait => {
                return Err(LockError::Busy { dir: dir(), holder });
            }
            LockRole::Agent | LockRole::Command => thread::sleep(PAUSE),
        }
    }
}

/// Who says that they hold the state directory `dir`. They may be gone: only the lock tells.
fn recorded_holder(dir: &Path) -> LockHolder {
    let text = fs::read_to_string(dir.join("agent.pid")).unwrap_or_default();
    let mut words = text.split_whitespace();
    let pid = words.next().and_then(|word| word.parse().ok());
    let is_command = words.next() == Some(COMMAND);
    LockHolder { pid, role: if is_command { LockRole::Command } else { LockRole::Agent } }
}

/// Creates `dir` and what is above it, for the owner only.
fn create(dir: &Path) -> Result<(), LockError> {
    secure_file::create_dir(dir)
        .map_err(|source| LockError::NotCreated { dir: dir.to_owned(), source })?;
    warn_if_open_to_others(dir);
    Ok(())
}

fn warn_if_open_to_others(dir: &Path) {
    // Not tightened: it may be a directory that serves others too, chosen by mistake.
    if let Some(how) = secure_file::access_by_others(dir) {
        tracing::warn!(code = "state_dir_open_to_others", dir = %dir.display(), how, "state directory is open to other users");
    }
}

/// Why a state directory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error(
        "another agent{holder} runs on the state directory `{}`: stop that one first, or give this \
         one a directory of its own with `state_dir` under `[agent]`",
        dir.display()
    )]
    Held {
        /// The state directory.
        dir: PathBuf,
        /// Who has it, as far as it is known.
        holder: LockHolder,
    },
    /// A command has it, and does not end.
    #[error(
        "a command of ai-agent{holder} is at work on the state directory `{}`: wait until it has \
         ended, or end it, and try again",
        dir.display()
    )]
    Busy {
        /// The state directory.
        dir: PathBuf,
        /// Who has it, as far as it is known.
        holder: LockHolder,
    },
    /// It is not there and can't be created.
    #[error(
        "cannot create the state directory `{}`: create it as a directory of your own, or name \
         another with `state_dir` under `[agent]`",
        dir.display()
    )]
    NotCreated {
        /// The state directory.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no room in it.
    #[error(
        "cannot write in the state directory `{}`, there is no room: make some on its disk, or \
         name another with `state_dir` under `[agent]`",
        dir.display()
    )]
    Full {
        /// The state directory.
        dir: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It lies on a file system that only reads.
    #[error(
        "cannot write in the state directory `{}`, its file system only reads: make that writable \
         again, or name another directory with `state_dir` under `[agent]`",
        dir.display()
    )]
    ReadOnly {
        /// The state directory.
        dir: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Nothing can be written in it.
    #[error(
        "cannot write in the state directory `{dir}`: make it yours with `chown -R \"$USER\" \
         '{dir}'` and `chmod 700 '{dir}'`, or name another with `state_dir` under `[agent]`",
        dir = dir.display()
    )]
    NotWritable {
        /// The state directory.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl LockError {
    /// What to do about a directory in which nothing can be written.
    fn unusable(dir: &Path, source: io::Error) -> Self {
        let dir = dir.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { dir, source },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { dir, source },
            _ => Self::NotWritable { dir, source },
        }
    }
}

/// What stands behind the PID of a command.
const COMMAND: &str = "command";

/// As what a process holds the state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockRole {
    /// As the agent, for as long as it runs.
    Agent,
    /// As a command that command_wait on the store of an agent that does not run, and ends soon.
    Command,
}

/// The process that holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// Its number, if it said so.
    pub pid: Option<u32>,
    /// What it is there for; an agent if nothing is known.
    pub role: LockRole,
}

impl std::fmt::Display for LockHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, " (PID {pid})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// An admin was told to `chown` a directory that was theirs.
    #[test]
    fn a_disk_that_is_full_or_only_reads_is_not_a_matter_of_rights() {
        let words =
            |kind: io::ErrorKind| LockError::unusable(Path::new("/s"), kind.into()).to_string();
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let words = words(kind);
            assert!(words.contains("no room") && !words.contains("chown"), "{words}");
        }
        let read_only = words(io::ErrorKind::ReadOnlyFilesystem);
        assert!(read_only.contains("only reads") && !read_only.contains("chown"), "{read_only}");
        assert!(words(io::ErrorKind::PermissionDenied).contains("chown"));
    }

    #[test]
    fn the_second_holder_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("a/state");
        let first = StateLock::acquire(&dir, LockRole::Agent).unwrap();
        let error = StateLock::acquire(&dir, LockRole::Command).unwrap_err();
        let expected = format!(
            "another agent (PID {}) runs on the state directory `{}`: stop that one first, or \
             give this one a directory of its own with `state_dir` under `[agent]`",
            std::process::id(),
            dir.display()
        );
        assert_eq!(error.to_string(), expected);

        drop(first);
        assert_eq!(StateLock::current_holder(&dir).unwrap(), None);
        let second = StateLock::acquire(&dir, LockRole::Agent).unwrap();
        assert_eq!(second.dir(), dir);
    }

    /// Sends what is logged.
    struct Lines(mpsc::Sender<Vec<u8>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            drop(self.0.send(bytes.to_vec()));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A `status` looked into the store at the moment in which the agent was started, which said
    /// that another agent runs, and ended.
    #[test]
    fn an_agent_waits_for_a_command_that_is_at_work() {
        let dir = tempfile::tempdir().unwrap();
        let command = StateLock::acquire(dir.path(), LockRole::Command).unwrap();
        let held = StateLock::current_holder(dir.path()).unwrap().unwrap();
        assert_eq!(held, LockHolder { pid: Some(std::process::id()), role: LockRole::Command });
        let (logged, waits) = mpsc::channel();
        thread::scope(|scope| {
            let dir = dir.path();
            let agent = scope.spawn(move || {
                let subscriber =
                    tracing_subscriber::fmt().with_writer(move || Lines(logged.clone())).finish();
                tracing::subscriber::with_default(subscriber, || {
                    StateLock::acquire(dir, LockRole::Agent)
                })
            });
            waits.recv_timeout(Duration::from_secs(60)).expect("the agent waits");
            drop(command);
            agent.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_command_that_does_not_end_is_not_called_an_agent() {
        let dir = tempfile::tempdir().unwrap();
        let _command = StateLock::acquire(dir.path(), LockRole::Command).unwrap();
        let waited = StateLock::acquire_within(dir.path(), LockRole::Agent, PROBE_GRACE);
        let error = waited.unwrap_err();
        let expected = format!(
            "a command of ai-agent (PID {}) is at work on the state directory `{}`: wait until it \
             has ended, or end it, and try again",
            std::process::id(),
            dir.path().display()
        );
        assert_eq!(error.to_string(), expected);
    }

    /// A process that died leaves its PID file; the next one must not be refused for it.
    #[test]
    fn a_pid_file_alone_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("agent.pid"), "1\n").unwrap();
        let _lock = StateLock::acquire(dir.path(), LockRole::Agent).unwrap();
        let held = StateLock::current_holder(dir.path()).unwrap().unwrap();
        assert_eq!(held, LockHolder { pid: Some(std::process::id()), role: LockRole::Agent });
    }

    #[test]
    fn says_so_when_the_directory_cannot_be_created() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = StateLock::acquire(&file.join("state"), LockRole::Agent).unwrap_err();
        assert!(matches!(error, LockError::NotCreated { .. }));
        assert_eq!(
            error.to_string(),
            format!(
                "cannot create the state directory `{}`: create it as a directory of your own, or \
                 name another with `state_dir` under `[agent]`",
                file.join("state").display()
            )
        );
    }

    /// A directory stands in for missing permission, which root would not notice.
    #[test]
    fn says_so_when_nothing_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("agent.lock")).unwrap();
        let error = StateLock::acquire(dir.path(), LockRole::Agent).unwrap_err();
        assert!(matches!(error, LockError::NotWritable { .. }), "{error}");
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn everything_is_for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let _lock = StateLock::acquire(&dir, LockRole::Agent).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join("agent.lock")), 0o600);
        assert_eq!(mode(&dir.join("agent.pid")), 0o600);
    }
}
