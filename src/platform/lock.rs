//! State directory, and the lock that reserves it for one process.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    file, secure_file,
    state_dir::{self, DirUse, StateDirError},
};

/// Maximum time that a process may hold the lock to check it, or before it records its PID.
const PROBE_GRACE: Duration = Duration::from_millis(50);
/// Maximum time to wait for a command that uses the store.
const COMMAND_WAIT: Duration = Duration::from_secs(10);
/// Part of a PID file that is read, in bytes.
const MAX_PID_FILE: u64 = 64;
/// Interval between attempts to lock.
const PAUSE: Duration = Duration::from_millis(10);

/// Lock on a state directory, held by the process that has the store open. Released when dropped,
/// and by the system when the process dies.
#[derive(Debug)]
pub struct StateLock {
    dir: PathBuf,
    /// Locked as long as it is open.
    _file: File,
}

impl StateLock {
    /// Creates the state directory if necessary, for its owner only, and locks it for `role`. Waits
    /// for a command that holds the lock.
    ///
    /// # Errors
    /// `LockError::Held` if an agent holds the lock: the caller connects to that agent, or ends.
    /// `LockError::Busy` if a command holds it for more than 10 s. The other errors mean that the
    /// directory cannot be used.
    pub fn acquire(dir: &Path, role: LockRole) -> Result<Self, LockError> {
        Self::acquire_within(dir, role, COMMAND_WAIT)
    }

    fn acquire_within(
        dir: &Path,
        role: LockRole,
        command_wait: Duration,
    ) -> Result<Self, LockError> {
        Self::prepare_dir(dir)?;
        warn_if_open_to_others(dir);
        let unusable = |source| LockError::unusable(dir, source);
        let mut options = secure_file::options();
        let file = secure_file::open(&mut options, &dir.join("agent.lock")).map_err(unusable)?;
        acquire_or_wait(&file, dir, command_wait)?;
        let pid_file = dir.join("agent.pid");
        let text = match role {
            LockRole::Agent => format!("{}\n", std::process::id()),
            LockRole::Command => format!("{} {COMMAND}\n", std::process::id()),
        };
        let opened = secure_file::open(options.truncate(true), &pid_file);
        let written = opened.and_then(|mut file| {
            use io::Write as _;
            file.write_all(text.as_bytes())
        });
        written.map_err(unusable)?;
        Ok(Self { dir: dir.to_owned(), _file: file })
    }

    /// Creates the state directory if necessary, for its owner only, and checks that no other user can
    /// change it.
    ///
    /// # Errors
    /// `LockError::NotCreated` or `LockError::Refused`.
    pub fn prepare_dir(dir: &Path) -> Result<(), LockError> {
        secure_file::create_dir(dir).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                LockError::NotDirectory { dir: dir.to_owned() }
            }
            _ => LockError::NotCreated { dir: dir.to_owned(), source },
        })?;
        Ok(state_dir::check(dir, DirUse::Write)?)
    }

    /// Returns the process that holds the lock of `dir`, if there is one.
    ///
    /// # Errors
    /// `LockError` if the lock cannot be checked.
    pub fn current_holder(dir: &Path) -> Result<Option<LockHolder>, LockError> {
        state_dir::check(dir, DirUse::Read)?;
        let unusable = |source| LockError::unusable(dir, source);
        let file = match file::open_regular(&dir.join("agent.lock")) {
            Ok(Some((file, _))) => file,
            // Neither a link nor a directory is the lock of a process.
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unusable(error)),
        };
        // The lock is released at once, when the file is closed.
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(recorded_holder(dir))),
            Err(TryLockError::Error(source)) => Err(unusable(source)),
        }
    }

    /// Returns the state directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for StateLock {
    fn drop(&mut self) {
        // The PID file is informational; the lock decides. It is removed while the lock is held, so
        // that the file of the next holder is never removed.
        if let Err(error) = fs::remove_file(self.dir.join("agent.pid")) {
            tracing::debug!(%error, "could not remove the PID file");
        }
    }
}

