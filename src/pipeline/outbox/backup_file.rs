//! The file `checkpoints.bak`: a copy of the acknowledged checkpoints beside the outbox.
//!
//! When the store is lost or damaged, files are read again from their acknowledged offsets, not from
//! the beginning. Rows are first written to `checkpoints.bak.new`, and become part of the copy once
//! all entries that they cover are acknowledged. The copy is therefore never ahead of a receiver. It
//! lags by a minute, or as long as the slowest sink does; the records in between are sent again in
//! the new epoch.
//!
//! The file is JSON lines: the epoch first, then rows of generations. If a generation has several
//! rows, the last one is valid. Changes are appended, and the file is rewritten when its size has
//! doubled.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    platform::{file, secure_file},
    tail::{self, GenerationId},
};

/// Maximum size of the file: a row takes less than 1 KiB, and there is one for each session file.
const MAX_BYTES: u64 = 4 << 30;
/// Maximum length of a line that is read.
const MAX_LINE: u64 = 1 << 20;

/// Source instance and generation.
pub(super) type GenerationKey = (String, GenerationId);

/// Least number of bytes that are appended before the file is rewritten.
const MIN_APPENDED: u64 = 1 << 20;

/// The backup file, and the changes since it was last written.
pub(super) struct BackupFile {
    path: PathBuf,
    /// Generations whose rows have changed; `None` when unknown, so that all rows must be written.
    changed: Option<BTreeSet<GenerationKey>>,
    prepared: Option<PreparedRows>,
    size: u64,
    rewrite_at: u64,
    /// Lines about generations that started since all rows were prepared.
    started: Vec<u8>,
    is_unsynced: bool,
}

/// Rows in `checkpoints.bak.new` that wait for the acknowledgement of the entries before them.
struct PreparedRows {
    seq: u64,
    is_all: bool,
}

/// Content of a backup file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BackupContents {
    /// Epoch in which the backup was made.
    pub(super) epoch: String,
    /// Acknowledged rows.
    pub(super) rows: BTreeMap<GenerationKey, Vec<u8>>,
    /// Starting rows of generations without an acknowledged row, the latest first: if two started
    /// in one file, the latest one is the current one.
    pub(super) started: Vec<(GenerationKey, Vec<u8>)>,
}

#[derive(Serialize, Deserialize)]
struct BackupHeader {
    epoch: String,
}

#[derive(Serialize, Deserialize)]
struct BackupLine {
    source: String,
    generation: GenerationId,
    /// The row in base64; `None` deletes it.
    #[serde(default)]
    row: Option<String>,
    /// Row with which the generation started, in base64. An acknowledged row takes precedence.
    #[serde(default, rename = "begun", skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    /// XXH3 of the decoded row; older agents wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    check: Option<u64>,
}

impl BackupFile {
    /// The backup file beside the outbox at `outbox`.
    pub(super) fn beside(outbox: &Path) -> Self {
        let path = outbox.with_file_name("checkpoints.bak");
        Self {
            path,
            changed: None,
            prepared: None,
            size: 0,
            rewrite_at: 0,
            started: Vec::new(),
            is_unsynced: false,
        }
    }

