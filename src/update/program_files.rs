//! The program's file and the files beside it that an update uses.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use siem_protocol::Digest;

use crate::platform::{file, own_program, secure_file};

/// Interval between attempts to lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The program's file and those beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProgramFiles {
    program: PathBuf,
}

impl ProgramFiles {
    /// Returns the files of the running program, at the path from which it was started: the first call
    /// must be before an update renames the program.
    ///
    /// # Errors
    /// The error of the system.
    pub(crate) fn of_current() -> io::Result<Self> {
        static CURRENT: OnceLock<ProgramFiles> = OnceLock::new();
        if let Some(current) = CURRENT.get() {
            return Ok(current.clone());
        }
        let program = std::env::current_exe()?.canonicalize()?;
        Ok(CURRENT.get_or_init(|| Self { program }).clone())
    }

    /// Returns the files of the program at `program`.
    pub(crate) fn of(program: &Path) -> Self {
        Self { program: program.to_owned() }
    }

    /// The program that the service runs.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The program before the last update.
    pub(crate) fn previous(&self) -> PathBuf {
        own_program::beside(&self.program, "previous")
    }

    /// A new program that is not in place yet.
    pub(crate) fn next(&self) -> PathBuf {
        own_program::beside(&self.program, "next")
    }

    /// The record of the last update.
    pub(crate) fn record(&self) -> PathBuf {
        self.with_suffix(".update.json")
    }

    fn lock(&self) -> PathBuf {
        self.with_suffix(".update.lock")
    }

    /// Returns a path from the program's, whose whole name is kept: the unit of systemd names the record.
    fn with_suffix(&self, suffix: &str) -> PathBuf {
        let mut path = self.program.as_os_str().to_owned();
        path.push(suffix);
        path.into()
    }

    /// Removes the record of the last update: no process replaces the program any more.
    ///
    /// # Errors
    /// The error of the system.
    pub(crate) fn remove_record(&self) -> io::Result<()> {
        own_program::remove_if_present(&self.record())
    }

    /// Removes the files of updates beside the program.
    ///
    /// # Errors
    /// The error of the system.
    pub(crate) fn remove_all_but_program(&self) -> io::Result<()> {
        own_program::remove_old(&self.program);
        let unfinished =
            [own_program::beside(&self.previous(), "new"), self.with_suffix(".update.json.new")];
        drop(unfinished.map(fs::remove_file));
        let files = [self.previous(), self.next(), self.record(), self.lock()];
        files.iter().try_for_each(|file| own_program::remove(file))
    }

    pub(super) fn directory(&self) -> &Path {
        self.program.parent().unwrap_or(&self.program)
    }

    /// Checks that this user may replace the program.
    ///
    /// # Errors
    /// [`NotReplaceable`]: an update is only announced.
    pub(crate) fn check_replaceable(&self) -> Result<(), NotReplaceable> {
        let io = |source| NotReplaceable::Io { path: self.program.clone(), source };
        let is_own = own_program::is_own(&self.program).map_err(io)?
            && own_program::is_own(self.directory()).map_err(io)?;
        if !is_own || own_program::is_in_system_directory(&self.program) {
            return Err(NotReplaceable::MachineWide { path: self.program.clone() });
        }
        for path in [self.program(), self.directory()] {
            if own_program::is_writable_by_all(path).map_err(io)? {
                return Err(NotReplaceable::OpenToAll { path: path.to_owned() });
            }
        }
        // The true test, also of a read-only file system and of access lists.
        secure_file::open(&mut secure_file::options(), &self.lock()).map_err(|source| {
            NotReplaceable::NotWritable { path: self.directory().to_owned(), source }
        })?;
        Ok(())
    }
}

/// Reason why this user cannot replace the program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReplaceable {
    #[error(
        "`{}` belongs to the machine: an administrator or the package manager updates it",
        path.display()
    )]
    MachineWide { path: PathBuf },
    #[error("every user of the machine can write to `{}`: run `chmod o-w` on it", path.display())]
    OpenToAll { path: PathBuf },
    #[error("the directory `{}` is not writable", path.display())]
    NotWritable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot inspect `{}`", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Lock of all updates of one program, held while its files or its record change. Released when dropped,
/// and by the system when the process dies.
#[derive(Debug)]
pub(crate) struct UpdateLock {
    files: ProgramFiles,
    /// Locked as long as it is open.
    _file: File,
}

impl UpdateLock {
    /// Takes the lock, if no other process holds it.
    ///
    /// # Errors
    /// The error of the system; `WouldBlock` if another process holds it.
    pub(crate) fn try_take(files: &ProgramFiles) -> io::Result<Self> {
        Ok(Self { files: files.clone(), _file: lock(&files.lock())? })
    }

    /// Returns whether another process holds the lock. Writes nothing.
    pub(super) fn is_taken(files: &ProgramFiles) -> bool {
        let Ok(Some((file, _))) = file::open_regular(&files.lock()) else { return false };
        // Released at once, when the file is closed.
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// Takes the lock, and waits for another process that holds it.
    ///
    /// # Errors
    /// The error of the system; `WouldBlock` if another process holds it for longer than `limit`.
    pub(crate) fn take_within(files: &ProgramFiles, limit: Duration) -> io::Result<Self> {
        let begun = Instant::now();
        loop {
            match Self::try_take(files) {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < limit =>
                {
                    thread::sleep(LOCK_PAUSE);
                }
                taken => return taken,
            }
        }
    }

    /// The files that the lock protects.
    pub(crate) fn files(&self) -> &ProgramFiles {
        &self.files
    }
}

/// Creates the file at `path` if necessary, and locks it until it is closed.
///
/// # Errors
/// The error of the system; `WouldBlock` if another process has locked it.
pub(super) fn lock(path: &Path) -> io::Result<File> {
    let file = secure_file::open(&mut secure_file::options(), path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Returns the SHA-256 of a regular file.
///
/// # Errors
/// The error of the system, or that the path is something else, such as a FIFO, or a symlink.
pub(crate) fn digest_of(path: &Path) -> io::Result<Digest> {
    use sha2::Digest as _;

    let opened = own_program::retry_busy(|| file::open_regular(path))?;
    let (mut file, _) =
        opened.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))?;
    let mut hash = HashWriter(sha2::Sha256::new());
    io::copy(&mut file, &mut hash)?;
    Ok(Digest::from_bytes(hash.0.finalize().into()))
}

struct HashWriter(sha2::Sha256);

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        sha2::Digest::update(&mut self.0, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_update_of_a_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let files = ProgramFiles::of(&dir.path().join("ai-agent"));
        let lock = UpdateLock::try_take(&files).unwrap();
        let kind = |taken: io::Result<UpdateLock>| taken.unwrap_err().kind();
        assert_eq!(kind(UpdateLock::try_take(&files)), io::ErrorKind::WouldBlock);
        let within = UpdateLock::take_within(&files, Duration::from_millis(30));
        assert_eq!(kind(within), io::ErrorKind::WouldBlock);
        drop(lock);
        UpdateLock::try_take(&files).unwrap();
    }

    #[test]
    fn program_of_the_machine_is_not_replaceable() {
        let windows = std::env::var("SystemRoot").map(|root| format!(r"{root}\System32\cmd.exe"));
        let program = if cfg!(windows) { windows.unwrap() } else { "/usr/bin/env".to_owned() };
        let system = ProgramFiles::of(Path::new(&program));
        let refused = system.check_replaceable().unwrap_err();
        assert!(matches!(refused, NotReplaceable::MachineWide { .. }), "{refused}");
    }
}