/// Locks the file, waiting for processes that only check the lock, and for commands.
fn acquire_or_wait(file: &File, dir: &Path, command_wait: Duration) -> Result<(), LockError> {
    let begun = Instant::now();
    // The holder may change in the meantime, for example when a command ends and an agent starts.
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
                    "waiting for a command of ai-agent{holder} that uses the state directory"
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

/// Returns the recorded holder of `dir`, which may have ended.
fn recorded_holder(dir: &Path) -> LockHolder {
    let text = read_pid_file(&dir.join("agent.pid")).unwrap_or_default();
    let mut words = text.split_whitespace();
    let pid = words.next().and_then(|word| word.parse().ok());
    let is_command = words.next() == Some(COMMAND);
    LockHolder { pid, role: if is_command { LockRole::Command } else { LockRole::Agent } }
}

/// Returns the content of a PID file; it is empty if the path is no regular file.
fn read_pid_file(path: &Path) -> io::Result<String> {
    use io::Read as _;

    let Some((file, _)) = file::open_regular(path)? else { return Ok(String::new()) };
    let mut text = String::new();
    file.take(MAX_PID_FILE).read_to_string(&mut text)?;
    Ok(text)
}

fn warn_if_open_to_others(dir: &Path) {
    // The mode is not changed: the directory may have been chosen by mistake.
    if let Some(how) = secure_file::access_by_others(dir) {
        tracing::warn!(code = "state_dir_open_to_others", dir = %dir.display(), how, "state directory is open to other users");
    }
}

/// Reason why a state directory cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent holds the lock.
    #[error(
        "another agent{holder} uses the state directory `{}`: stop it first, or set another directory \
         with `state_dir` under `[agent]`",
        dir.display()
    )]
    Held {
        /// State directory.
        dir: PathBuf,
        /// Process that holds the lock, as far as it is known.
        holder: LockHolder,
    },
    /// A command holds the lock for too long.
    #[error(
        "a command of ai-agent{holder} uses the state directory `{}`: wait until it has finished, or \
         stop it, and try again",
        dir.display()
    )]
    Busy {
        /// State directory.
        dir: PathBuf,
        /// Process that holds the lock, as far as it is known.
        holder: LockHolder,
    },
    /// The directory cannot be created.
    #[error(
        "cannot create the state directory `{}`: create it manually, or set another directory with \
         `state_dir` under `[agent]`",
        dir.display()
    )]
    NotCreated {
        /// State directory.
        dir: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
    /// A file or a link without a target has the name of the directory, or of one above it.
    #[error(
        "the state directory `{}` cannot be used: `{}` is not a directory: move that away, or set another \
         directory with `state_dir` under `[agent]`",
        dir.display(), file::in_place_of_directory(dir).as_ref().unwrap_or(dir).display()
    )]
    NotDirectory {
        /// State directory.
        dir: PathBuf,
    },
    /// The disk is full.
    #[error(
        "cannot write to the state directory `{}`, no space left: free some on its disk, or set \
         another directory with `state_dir` under `[agent]`",
        dir.display()
    )]
    Full {
        /// State directory.
        dir: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
    /// The file system is read-only.
    #[error(
        "cannot write to the state directory `{}`, read-only file system: remount it read-write, or \
         set another directory with `state_dir` under `[agent]`",
        dir.display()
    )]
    ReadOnly {
        /// State directory.
        dir: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
    /// Other users can change the directory.
    #[error("the state directory {0}")]
    Refused(#[from] StateDirError),
    /// A file in the directory is a symlink, or no regular file.
    #[error("cannot use the state directory `{}`", dir.display())]
    Link {
        /// State directory.
        dir: PathBuf,
        /// The symlink or file.
        #[source]
        source: io::Error,
    },
    /// The directory is not writable.
    #[error(
        "cannot write to the state directory `{dir}`: run `chown -R \"$USER\" \
         '{dir}'` and `chmod 700 '{dir}'`, or name another with `state_dir` under `[agent]`",
        dir = dir.display()
    )]
    NotWritable {
        /// State directory.
        dir: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
}

impl LockError {
    /// Classifies an error about a directory that cannot be written.
    fn unusable(dir: &Path, source: io::Error) -> Self {
        let dir = dir.to_owned();
        let is_wrong_file = source.get_ref().is_some_and(|inner| {
            inner.is::<secure_file::SymlinkRefused>() || inner.is::<secure_file::NotRegularFile>()
        });
        if is_wrong_file {
            return Self::Link { dir, source };
        }
        match source.kind() {
            io::ErrorKind::NotADirectory => Self::NotDirectory { dir },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { dir, source },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { dir, source },
            _ => Self::NotWritable { dir, source },
        }
    }
}

/// Word after the PID of a command.
const COMMAND: &str = "command";

/// Role in which a process holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockRole {
    /// The agent, as long as it runs.
    Agent,
    /// A command that uses the store while no agent runs, and ends soon.
    Command,
}