    /// Records that rows have changed.
    pub(super) fn mark_changed<'a>(&mut self, keys: impl Iterator<Item = &'a GenerationKey>) {
        if let Some(changed) = &mut self.changed {
            changed.extend(keys.cloned());
        }
    }

    /// Appends a line for each generation that started. Until one of its rows is acknowledged, the
    /// loss of the store would lose its id, and a receiver could not recognise records that are
    /// sent again. The lines are synced with the next backup: lines that a power cut removes from
    /// this file are usually still in the store.
    pub(super) fn record_started(&mut self, epoch: &str, started: &[(&GenerationKey, &Vec<u8>)]) {
        let mut lines = Vec::new();
        for ((source, generation), row) in started {
            let Some(row) = tail::starting_row(row) else { continue };
            lines.extend_from_slice(&line(&BackupLine {
                source: source.clone(),
                generation: generation.clone(),
                row: None,
                started: Some(BASE64.encode(&row)),
                check: Some(xxh3_64(&row)),
            }));
        }
        if lines.is_empty() {
            return;
        }
        if self.prepared.as_ref().is_some_and(|prepared| prepared.is_all) {
            self.started.extend_from_slice(&lines);
        }
        match self.append(epoch, &lines) {
            Ok(()) => {
                self.size += lines.len() as u64;
                self.is_unsynced = true;
            }
            Err(error) => tracing::warn!(
                code = "generation_note_failed",
                %error,
                "cannot add a new generation to checkpoints.bak"
            ),
        }
    }

    fn append(&self, epoch: &str, lines: &[u8]) -> io::Result<()> {
        let mut file = secure_file::open(secure_file::options().append(true), &self.path)?;
        if file.metadata()?.len() == 0 {
            file.write_all(&line(&BackupHeader { epoch: epoch.to_owned() }))?;
        }
        file.write_all(lines)
    }

    /// Syncs the lines of [`BackupFile::record_started`].
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.is_unsynced {
            secure_file::open(File::options().append(true), &self.path)?.sync_data()?;
            self.is_unsynced = false;
        }
        Ok(())
    }

    /// Requires all rows to be written, because another epoch has started.
    pub(super) fn invalidate(&mut self) {
        (self.changed, self.prepared) = (None, None);
    }

    /// Returns true if rows have to be written.
    pub(super) fn is_due(&self) -> bool {
        self.changed.as_ref().is_none_or(|changed| !changed.is_empty())
    }

    /// Returns true if all rows have to be written, not only changed ones.
    pub(super) fn needs_all_rows(&self) -> bool {
        self.changed.is_none() || self.size > self.rewrite_at
    }

    /// Generations whose rows have changed.
    pub(super) fn changed(&self) -> impl Iterator<Item = &GenerationKey> {
        self.changed.iter().flatten()
    }

    /// Sequence number that every sink must have acknowledged before the prepared rows are valid.
    pub(super) fn prepared(&self) -> Option<u64> {
        self.prepared.as_ref().map(|prepared| prepared.seq)
    }

    /// Writes rows as of entry `seq` to `checkpoints.bak.new`: all of them, or those that have
    /// changed. [`BackupFile::publish`] makes them valid.
    pub(super) fn prepare<E: From<io::Error>>(
        &mut self,
        epoch: &str,
        seq: u64,
        rows: impl Iterator<Item = Result<(GenerationKey, Option<Vec<u8>>), E>>,
    ) -> Result<(), E> {
        let is_all = self.needs_all_rows();
        self.started.clear();
        // If this fails half-way, the next attempt writes all rows.
        self.invalidate();
        // An error of this file, of any kind, is not damage of the store.
        let own = |error: io::Error| E::from(io::Error::other(error));
        let path = self.prepared_path();
        let file = secure_file::open(secure_file::options().truncate(true), &path).map_err(own)?;
        let mut file = BufWriter::new(file);
        if is_all {
            file.write_all(&line(&BackupHeader { epoch: epoch.to_owned() })).map_err(own)?;
        }
        for row in rows {
            let (key, row) = row?;
            file.write_all(&row_line(key, row)).map_err(own)?;
        }
        file.flush().map_err(own)?;
        self.prepared = Some(PreparedRows { seq, is_all });
        self.changed = Some(BTreeSet::new());
        Ok(())
    }

    /// Makes the prepared rows valid, now that the entries before them are acknowledged: they
    /// replace the file, or are appended to it.
    pub(super) fn publish(&mut self) -> io::Result<()> {
        let Some(PreparedRows { is_all, .. }) = self.prepared.take() else { return Ok(()) };
        let changed = self.changed.take();
        let prepared = self.prepared_path();
        if is_all {
            let mut file = secure_file::open(File::options().append(true), &prepared)?;
            file.write_all(&std::mem::take(&mut self.started))?;
            file.sync_all()?;
            self.size = file.metadata()?.len();
            self.rewrite_at = 2 * self.size + MIN_APPENDED;
            fs::rename(&prepared, &self.path)?;
        } else {
            let mut file = secure_file::open(File::options().append(true), &self.path)?;
            self.size += io::copy(
                &mut secure_file::open(File::options().read(true), &prepared)?,
                &mut file,
            )?;
            file.sync_data()?;
            fs::remove_file(&prepared)?;
        }
        self.changed = changed;
        Ok(())
    }

    fn prepared_path(&self) -> PathBuf {
        self.path.with_extension("bak.new")
    }

    /// Reads the file; `None` when it does not exist. Torn and invalid lines are skipped: their
    /// files are read again from an earlier offset.
    pub(super) fn load(&self) -> io::Result<Option<BackupContents>> {
        let file = match secure_file::open(File::options().read(true), &self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if file.metadata()?.len() > MAX_BYTES {
            return Err(file::too_large(MAX_BYTES));
        }
        let mut lines = lines(BufReader::new(file.take(MAX_BYTES)));
        let header = lines.next().transpose()?.and_then(|line| serde_json::from_slice(&line).ok());
        let Some(BackupHeader { epoch }) = header else { return Ok(None) };
        let mut contents = BackupContents { epoch, ..BackupContents::default() };
        let mut all_started = BTreeMap::new();
        for (index, line) in lines.enumerate() {
            let Ok(line) = serde_json::from_slice(&line?) else { continue };
            let BackupLine { source, generation, row, started, check } = line;
            let key = (source, generation);
            let (is_start, text) = (started.is_some(), started.or(row));
            let Some(text) = text else {
                contents.rows.remove(&key);
                all_started.remove(&key);
                continue;
            };
            let row = BASE64.decode(text.as_bytes()).ok();
            let is_intact = |row: &Vec<u8>| check.is_none_or(|check| check == xxh3_64(row));
            let Some(row) = row.filter(is_intact) else { continue };
            if is_start {
                all_started.insert(key, (index, row));
            } else {
                all_started.remove(&key);
                contents.rows.insert(key, row);
            }
        }
        let mut started: Vec<_> = all_started.into_iter().collect();
        started.sort_unstable_by_key(|(_, (index, _))| Reverse(*index));
        contents.started = started.into_iter().map(|(key, (_, row))| (key, row)).collect();
        Ok(Some(contents))
    }
}

