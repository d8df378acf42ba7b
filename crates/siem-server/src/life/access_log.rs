//! Log of who read or erased what, and why.
//!
//! Each line names the SHA-256 of the line before, so that a line cannot be changed or removed
//! without changing all after it. The hash of the last line is in a file of its own, which a change of
//! that line leaves behind. Who changes both files leaves no trace here: the receiver logs each hash, see
//! [`AccessWatch`](super::AccessWatch).

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use siem_protocol::Digest;

use super::{directory, lock, private, replace};
use crate::{clock, regular_file::read_whole_file};

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

/// A line of the log, and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessLine {
    /// What the line says.
    #[serde(flatten)]
    pub entry: AccessEntry,
    /// SHA-256 of the line without its newline.
    pub sha256: Digest,
}

/// What was written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AccessHead {
    /// Number of lines.
    pub(super) lines: u64,
    /// SHA-256 of the last one.
    pub(super) sha256: Digest,
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
    /// Its last lines were changed or removed.
    #[error(
        "the last lines of `{path}` were changed or removed: {lines} were written, the last one with \
         the SHA-256 {sha256}"
    )]
    Cut {
        /// The file.
        path: PathBuf,
        /// Number of lines that were written.
        lines: u64,
        /// SHA-256 of the last one.
        sha256: Digest,
    },
}

/// The access log of a data directory.
#[derive(Clone, Debug)]
pub struct AccessLog {
    data: PathBuf,
    path: PathBuf,
    /// The file with the [`AccessHead`]. In a backup, which copies files by their names, it is not younger
    /// than the lines.
    head: PathBuf,
}

impl AccessLog {
    /// Refers to the log of the data directory `data`, which may have none yet.
    #[must_use]
    pub fn new(data: &Path) -> Self {
        let directory = directory(data);
        let (path, head) = (directory.join("access.ndjson"), directory.join("access-head.json"));
        Self { data: data.to_owned(), path, head }
    }

    /// Path of the file with the lines.
    pub(super) fn path(&self) -> &Path {
        &self.path
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
            let whole = whole(&text);
            let found = head_of(whole);
            // After a change of the last lines the chain stays broken.
            let written = self.read_head()?.filter(|written| !written.is_in(whole));
            let entry = AccessEntry {
                at: clock::text(now),
                who: who.to_owned(),
                action,
                what: what.to_owned(),
                why: why.to_owned(),
                before: written.unwrap_or(found).sha256,
            };
            let mut line = serde_json::to_vec(&entry)?;
            line.push(b'\n');
            let mut options = OpenOptions::new();
            let mut file =
                private(options.write(true).create(true).truncate(false)).open(&self.path)?;
            // A torn line was never confirmed.
            file.set_len(whole.len() as u64)?;
            io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
            file.write_all(&line)?;
            file.sync_all()?;
            let sha256 = Digest::of(line.trim_ascii_end());
            let head = AccessHead { lines: found.lines + 1, sha256 };
            replace(&self.head, &serde_json::to_vec(&head)?)
        };
        write().map_err(|source| AccessLogError::Io { path: self.path.clone(), source })
    }

    /// Returns all lines, the oldest one first, and verifies the chain.
    ///
    /// # Errors
    /// [`AccessLogError`] if the file cannot be read or was altered.
    pub fn verify(&self) -> Result<Vec<AccessLine>, AccessLogError> {
        let path = || self.path.clone();
        let io_error = |source| AccessLogError::Io { path: path(), source };
        // It is written after the line.
        let written = self.read_head().map_err(io_error)?;
        let text = read(&self.path).map_err(io_error)?;
        let mut before = Digest::ZERO;
        let mut found = Vec::new();
        for (number, line) in lines(whole(&text)).enumerate() {
            let entry = serde_json::from_slice(line).ok();
            let Some(entry) = entry.filter(|entry: &AccessEntry| entry.before == before) else {
                return Err(AccessLogError::Broken { path: path(), line: number + 1 });
            };
            before = Digest::of(line);
            found.push(AccessLine { entry, sha256: before });
        }
        match written {
            Some(written) if !written.is_in(whole(&text)) => {
                let AccessHead { lines, sha256 } = written;
                Err(AccessLogError::Cut { path: path(), lines, sha256 })
            }
            _ => Ok(found),
        }
    }

    /// Returns what was written last; `None` by an earlier release.
    fn read_head(&self) -> io::Result<Option<AccessHead>> {
        match read_whole_file(&self.head) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AccessHead {
    /// Reports whether the log has the line.
    fn is_in(&self, log: &[u8]) -> bool {
        let before = usize::try_from(self.lines).unwrap_or(usize::MAX).checked_sub(1);
        let line = before.and_then(|before| lines(log).nth(before));
        line.is_some_and(|line| Digest::of(line) == self.sha256)
    }
}

/// Returns the complete lines. A torn line was never confirmed.
fn whole(text: &[u8]) -> &[u8] {
    &text[..memchr::memrchr(b'\n', text).map_or(0, |at| at + 1)]
}

fn head_of(log: &[u8]) -> AccessHead {
    let sha256 = lines(log).last().map_or(Digest::ZERO, Digest::of);
    AccessHead { lines: lines(log).count() as u64, sha256 }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    match read_whole_file(path) {
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
    use std::fs;

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

    #[test]
    fn change_of_the_last_line_is_noticed_for_good() {
        let whys = ["one", "two", "three"];
        let changes: [fn(&str) -> String; 4] = [
            |text| text.replace("three", "3hree"),
            |text| text.split_inclusive('\n').take(2).collect(),
            |text| text.trim_end_matches('\n').to_owned(),
            |_| String::new(),
        ];
        for change in changes {
            let root = tempfile::tempdir().unwrap();
            let log = AccessLog::new(root.path());
            for why in whys {
                log.append(UNIX_EPOCH, "root", AccessAction::Read, "line", why).unwrap();
            }
            let text = fs::read_to_string(&log.path).unwrap();
            fs::write(&log.path, change(&text)).unwrap();
            assert!(log.verify().is_err());
            log.append(UNIX_EPOCH, "root", AccessAction::Read, "line", "four").unwrap();
            assert!(log.verify().is_err());
            fs::remove_file(&log.path).unwrap();
            assert!(log.verify().is_err());
        }
    }
}