/// Process that holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// PID, if it was recorded.
    pub pid: Option<u32>,
    /// Role; an agent if unknown.
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

    /// Regression: the message advised administrators to `chown` their own directory.
    #[test]
    fn full_or_read_only_disk_is_not_reported_as_permissions() {
        let words =
            |kind: io::ErrorKind| LockError::unusable(Path::new("/s"), kind.into()).to_string();
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let words = words(kind);
            assert!(words.contains("no space left") && !words.contains("chown"), "{words}");
        }
        let read_only = words(io::ErrorKind::ReadOnlyFilesystem);
        assert!(read_only.contains("read-only") && !read_only.contains("chown"), "{read_only}");
        assert!(words(io::ErrorKind::PermissionDenied).contains("chown"));
    }

    /// The advice was to create the directory, or to change the owner of the file.
    #[test]
    fn file_in_place_of_the_state_directory_is_named_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state");
        fs::write(&file, "").unwrap();
        let refused = StateLock::acquire(&file, LockRole::Agent).unwrap_err();
        assert!(matches!(refused, LockError::NotDirectory { .. }), "{refused}");
        #[cfg(unix)]
        {
            let refused = StateLock::current_holder(&file).unwrap_err();
            assert!(matches!(refused, LockError::NotDirectory { .. }), "{refused}");
            let dangling = dir.path().join("dangling");
            std::os::unix::fs::symlink("/no/such/directory", &dangling).unwrap();
            let refused = StateLock::acquire(&dangling, LockRole::Agent).unwrap_err();
            assert!(matches!(refused, LockError::NotDirectory { .. }), "{refused}");
        }
    }

    #[test]
    fn second_holder_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("a/state");
        let first = StateLock::acquire(&dir, LockRole::Agent).unwrap();
        let error = StateLock::acquire(&dir, LockRole::Command).unwrap_err();
        let expected = format!(
            "another agent (PID {}) uses the state directory `{}`: stop it first, or set another \
             directory with `state_dir` under `[agent]`",
            std::process::id(),
            dir.display()
        );
        assert_eq!(error.to_string(), expected);

        drop(first);
        assert_eq!(StateLock::current_holder(&dir).unwrap(), None);
        let second = StateLock::acquire(&dir, LockRole::Agent).unwrap();
        assert_eq!(second.dir(), dir);
    }

    /// Sends each log line.
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

    /// A `status` command checked the store just when the agent was started, which reported another
    /// agent and ended.
    #[test]
    fn agent_waits_for_a_command_that_holds_the_lock() {
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
    fn command_that_holds_the_lock_is_not_called_an_agent() {
        let dir = tempfile::tempdir().unwrap();
        let _command = StateLock::acquire(dir.path(), LockRole::Command).unwrap();
        let waited = StateLock::acquire_within(dir.path(), LockRole::Agent, PROBE_GRACE);
        let error = waited.unwrap_err();
        let expected = format!(
            "a command of ai-agent (PID {}) uses the state directory `{}`: wait until it has finished, \
             or stop it, and try again",
            std::process::id(),
            dir.path().display()
        );
        assert_eq!(error.to_string(), expected);
    }

    /// A process that died leaves its PID file, which must not block the next one.
    #[test]
    fn stale_pid_file_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("agent.pid"), "1\n").unwrap();
        let _lock = StateLock::acquire(dir.path(), LockRole::Agent).unwrap();
        let held = StateLock::current_holder(dir.path()).unwrap().unwrap();
        assert_eq!(held, LockHolder { pid: Some(std::process::id()), role: LockRole::Agent });
    }

    #[test]
    fn directory_that_cannot_be_created_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let too_long = dir.path().join("a".repeat(300)).join("state");
        let error = StateLock::acquire(&too_long, LockRole::Agent).unwrap_err();
        assert!(matches!(error, LockError::NotCreated { .. }));
        assert_eq!(
            error.to_string(),
            format!(
                "cannot create the state directory `{}`: create it manually, or set another directory \
                 with `state_dir` under `[agent]`",
                too_long.display()
            )
        );
    }

    /// The advice was to create it manually, below a file.
    #[cfg(unix)]
    #[test]
    fn file_above_the_state_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = StateLock::acquire(&file.join("a/state"), LockRole::Agent).unwrap_err();
        assert!(matches!(error, LockError::NotDirectory { .. }), "{error}");
        let named = format!("`{}` is not a directory", file.display());
        assert!(error.to_string().contains(&named), "{error}");
    }

    /// A directory simulates a missing permission, which root would not notice.
    #[test]
    fn directory_that_is_not_writable_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("agent.lock")).unwrap();
        let error = StateLock::acquire(dir.path(), LockRole::Agent).unwrap_err();
        assert!(matches!(error, LockError::NotWritable { .. }), "{error}");
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    /// A symlink would let another program choose the file that the agent truncates.
    #[cfg(unix)]
    #[test]
    fn lock_or_pid_file_that_is_a_symlink_is_refused() {
        for name in ["agent.lock", "agent.pid"] {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("precious");
            fs::write(&target, "precious").unwrap();
            std::os::unix::fs::symlink(&target, dir.path().join(name)).unwrap();
            let error = StateLock::acquire(dir.path(), LockRole::Agent).unwrap_err();
            assert!(matches!(error, LockError::Link { .. }), "{error}");
            assert_eq!(fs::read(&target).unwrap(), b"precious");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn lock_or_pid_file_that_is_a_fifo_does_not_block() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};

        for name in ["agent.lock", "agent.pid"] {
            let dir = tempfile::tempdir().unwrap();
            let fifo = dir.path().join(name);
            mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).unwrap();
            let error = StateLock::acquire(dir.path(), LockRole::Agent).unwrap_err();
            assert!(matches!(error, LockError::Link { .. }), "{error}");
            let unknown = LockHolder { pid: None, role: LockRole::Agent };
            assert_eq!(recorded_holder(dir.path()), unknown);
        }
    }

    #[cfg(unix)]
    #[test]
    fn directory_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = StateLock::acquire(dir.path(), LockRole::Agent).unwrap_err();
        assert!(matches!(error, LockError::Refused(StateDirError::Writable { .. })), "{error}");
        assert!(error.to_string().contains("run `chmod 700"), "{error}");
        assert!(StateLock::current_holder(dir.path()).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is written there");
    }

    #[cfg(unix)]
    #[test]
    fn state_files_are_accessible_to_the_owner_only() {
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