/// Returns the lines of a file, each in memory alone. One that is too long is cut into several, which are
/// invalid.
fn lines(mut file: impl BufRead) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        match file.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(Ok(line)),
            Err(error) => Some(Err(error)),
        }
    })
}

fn row_line((source, generation): GenerationKey, row: Option<Vec<u8>>) -> Vec<u8> {
    let check = row.as_deref().map(xxh3_64);
    let row = row.map(|row| BASE64.encode(&row));
    line(&BackupLine { source, generation, row, started: None, check })
}

fn line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("rows can be written as JSON");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> GenerationKey {
        ("claude-sessions".to_owned(), GenerationId(name.to_owned()))
    }

    /// The agent waited for a writer when it started.
    #[cfg(unix)]
    #[test]
    fn fifo_in_place_of_the_copy_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let mut backup = BackupFile::beside(&folder.path().join("outbox.redb"));
        for path in [backup.path.clone(), backup.path.with_extension("quarantine")] {
            let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
            assert!(made.success());
            secure_file::read_bytes(&path, 1 << 20).unwrap_err();
        }
        backup.load().unwrap_err();
        backup.is_unsynced = true;
        backup.sync().unwrap_err();
    }

    /// All of the file was read into memory.
    #[test]
    fn copy_of_holes_is_refused_or_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let backup = BackupFile::beside(&folder.path().join("outbox.redb"));
        let file = File::create(&backup.path).unwrap();
        file.set_len(1 << 40).unwrap();
        assert_eq!(backup.load().unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        file.set_len(0).unwrap();
        (&file).write_all(b"{\"epoch\":\"e\"}\n").unwrap();
        file.set_len(3 * MAX_LINE).unwrap();
        let mut lines = lines(BufReader::new(File::open(&backup.path).unwrap()));
        assert!(lines.all(|line| line.unwrap().len() as u64 <= MAX_LINE));
        let loaded = backup.load().unwrap().unwrap();
        assert_eq!((loaded.epoch.as_str(), loaded.rows.len()), ("e", 0));
    }

    #[test]
    fn load_uses_the_last_row_and_skips_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut backup = BackupFile::beside(&folder.path().join("outbox.redb"));
        assert_eq!(backup.load().unwrap(), None);
        assert!(backup.is_due() && backup.needs_all_rows());
        let rows = |rows: [(&str, Option<&str>); 2]| {
            rows.map(|(name, row)| Ok::<_, io::Error>((key(name), row.map(|row| row.into()))))
        };
        let all = rows([("a", Some("1")), ("b", Some("2"))]);
        backup.prepare("e", 7, all.into_iter()).unwrap();
        assert_eq!((backup.load().unwrap(), backup.prepared()), (None, Some(7)));
        backup.publish().unwrap();
        assert!(!backup.is_due());
        backup.mark_changed([key("a"), key("b")].iter());
        assert!(backup.is_due() && !backup.needs_all_rows());
        backup.prepare("e", 9, rows([("a", Some("3")), ("b", None)]).into_iter()).unwrap();
        assert_eq!(backup.load().unwrap().unwrap().rows.len(), 2);
        backup.publish().unwrap();
        let expected = BackupContents {
            epoch: "e".into(),
            rows: [(key("a"), b"3".to_vec())].into(),
            ..BackupContents::default()
        };
        assert_eq!(backup.load().unwrap(), Some(expected));

        let path = folder.path().join("checkpoints.bak");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        assert_eq!(backup.load().unwrap().unwrap().rows.len(), 2);
        fs::write(&path, "garbage").unwrap();
        assert_eq!(backup.load().unwrap(), None);
    }

    /// Regression: a file was rewritten before any of its entries was acknowledged, and the first
    /// generation was taken for the current one.
    #[test]
    fn started_generations_are_listed_latest_first() {
        let folder = tempfile::tempdir().unwrap();
        let mut backup = BackupFile::beside(&folder.path().join("outbox.redb"));
        let row = br#"{"path":"/p/a","offset":3,"first":{"len":3,"hash":1}}"#.to_vec();
        for names in [["x", "y"], ["b", "a"]] {
            for name in names {
                backup.record_started("e", &[(&key(name), &row)]);
            }
        }
        let started = backup.load().unwrap().unwrap().started;
        let names: Vec<_> = started.iter().map(|((_, name), _)| name.0.as_str()).collect();
        assert_eq!(names, ["a", "b", "y", "x"]);
    }
}
