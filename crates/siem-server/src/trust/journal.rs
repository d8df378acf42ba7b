//! Append-only file of JSON lines that several processes share, folded into a state in memory.
//!
//! A line is written under the lock of the directory, so that lines of the server and of commands
//! do not mix, and each process folds the lines that others appended before it reads its state. A
//! crash can leave a torn last line, which the next writer cuts off: it was never confirmed. A file
//! that replaces the one before, such as a copy that an operator restores, replaces the state. So does
//! a compacted file, without the lines that the state no longer needs.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Serialize, de::DeserializeOwned};
use tracing::{error, warn};

use crate::{
    regular_file::{check_regular, open_regular_file},
    store::{create_private, sync_directory},
};

/// State that is rebuilt from the lines of a journal.
pub(super) trait Fold: Default + Send {
    /// A line.
    type Line: Serialize + DeserializeOwned;

    /// Applies a line. Must accept every sequence of lines: the order of two processes is theirs.
    fn apply(&mut self, line: Self::Line);

    /// Returns the number of lines that the state no longer needs, at least.
    fn superfluous(&self) -> u64 {
        0
    }

    /// Returns what remains of a line of the file that was folded into this state. The remaining
    /// lines must give the same state.
    fn remainder(&self, line: Self::Line) -> Option<Self::Line> {
        Some(line)
    }
}

/// Number of superfluous lines from which the file is compacted, if they are half of its lines.
const COMPACT_FROM: u64 = 1000;

/// Error of a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What failed, such as `open` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A line is not of the expected form: the file is damaged, or a later release wrote it.
    #[error("cannot read line {line} of `{path}`: it is damaged, or of a later release")]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
}

impl JournalError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// Lock of a directory, held by one writer of all processes.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    path: PathBuf,
    /// Serializes the threads of this process, for which a file lock does nothing.
    file: Mutex<File>,
}

/// The lock while it is held.
pub(super) struct Locked<'a>(MutexGuard<'a, File>);

impl DirectoryLock {
    /// Creates the directory and its lock if they are missing.
    pub(super) fn open(directory: &Path) -> Result<Arc<Self>, JournalError> {
        create_directory(directory)?;
        let path = directory.join("lock");
        let file = private_file(&path, true).map_err(JournalError::io("open", &path))?;
        Ok(Arc::new(Self { path, file: Mutex::new(file) }))
    }

    /// Waits for the lock.
    pub(super) fn lock(&self) -> Result<Locked<'_>, JournalError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            file.lock().map_err(JournalError::io("lock", &self.path))?;
            let held = file.metadata().map_err(JournalError::io("read", &self.path))?;
            // An operator who restored the directory replaced the file that others lock.
            if fs::metadata(&self.path).is_ok_and(|now| identity(&now) == identity(&held)) {
                return Ok(Locked(file));
            }
            *file = private_file(&self.path, true).map_err(JournalError::io("open", &self.path))?;
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // The system releases it at the latest when the process ends.
        drop(self.0.unlock());
    }
}

/// Device and number of a file: another file at the same path has others.
#[cfg(unix)]
type FileIdentity = (u64, u64);
#[cfg(unix)]
fn identity(file: &fs::Metadata) -> FileIdentity {
    use std::os::unix::fs::MetadataExt as _;
    (file.dev(), file.ino())
}

/// Time of creation: another file at the same path has another one in most cases.
#[cfg(not(unix))]
type FileIdentity = Option<std::time::SystemTime>;
#[cfg(not(unix))]
fn identity(file: &fs::Metadata) -> FileIdentity {
    file.created().ok()
}

/// The lock of a registry's directory, held until it is dropped.
#[derive(Debug)]
pub(crate) struct RegistryLock {
    /// The system releases the lock when the file is closed.
    _file: File,
}

impl RegistryLock {
    /// Waits for the lock.
    pub(crate) fn hold(directory: &Path) -> Result<Self, JournalError> {
        let path = directory.join("lock");
        let file = private_file(&path, true).map_err(JournalError::io("open", &path))?;
        file.lock().map_err(JournalError::io("lock", &path))?;
        Ok(Self { _file: file })
    }
}

