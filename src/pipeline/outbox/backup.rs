//! A copy of the acknowledged offsets, beside the outbox: `checkpoints.bak`.
//!
//! When the store is lost or damaged, files are read again from what was acknowledged, not from
//! their beginning. The copy is only made while every entry is acknowledged, so that it is never
//! ahead of a receiver; it may be behind, and then some records are sent again in the new epoch.
//!
//! JSON lines: the epoch first, then a row for each generation; of two lines for one generation
//! the last counts. Changes are appended, and the file is written anew when it has doubled.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use crate::{platform::private, tail::GenerationId};

/// Which generation of which source.
pub(super) type Key = (String, GenerationId);

/// How much may be appended at least before the file is written anew.
const SLACK: u64 = 1 << 20;

/// The file, and what has changed since it was written.
pub(super) struct Backup {
    path: PathBuf,
    /// `None`: nobody knows, all of it has to be written.
    changed: Option<BTreeSet<Key>>,
    size: u64,
    compact_at: u64,
}

/// What a backup holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    /// The epoch that it was made in.
    pub(super) epoch: String,
    /// The rows.
    pub(super) rows: BTreeMap<Key, Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
struct First {
    epoch: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    source: String,
    generation: GenerationId,
    /// In base64; `None` takes the row away.
    row: Option<String>,
}

impl Backup {
    /// The backup beside the outbox at `outbox`.
    pub(super) fn beside(outbox: &Path) -> Self {
        let path = outbox.with_file_name("checkpoints.bak");
        Self { path, changed: None, size: 0, compact_at: 0 }
    }

    /// Notes that rows have changed.
    pub(super) fn note<'a>(&mut self, keys: impl Iterator<Item = &'a Key>) {
        if let Some(changed) = &mut self.changed {
            changed.extend(keys.cloned());
        }
    }

    /// Forgets what is known of the file: another epoch began.
    pub(super) fn forget(&mut self) {
        self.changed = None;
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

    /// Writes all rows, in place of what is there.
    pub(super) fn write(
        &mut self,
        epoch: &str,
        rows: impl Iterator<Item = (Key, Vec<u8>)>,
    ) -> io::Result<()> {
        let temporary = self.path.with_extension("bak.new");
        let mut file = private::options().truncate(true).open(&temporary)?;
        let mut text = line(&First { epoch: epoch.to_owned() });
        for (key, row) in rows {
            text.extend_from_slice(&row_line(key, Some(row)));
        }
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        self.size = text.len() as u64;
        self.compact_at = 2 * self.size + SLACK;
        self.changed = Some(BTreeSet::new());
        Ok(())
    }

    /// Appends the rows that have changed.
    pub(super) fn append(
        &mut self,
        rows: impl Iterator<Item = (Key, Option<Vec<u8>>)>,
    ) -> io::Result<()> {
        let text: Vec<u8> = rows.flat_map(|(key, row)| row_line(key, row)).collect();
        // Whatever becomes of it, the next time all of it is written.
        let changed = self.changed.take();
        let mut file = File::options().append(true).open(&self.path)?;
        file.write_all(&text)?;
        file.sync_data()?;
        self.size += text.len() as u64;
        self.changed = changed.map(|_| BTreeSet::new());
        Ok(())
    }

    /// Reads the file; `None` when there is none. A torn or wrong line is left out: its file is
    /// read again from an earlier offset.
    pub(super) fn load(&self) -> io::Result<Option<Saved>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut lines = text.split(|byte| *byte == b'\n');
        let first = lines.next().and_then(|line| serde_json::from_slice::<First>(line).ok());
        let Some(First { epoch }) = first else { return Ok(None) };
        let mut saved = Saved { epoch, ..Saved::default() };
        for Line { source, generation, row } in
            lines.filter_map(|line| serde_json::from_slice(line).ok())
        {
            let key = (source, generation);
            match row.and_then(|row| BASE64.decode(row.as_bytes()).ok()) {
                Some(row) => saved.rows.insert(key, row),
                None => saved.rows.remove(&key),
            };
        }
        Ok(Some(saved))
    }
}

fn row_line((source, generation): Key, row: Option<Vec<u8>>) -> Vec<u8> {
    line(&Line { source, generation, row: row.map(|row| BASE64.encode(&row)) })
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
        let rows = [(key("a"), b"1".to_vec()), (key("b"), b"2".to_vec())];
        backup.write("e", rows.into_iter()).unwrap();
        assert!(!backup.is_due());
        backup.note([key("a"), key("b")].iter());
        assert!(backup.is_due() && !backup.wants_all());
        let rows = [(key("a"), Some(b"3".to_vec())), (key("b"), None)];
        backup.append(rows.into_iter()).unwrap();
        let expected =
            Saved { epoch: "e".into(), rows: BTreeMap::from([(key("a"), b"3".to_vec())]) };
        assert_eq!(backup.load().unwrap(), Some(expected));

        let path = folder.path().join("checkpoints.bak");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        assert_eq!(backup.load().unwrap().unwrap().rows.len(), 2);
        fs::write(&path, "garbage").unwrap();
        assert_eq!(backup.load().unwrap(), None);
    }
}
