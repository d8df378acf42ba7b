//! Log of who read or erased what, and why.
//!
//! Each line names the SHA-256 of the line before, so that a line cannot be changed or removed
//! without changing all after it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use siem_protocol::Digest;

use super::{directory, lock, private};
use crate::clock;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessAction {
    /// Content was read.
    Read,
    /// Entries were erased.
    Erase,
    /// An erasure that stayed in force was ended.
    EraseEnd,
    /// Everything was copied.
    Backup,
    /// Epochs were removed by the retention.
    Retention,
    /// A hold was added.
    HoldAdd,
    /// A hold was removed.
    HoldRemove,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessEntry {
    /// Time, RFC 3339.
    pub at: String,
    /// User of the system who ran the command.
    pub who: String,
    /// What was done.
    pub action: AccessAction,
    /// To which data.
    pub what: String,
    /// The reason given.
    pub why: String,
    /// SHA-256 of the line before; zeros in the first line.
    pub before: Digest,
}

/// Error of the log.
#[derive(Debug, thiserror::Error)]
pub enum AccessLogError {
    /// The file cannot be read or written.
    #[error("cannot read or write `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A line was changed or removed.
    #[error("line {line} of `{path}` does not continue the one before: the log was altered")]
    Broken {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
    },
}

/// The access log of a data directory.
#[derive(Clone, Debug)]
pub struct AccessLog {
    data: PathBuf,
    path: PathBuf,
}

impl AccessLog {
    /// Refers to the log of the data directory `data`, which may have none yet.
    #[must_use]
    pub fn new(data: &Path) -> Self {
        Self { data: data.to_owned(), path: directory(data).join("access.ndjson") }
    }

    /// Appends a line, which is durable then.
    ///
    /// # Errors
    /// [`AccessLogError::Io`]: what was to be logged must not be done.
    pub fn append(
        &self,
        now: SystemTime,
        who: &str,
        action: AccessAction,
        what: &str,
        why: &str,
    ) -> Result<(), AccessLogError> {
        let write = || -> io::Result<()> {
            let _held = lock(&self.data)?;
            let text = read(&self.path)?;
            let whole = memchr::memrchr(b'\n', &text).map_or(0, |at| at + 1);
            let entry = AccessEntry {
                at: clock::text(now),
                who: who.to_owned(),
                action,
                what: what.to_owned(),
                why: why.to_owned(),
                before: lines(&text[..whole]).last().map_or(Digest::ZERO, Digest::of),
            };
            let mut line = serde_json::to_vec(&entry)?;
            line.push(b'\n');
            let mut options = OpenOptions::new();
            let mut file =
                private(options.write(true).create(true).truncate(false)).open(&self.path)?;
            // A torn line was never confirmed.
            file.set_len(whole as u64)?;
            io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
            file.write_all(&line)?;
            file.sync_all()
        };
        write().map_err(|source| AccessLogError::Io { path: self.path.clone(), source })
    }

    /// Returns all lines, the oldest one first, and verifies the chain.
    ///
    /// # Errors
    /// [`AccessLogError`] if the file cannot be read or was altered.
    pub fn verify(&self) -> Result<Vec<AccessEntry>, AccessLogError> {
        let io_error = |source| AccessLogError::Io { path: self.path.clone(), source };
        let text = read(&self.path).map_err(io_error)?;
        let mut before = Digest::ZERO;
        let mut entries = Vec::new();
        // A torn line was never confirmed.
        let whole = memchr::memrchr(b'\n', &text).map_or(0, |at| at + 1);
        for (number, line) in lines(&text[..whole]).enumerate() {
            let entry = serde_json::from_slice(line).ok();
            let Some(entry) = entry.filter(|entry: &AccessEntry| entry.before == before) else {
                return Err(AccessLogError::Broken { path: self.path.clone(), line: number + 1 });
            };
            entries.push(entry);
            before = Digest::of(line);
        }
        Ok(entries)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        text => text,
    }
}

/// Lines without their newlines.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn changed_or_removed_line_breaks_the_chain() {
        let root = tempfile::tempdir().unwrap();
        let log = AccessLog::new(root.path());
        assert_eq!(log.verify().unwrap(), []);
        for why in ["one", "two", "three"] {
            log.append(UNIX_EPOCH, "root", AccessAction::Read, "line", why).unwrap();
        }
        assert_eq!(log.verify().unwrap().len(), 3);
        let text = fs::read_to_string(&log.path).unwrap();
        fs::write(&log.path, text.replace("two", "2wo")).unwrap();
        assert!(matches!(log.verify(), Err(AccessLogError::Broken { line: 3, .. })));
        let without: Vec<_> = text.split_inclusive('\n').filter(|it| !it.contains("two")).collect();
        fs::write(&log.path, without.concat()).unwrap();
        assert!(matches!(log.verify(), Err(AccessLogError::Broken { line: 2, .. })));
        // A crash left a part of a line.
        fs::write(&log.path, text + "{\"at\"").unwrap();
        assert_eq!(log.verify().unwrap().len(), 3);
        log.append(UNIX_EPOCH, "root", AccessAction::Read, "line", "four").unwrap();
        assert_eq!(log.verify().unwrap().len(), 4);
    }
}