/// Opens a file for reading and writing. With `create` it is created if missing, with access for
/// the owner only.
fn private_file(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Windows does not truncate a file that is opened for appending.
    options.create(create).read(true).write(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Guarantee about a line when its append returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// It survives a power cut.
    Synced,
    /// It survives the end of the process.
    Written,
}

/// A journal and its state.
#[derive(Debug)]
pub(super) struct Journal<S> {
    path: PathBuf,
    lock: Arc<DirectoryLock>,
    folded: Mutex<Folded<S>>,
    /// Held while a sync runs, which then counts for every thread that waits.
    synced: Mutex<Synced>,
}

/// Version of the state of a journal: equal ones are of the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JournalVersion {
    /// Number of the file, as in [`Folded::files`].
    files: u64,
    /// Number of its lines that are folded.
    lines: u64,
}

#[cfg(test)]
impl JournalVersion {
    pub(super) fn of(lines: u64) -> Self {
        Self { files: 1, lines }
    }
}

/// State of the file on stable storage.
#[derive(Debug, Default)]
struct Synced {
    /// Number of the file, as in [`Folded::files`].
    files: u64,
    /// Length up to which it is synced.
    length: u64,
    /// True after a failed sync. The system may have discarded what it could not write, so that a
    /// later sync of this file succeeds although lines are missing.
    failed: bool,
}

#[derive(Debug)]
struct Folded<S> {
    /// None as long as there is no file.
    file: Option<(File, FileIdentity)>,
    /// Number of files that were folded: an operator restores a copy, or another process replaces
    /// the file.
    files: u64,
    /// Bytes and lines that are folded.
    length: u64,
    lines: u64,
    state: S,
    /// Set after an error was logged, so that it is logged once.
    failed: bool,
    /// The file is opened for writing too.
    is_writable: bool,
    /// Number of lines from which the file may be compacted, after an attempt that failed.
    compact_from: u64,
}

impl<S: Fold> Journal<S> {
    /// Folds the file `name` in the directory of `lock`. The file is created with its first line.
    pub(super) fn open(
        directory: &Path,
        name: &str,
        lock: Arc<DirectoryLock>,
    ) -> Result<Self, JournalError> {
        let path = directory.join(name);
        let mut folded = Folded::new();
        let held = lock.lock()?;
        folded.catch_up(&path)?;
        let torn = folded.torn(&path)?;
        if torn > 0 {
            let bytes = torn;
            warn!(code = "trust_journal_cut", file = %path.display(), bytes, "a journal of the registry ends in the middle of a line, which is removed: a crash left it, or the file was cut off and lines behind it are missing");
        }
        folded.cut_torn_line(&path)?;
        drop(held);
        Ok(Self { path, lock, folded: Mutex::new(folded), synced: Mutex::default() })
    }

    /// Calls `read` with the state, after the lines of other processes are folded. If these cannot
    /// be read, that is logged and the state known so far is used.
    pub(super) fn read<R>(&self, read: impl FnOnce(&S) -> R) -> R {
        self.read_version(|state, _| read(state))
    }

    /// Like [`Journal::read`], with the version of the state.
    pub(super) fn read_version<R>(&self, read: impl FnOnce(&S, JournalVersion) -> R) -> R {
        let mut folded = self.folded();
        match folded.catch_up(&self.path) {
            Ok(()) => folded.failed = false,
            Err(error) => folded.log_once(&error),
        }
        let version = JournalVersion { files: folded.files, lines: folded.lines };
        read(&folded.state, version)
    }

    /// Calls `decide` with the state as of the lock, and appends the line that it returns.
    ///
    /// After an error the line may still be in the file: if only its sync failed. It is then part
    /// of the state.
    pub(super) fn transact<R, E: From<JournalError>>(
        &self,
        durability: Durability,
        decide: impl FnOnce(&S) -> Result<(Option<S::Line>, R), E>,
    ) -> Result<R, E> {
        let held = self.lock.lock()?;
        let mut folded = self.folded();
        folded.catch_up(&self.path)?;
        folded.cut_torn_line(&self.path)?;
        let (line, result) = decide(&folded.state)?;
        if let Some(line) = line {
            folded.append(&self.path, line)?;
            folded.compact_if_due(&self.path);
        }
        let end = folded.length;
        drop(folded);
        drop(held);
        if durability == Durability::Synced {
            self.sync(end)?;
        }
        Ok(result)
    }

