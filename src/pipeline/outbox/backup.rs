//! A copy of the acknowledged offsets, beside the outbox: `checkpoints.bak`.
//!
//! When the store is lost or damaged, files are read again from what was acknowledged, not from
//! their beginning. Rows are written beside it, and count once all entries that they cover are
//! acknowledged: the copy is never ahead of a receiver. It may be a minute behind, or as long as a
//! sink is, and then some records are sent again in the new epoch.
//!
//! JSON lines: the epoch first, then a row for each generation; of two lines for one generation
//! the last counts. Changes are appended, and the file is written anew when it has doubled.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::{MutexGuard, PoisonError},
};

use data_encoding::BASE64;
use redb::ReadableTable as _;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    CHECKPOINTS, CURSORS, META, Outbox, OutboxError, State, checkpoints::open_checkpoint, checksum,
    from_json, read_cursors,
};
use crate::{
    platform::secure_file,
    tail::{self, GenerationId},
};

/// Which generation of which source.
pub(super) type Key = (String, GenerationId);

/// How much may be appended at least before the file is written anew.
const SLACK: u64 = 1 << 20;

/// The file, and what has changed since it was written.
pub(super) struct Backup {
    path: PathBuf,
    /// `None`: nobody knows, all of it has to be written.
    changed: Option<BTreeSet<Key>>,
    pending: Option<PreparedRows>,
    size: u64,
    compact_at: u64,
    /// Lines of generations that began since all rows were written beside the file.
    begun: Vec<u8>,
    /// Whether some lines were written and not synced.
    is_unsynced: bool,
}

/// Rows that lie beside the file until the entries before them are acknowledged.
struct PreparedRows {
    seq: u64,
    is_all: bool,
}

/// What a backup holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BackupContents {
    /// The epoch that it was made in.
    pub(super) epoch: String,
    /// The rows.
    pub(super) rows: BTreeMap<Key, Vec<u8>>,
    /// The beginnings of generations of which nothing is known to be acknowledged, the last first:
    /// of two in one file it is the one that lies there.
    pub(super) begun: Vec<(Key, Vec<u8>)>,
}

#[derive(Serialize, Deserialize)]
struct BackupHeader {
    epoch: String,
}

#[derive(Serialize, Deserialize)]
struct BackupLine {
    source: String,
    generation: GenerationId,
    /// In base64; `None` takes the row away.
    #[serde(default)]
    row: Option<String>,
    /// In base64: the row with which the generation began. One that is acknowledged counts more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    begun: Option<String>,
    /// XXH3 of the bytes of the row; older agents wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    check: Option<u64>,
}

impl Backup {
    /// The backup beside the outbox at `outbox`.
    pub(super) fn beside(outbox: &Path) -> Self {
        let path = outbox.with_file_name("checkpoints.bak");
        Self {
            path,
            changed: None,
            pending: None,
            size: 0,
            compact_at: 0,
            begun: Vec::new(),
            is_unsynced: false,
        }
    }

    /// Notes that rows have changed.
    pub(super) fn note<'a>(&mut self, keys: impl Iterator<Item = &'a Key>) {
        if let Some(changed) = &mut self.changed {
            changed.extend(keys.cloned());
        }
    }

    /// Notes generations that began, at once: until a row of theirs is acknowledged, a store that
    /// is lost would take their ids with it, and a receiver could not tell that what is read again
    /// came before. Synced with the next copy: what is lost with the power is mostly still in the
    /// store itself.
    pub(super) fn begin(&mut self, epoch: &str, begun: &[(&Key, &Vec<u8>)]) {
        let mut lines = Vec::new();
        for ((source, generation), row) in begun {
            let Some(row) = tail::beginning(row) else { continue };
            lines.extend_from_slice(&line(&BackupLine {
                source: source.clone(),
                generation: generation.clone(),
                row: None,
                begun: Some(BASE64.encode(&row)),
                check: Some(xxh3_64(&row)),
            }));
        }
        if lines.is_empty() {
            return;
        }
        if self.pending.as_ref().is_some_and(|pending| pending.is_all) {
            self.begun.extend_from_slice(&lines);
        }
        let written = secure_file::options().append(true).open(&self.path).and_then(|mut file| {
            if file.metadata()?.len() == 0 {
                file.write_all(&line(&BackupHeader { epoch: epoch.to_owned() }))?;
            }
            file.write_all(&lines)
        });
        match written {
            Ok(()) => {
                self.size += lines.len() as u64;
                self.is_unsynced = true;
            }
            Err(error) => {
                tracing::warn!(code = "generation_note_failed", %error, "a generation that began could not be noted")
            }
        }
    }

    /// Syncs the lines of generations that began.
    fn sync(&mut self) -> io::Result<()> {
        if self.is_unsynced {
            File::options().append(true).open(&self.path)?.sync_data()?;
            self.is_unsynced = false;
        }
        Ok(())
    }

    /// Forgets what is known of the file: another epoch began.
    pub(super) fn forget(&mut self) {
        (self.changed, self.pending) = (None, None);
    }

    /// Whether anything is to be written.
    pub(super) fn is_due(&self) -> bool {
        self.changed.as_ref().is_none_or(|changed| !changed.is_empty())
    }

    /// Whether all rows are to be written.
    pub(super) fn wants_all(&self) -> bool {
        self.changed.is_none() || self.size > self.compact_at
    }

    /// The rows to append, when not all are to be written.
    pub(super) fn changed(&self) -> impl Iterator<Item = &Key> {
        self.changed.iter().flatten()
    }

    /// The number up to which everything must be acknowledged before what was prepared counts.
    pub(super) fn pending(&self) -> Option<u64> {
        self.pending.as_ref().map(|pending| pending.seq)
    }

    /// Writes rows as they stand after entry `seq`, beside the file: all of them, or those that
    /// have changed. They count once [`Backup::persist_acks`] is called.
    pub(super) fn prepare<E: From<io::Error>>(
        &mut self,
        epoch: &str,
        seq: u64,
        rows: impl Iterator<Item = Result<(Key, Option<Vec<u8>>), E>>,
    ) -> Result<(), E> {
        let is_all = self.wants_all();
        self.begun.clear();
        // Whatever becomes of it, the next time all of it is written.
        self.forget();
        // Trouble with this file is no damage of the store, whatever its kind.
        let ours = |error: io::Error| E::from(io::Error::other(error));
        let file = secure_file::options().truncate(true).open(self.beside_it()).map_err(ours)?;
        let mut file = BufWriter::new(file);
        if is_all {
            file.write_all(&line(&BackupHeader { epoch: epoch.to_owned() })).map_err(ours)?;
        }
        for row in rows {
            let (key, row) = row?;
            file.write_all(&row_line(key, row)).map_err(ours)?;
        }
        file.flush().map_err(ours)?;
        self.pending = Some(PreparedRows { seq, is_all });
        self.changed = Some(BTreeSet::new());
        Ok(())
    }

    /// What was prepared is acknowledged: it is the copy from now on, or a part of it.
    pub(super) fn publish(&mut self) -> io::Result<()> {
        let Some(PreparedRows { is_all, .. }) = self.pending.take() else { return Ok(()) };
        let changed = self.changed.take();
        let prepared = self.beside_it();
        if is_all {
            let mut file = File::options().append(true).open(&prepared)?;
            file.write_all(&std::mem::take(&mut self.begun))?;
            file.sync_all()?;
            self.size = file.metadata()?.len();
            self.compact_at = 2 * self.size + SLACK;
            fs::rename(&prepared, &self.path)?;
        } else {
            let mut file = File::options().append(true).open(&self.path)?;
            self.size += io::copy(&mut File::open(&prepared)?, &mut file)?;
            file.sync_data()?;
            fs::remove_file(&prepared)?;
        }
        self.changed = changed;
        Ok(())
    }

    fn beside_it(&self) -> PathBuf {
        self.path.with_extension("bak.new")
    }

    /// Reads the file; `None` when there is none. A torn or wrong line is left out: its file is
    /// read again from an earlier offset.
    pub(super) fn load(&self) -> io::Result<Option<BackupContents>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut lines = text.split(|byte| *byte == b'\n');
        let first = lines.next().and_then(|line| serde_json::from_slice::<BackupHeader>(line).ok());
        let Some(BackupHeader { epoch }) = first else { return Ok(None) };
        let mut saved = BackupContents { epoch, ..BackupContents::default() };
        let mut all_begun = BTreeMap::new();
        let lines = lines.filter_map(|line| serde_json::from_slice(line).ok());
        for (place, BackupLine { source, generation, row, begun, check }) in lines.enumerate() {
            let key = (source, generation);
            let (is_begun, text) = (begun.is_some(), begun.or(row));
            let Some(text) = text else {
                saved.rows.remove(&key);
                all_begun.remove(&key);
                continue;
            };
            let row = BASE64.decode(text.as_bytes()).ok();
            let is_whole = |row: &Vec<u8>| check.is_none_or(|check| check == xxh3_64(row));
            let Some(row) = row.filter(is_whole) else { continue };
            if is_begun {
                all_begun.insert(key, (place, row));
            } else {
                all_begun.remove(&key);
                saved.rows.insert(key, row);
            }
        }
        let mut begun: Vec<_> = all_begun.into_iter().collect();
        begun.sort_unstable_by_key(|(_, (place, _))| Reverse(*place));
        saved.begun = begun.into_iter().map(|(key, (_, row))| (key, row)).collect();
        Ok(Some(saved))
    }
}