    /// Makes the file durable up to `end`.
    fn sync(&self, end: u64) -> Result<(), JournalError> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if synced.failed {
            *synced = self.rewrite()?;
            return Ok(());
        }
        let (files, length, file) = {
            let folded = self.folded();
            (folded.files, folded.length, folded.file.as_ref().map(|(file, _)| file.try_clone()))
        };
        // The file is shorter than before if an operator restored an older copy.
        let is_synced = synced.files == files && (end..=length).contains(&synced.length);
        let Some(file) = file.filter(|_| !is_synced) else { return Ok(()) };
        let result = file.and_then(|file| file.sync_data());
        synced.failed = result.is_err();
        result.map_err(JournalError::io("sync", &self.path))?;
        (synced.files, synced.length) = (files, length);
        Ok(())
    }

    /// Writes all lines to another file, which replaces the one whose sync failed.
    fn rewrite(&self) -> Result<Synced, JournalError> {
        let _held = self.lock.lock()?;
        let mut folded = self.folded();
        folded.catch_up(&self.path)?;
        let mut content = fs::read(&self.path).map_err(JournalError::io("read", &self.path))?;
        content.truncate(usize::try_from(folded.length).unwrap_or(usize::MAX));
        // The system may have discarded a part of what it could not write.
        for (line, text) in (1..).zip(content.split_inclusive(|byte| *byte == b'\n')) {
            serde_json::from_slice::<S::Line>(text).map_err(|source| JournalError::Line {
                path: self.path.clone(),
                line,
                source,
            })?;
        }
        replace_file(&self.path, &content)?;
        folded.catch_up(&self.path)?;
        Ok(Synced { files: folded.files, length: folded.length, failed: false })
    }

    fn folded(&self) -> MutexGuard<'_, Folded<S>> {
        self.folded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a journal, and changes nothing. Returns the state, and the number of bytes after the last complete
/// line.
pub(super) fn read_only<S: Fold>(path: &Path) -> Result<(S, u64), JournalError> {
    // An auditor may read a copy, and not write to it.
    let mut folded = Folded { is_writable: false, ..Folded::new() };
    folded.catch_up(path)?;
    let torn = folded.torn(path)?;
    Ok((folded.state, torn))
}

impl<S: Fold> Folded<S> {
    fn new() -> Self {
        Self {
            file: None,
            files: 0,
            length: 0,
            lines: 0,
            state: S::default(),
            failed: false,
            is_writable: true,
            compact_from: 0,
        }
    }

    /// Folds the complete lines that are in the file and not yet in the state. If the file was
    /// replaced or is shorter, the state follows it.
    fn catch_up(&mut self, path: &Path) -> Result<(), JournalError> {
        let current = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.file.is_none() => {
                return Ok(());
            }
            found => found.map_err(JournalError::io("read", path))?,
        };
        let known = self.file.as_ref().is_some_and(|(_, held)| *held == identity(&current));
        if known && current.len() == self.length {
            return Ok(());
        }
        if known && current.len() > self.length {
            return self.fold(path);
        }
        // Any other kind has no length, and would be an empty state.
        let file = match self.is_writable {
            true => private_file(path, false).and_then(check_regular),
            false => open_regular_file(path),
        };
        let file = file.map_err(JournalError::io("open", path))?;
        let opened = file.metadata().map_err(JournalError::io("read", path))?;
        let mut other = Self {
            file: Some((file, identity(&opened))),
            files: self.files + 1,
            length: 0,
            lines: 0,
            state: S::default(),
            failed: self.failed,
            is_writable: self.is_writable,
            compact_from: 0,
        };
        other.fold(path)?;
        *self = other;
        Ok(())
    }

    /// Folds the complete lines after those that are folded.
    fn fold(&mut self, path: &Path) -> Result<(), JournalError> {
        let failed = || JournalError::io("read", path);
        let Some((mut file, _)) = self.file.as_ref().map(|(file, held)| (file, held)) else {
            return Ok(());
        };
        let length = file.metadata().map_err(failed())?.len();
        if length <= self.length {
            return Ok(());
        }
        file.seek(SeekFrom::Start(self.length)).map_err(failed())?;
        let mut reader = BufReader::new(file.take(length - self.length));
        let mut text = Vec::new();
        loop {
            text.clear();
            let read = reader.read_until(b'\n', &mut text);
            let read = read.map_err(failed())? as u64;
            if text.pop() != Some(b'\n') {
                return Ok(());
            }
            let line = serde_json::from_slice(&text).map_err(|source| JournalError::Line {
                path: path.to_owned(),
                line: self.lines + 1,
                source,
            })?;
            self.state.apply(line);
            self.length += read;
            self.lines += 1;
        }
    }

    /// Truncates the file after its last complete line. The lock must be held: without it another
    /// process may be in the middle of that line.
    fn cut_torn_line(&self, path: &Path) -> Result<(), JournalError> {
        let Some((file, _)) = &self.file else { return Ok(()) };
        if self.torn(path)? > 0 {
            file.set_len(self.length).map_err(JournalError::io("write", path))?;
        }
        Ok(())
    }

    /// Returns the number of bytes after the last complete line.
    fn torn(&self, path: &Path) -> Result<u64, JournalError> {
        let Some((file, _)) = &self.file else { return Ok(0) };
        let length = file.metadata().map_err(JournalError::io("read", path))?.len();
        Ok(length.saturating_sub(self.length))
    }

    fn append(&mut self, path: &Path, line: S::Line) -> Result<(), JournalError> {
        let mut text = serde_json::to_vec(&line).expect("names and numbers can be written as JSON");
        text.push(b'\n');
        let mut file = match &self.file {
            Some((file, _)) => file,
            None => {
                let file = create(path)?;
                let created = file.metadata().map_err(JournalError::io("read", path))?;
                self.files += 1;
                &self.file.insert((file, identity(&created))).0
            }
        };
        // Every writer holds the lock, so this is the end of the file.
        let seek = file.seek(SeekFrom::Start(self.length));
        if let Err(source) = seek.and_then(|_| file.write_all(&text)) {
            // The rest of a partly written line is cut now, or by the next writer.
            drop(file.set_len(self.length));
            return Err(JournalError::io("write", path)(source));
        }
        self.state.apply(line);
        self.length += text.len() as u64;
        self.lines += 1;
        Ok(())
    }

    /// Replaces the file by one without superfluous lines, if these are many. The lock must be held.
    /// A failure is logged, and the file stays as it is.
    fn compact_if_due(&mut self, path: &Path) {
        let superfluous = self.state.superfluous();
        let is_due = superfluous >= COMPACT_FROM && superfluous >= self.lines / 2;
        if !is_due || self.lines < self.compact_from {
            return;
        }
        if let Err(error) = self.compact(path) {
            self.compact_from = self.lines + COMPACT_FROM;
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            error!(code = "trust_journal_failed", %error, cause, "cannot compact a journal of the registry, it grows");
        }
    }

    fn compact(&mut self, path: &Path) -> Result<(), JournalError> {
        let file = File::open(path).map_err(JournalError::io("read", path))?;
        let mut content = Vec::new();
        let lines = BufReader::new(file.take(self.length)).split(b'\n');
        for (number, text) in (1..).zip(lines) {
            let text = text.map_err(JournalError::io("read", path))?;
            let line = serde_json::from_slice(&text).map_err(|source| JournalError::Line {
                path: path.to_owned(),
                line: number,
                source,
            })?;
            if let Some(line) = self.state.remainder(line) {
                serde_json::to_writer(&mut content, &line)
                    .expect("names and numbers can be written as JSON");
                content.push(b'\n');
            }
        }
        replace_file(path, &content)?;
        self.catch_up(path)
    }

    fn log_once(&mut self, error: &JournalError) {
        if !self.failed {
            self.failed = true;
            let cause = std::error::Error::source(error).map(ToString::to_string);
            error!(code = "trust_journal_failed", %error, cause, "cannot read a journal of the registry, using the state known so far");
        }
    }
}

/// Creates a directory with access for the owner only, and its parents, durably.
pub(super) fn create_directory(directory: &Path) -> Result<(), JournalError> {
    let is_missing = |path: &&Path| {
        !path.as_os_str().is_empty()
            && fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    let created: Vec<_> = directory.ancestors().take_while(is_missing).collect();
    let sync_parent = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_directory(Path::new(".")),
        parent => parent.map_or(Ok(()), sync_directory),
    };
    create_private(directory)
        .and_then(|()| created.iter().try_for_each(|path| sync_parent(path)))
        .map_err(JournalError::io("create", directory))
}

/// Creates the file of a journal, durably.
fn create(path: &Path) -> Result<File, JournalError> {
    let created = private_file(path, true).and_then(|file| {
        path.parent().map_or(Ok(()), sync_directory)?;
        Ok(file)
    });
    created.map_err(JournalError::io("create", path))
}

/// Replaces a file so that after a crash it has either its old or its new content. Only the owner
/// may read it.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<(), JournalError> {
    let temporary = path.with_extension("new");
    let written = || {
        // A file that a crash left behind might be readable by others.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = private_file(&temporary, true)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), sync_directory)
    };
    written().map_err(JournalError::io("write", path))
}

#[cfg(test)]
mod tests;