impl Outbox {
    /// Copies the offsets that are acknowledged to `checkpoints.bak`, as far as they have changed.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or the copy cannot be written; the next call
    /// tries again.
    pub fn back_up(&self) -> Result<(), OutboxError> {
        // What a damaged store says must not take the place of what a good one said.
        if *self.damage.borrow() {
            return Ok(());
        }
        let mut backup = self.backup();
        if let Err(error) = backup.sync() {
            tracing::warn!(code = "generation_sync_failed", %error, "generations that began could not be synced");
        }
        if backup.pending().is_none() && !backup.is_due() {
            return Ok(());
        }
        self.read("copy the offsets of", |transaction| {
            // All of one moment: the offsets, and what is acknowledged.
            let Some((state, _)) = checksum::state(&transaction.open_table(META)?)? else {
                return Ok(());
            };
            let Some(state) = from_json::<State>(&state) else { return Ok(()) };
            let cursors = read_cursors(&transaction.open_table(CURSORS)?)?;
            let slowest = cursors.iter().map(|(_, cursor)| cursor.acknowledged.seq);
            let slowest = slowest.fold(state.next_seq - 1, u64::min);
            match backup.pending() {
                Some(seq) if seq > slowest => return Ok(()),
                Some(_) => backup.publish().map_err(io::Error::other)?,
                None => {}
            }
            if !backup.is_due() {
                return Ok(());
            }
            let checkpoints = transaction.open_table(CHECKPOINTS)?;
            let (epoch, seq) = (&state.epoch, state.next_seq - 1);
            if backup.wants_all() {
                let rows = checkpoints.iter()?.map(|row| {
                    let (key, row) = row?;
                    let row = open_checkpoint(key.value(), row.value())?;
                    let (source, generation) = key.value();
                    let key = (source.to_owned(), GenerationId(generation.to_owned()));
                    Ok((key, Some(row)))
                });
                backup.prepare::<redb::Error>(epoch, seq, rows)?;
            } else {
                let changed: Vec<_> = backup.changed().cloned().collect();
                let rows = changed.into_iter().map(|key| {
                    let at = (key.0.as_str(), key.1.0.as_str());
                    let row = checkpoints.get(at)?;
                    let row = row.map(|row| open_checkpoint(at, row.value())).transpose()?;
                    Ok((key, row))
                });
                backup.prepare::<redb::Error>(epoch, seq, rows)?;
            }
            if seq <= slowest {
                backup.publish().map_err(io::Error::other)?;
            }
            Ok(())
        })
    }

    pub(super) fn backup(&self) -> MutexGuard<'_, Backup> {
        self.backup.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn row_line((source, generation): Key, row: Option<Vec<u8>>) -> Vec<u8> {
    let check = row.as_deref().map(xxh3_64);
    line(&BackupLine {
        source,
        generation,
        row: row.map(|row| BASE64.encode(&row)),
        begun: None,
        check,
    })
}

fn line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("rows can be written as JSON");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        ("claude-sessions".to_owned(), GenerationId(name.to_owned()))
    }

    #[test]
    fn the_last_row_of_a_generation_counts_and_a_torn_line_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut backup = Backup::beside(&folder.path().join("outbox.redb"));
        assert_eq!(backup.load().unwrap(), None);
        assert!(backup.is_due() && backup.wants_all());
        let rows = |rows: [(&str, Option<&str>); 2]| {
            rows.map(|(name, row)| Ok::<_, io::Error>((key(name), row.map(|row| row.into()))))
        };
        let all = rows([("a", Some("1")), ("b", Some("2"))]);
        backup.prepare("e", 7, all.into_iter()).unwrap();
        assert_eq!((backup.load().unwrap(), backup.pending()), (None, Some(7)));
        backup.publish().unwrap();
        assert!(!backup.is_due());
        backup.note([key("a"), key("b")].iter());
        assert!(backup.is_due() && !backup.wants_all());
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

    /// A file was rewritten before anything of it was acknowledged: its first generation was taken
    /// for the one that lies there.
    #[test]
    fn of_two_generations_that_began_in_a_file_the_last_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let mut backup = Backup::beside(&folder.path().join("outbox.redb"));
        let row = br#"{"path":"/p/a","offset":3,"first":{"len":3,"hash":1}}"#.to_vec();
        for names in [["x", "y"], ["b", "a"]] {
            for name in names {
                backup.begin("e", &[(&key(name), &row)]);
            }
        }
        let begun = backup.load().unwrap().unwrap().begun;
        let names: Vec<_> = begun.iter().map(|((_, name), _)| name.0.as_str()).collect();
        assert_eq!(names, ["a", "b", "y", "x"]);
    }
}
