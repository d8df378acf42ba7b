//! The files that are known, and which of them wait to be read.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    path::Path,
    sync::Arc,
    time::Duration,
};

use super::{
    chunk::{FileKey, GenerationId},
    long_line::LongLine,
};
use crate::platform::file::{FileId, Stamp};

/// What is held in memory of every file, open or not.
#[derive(Debug)]
pub(super) struct KnownFile {
    pub(super) path: Arc<Path>,
    pub(super) era: u32,
    pub(super) generation: GenerationId,
    /// The id under which its bytes were last read.
    pub(super) id: Option<FileId>,
    /// How it looked when it was read to its end; `None` while there may be more.
    pub(super) drained: Option<Stamp>,
    /// Its size when it was last seen.
    pub(super) size: u64,
    /// Up to where it was handed over.
    pub(super) offset: u64,
    /// No newline lies between the offset and here.
    pub(super) scanned: u64,
    /// The large line that the offset lies in.
    pub(super) long: Option<Box<LongLine>>,
    /// The last sweep that saw it.
    pub(super) seen: u32,
    /// When it was last found changed.
    pub(super) changed: Duration,
    /// Another file was found at its path by a sweep, and no other path for this one.
    pub(super) replaced_by: Option<FileId>,
    /// Whether the outbox holds, or will hold, a row of its generation.
    pub(super) has_row: bool,
    /// Whether the row holds the start of its incomplete last line.
    pub(super) has_kept: bool,
    /// It was changed so shortly before it was read that its stamp could miss a change.
    pub(super) is_racy: bool,
    /// Whether it was found gone, and is read from its open handle.
    pub(super) is_gone: bool,
    queued: Option<Queued>,
}

/// Which files come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// FileTable that grow, in turn.
    Live,
    /// Whatever else is unread, oldest first.
    Backfill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queued {
    Live,
    Backfill { modified: i64 },
}

/// All known files, by key, path and id.
#[derive(Debug, Default)]
pub(super) struct FileTable {
    /// Each on its own: a table has room for half as many again, and none of it is a file's size.
    by_key: HashMap<FileKey, Box<KnownFile>>,
    by_path: HashMap<Arc<Path>, FileKey>,
    by_id: HashMap<FileId, FileKey>,
    live: VecDeque<FileKey>,
    backfill: BTreeSet<(i64, FileKey)>,
}

impl KnownFile {
    /// A file of which nothing was read.
    pub(super) fn new(path: &Path, generation: GenerationId) -> Self {
        Self {
            path: path.into(),
            era: 0,
            generation,
            id: None,
            drained: None,
            size: 0,
            offset: 0,
            scanned: 0,
            long: None,
            seen: 0,
            changed: Duration::ZERO,
            replaced_by: None,
            has_row: false,
            has_kept: false,
            is_racy: false,
            is_gone: false,
            queued: None,
        }
    }

    /// The time of change under which it waits among files that do not grow.
    pub(super) fn waits_since(&self) -> Option<i64> {
        match self.queued {
            Some(Queued::Backfill { modified }) => Some(modified),
            Some(Queued::Live) | None => None,
        }
    }

    /// Bytes that were not handed over.
    pub(super) fn unread(&self) -> u64 {
        self.size.saturating_sub(self.offset)
    }

    /// The same, as far as is known: one that got shorter holds other bytes.
    pub(super) fn outstanding(&self) -> u64 {
        self.size.checked_sub(self.offset).unwrap_or(self.size)
    }
}

impl FileTable {
    pub(super) fn add(&mut self, key: FileKey, known: KnownFile) {
        self.by_path.insert(Arc::clone(&known.path), key);
        self.add_gone(key, known);
    }

    /// Adds a file that lies at its path no more.
    pub(super) fn add_gone(&mut self, key: FileKey, known: KnownFile) {
        if let Some(id) = known.id {
            self.by_id.insert(id, key);
        }
        self.by_key.insert(key, Box::new(known));
    }

    pub(super) fn get(&self, key: FileKey) -> Option<&KnownFile> {
        self.by_key.get(&key).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, key: FileKey) -> Option<&mut KnownFile> {
        self.by_key.get_mut(&key).map(Box::as_mut)
    }

    pub(super) fn at(&self, path: &Path) -> Option<FileKey> {
        self.by_path.get(path).copied()
    }

    pub(super) fn with_id(&self, id: FileId) -> Option<FileKey> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (FileKey, &KnownFile)> {
        self.by_key.iter().map(|(key, known)| (*key, known.as_ref()))
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Says under which id the file's bytes are read from now on.
    pub(super) fn set_id(&mut self, key: FileKey, id: Option<FileId>) {
        let Some(known) = self.by_key.get_mut(&key) else { return };
        if known.id == id {
            return;
        }
        if let Some(old) = std::mem::replace(&mut known.id, id)
            && self.by_id.get(&old) == Some(&key)
        {
            self.by_id.remove(&old);
        }
        if let Some(id) = id {
            self.by_id.insert(id, key);
        }
    }

    /// Says that the file lies at another path.
    pub(super) fn set_path(&mut self, key: FileKey, path: &Path) {
        let Some(known) = self.by_key.get_mut(&key) else { return };
        let old = std::mem::replace(&mut known.path, path.into());
        let path = Arc::clone(&known.path);
        self.leave_path(key, &old);
        self.by_path.insert(path, key);
    }

    /// Says that the file no longer lies at `path`.
    pub(super) fn leave_path(&mut self, key: FileKey, path: &Path) {
        if self.by_path.get(path) == Some(&key) {
            self.by_path.remove(path);
        }
    }

    pub(super) fn remove(&mut self, key: FileKey) -> Option<KnownFile> {
        self.dequeue(key);
        let known = self.by_key.remove(&key)?;
        self.leave_path(key, &known.path);
        if let Some(id) = known.id
            && self.by_id.get(&id) == Some(&key)
        {
            self.by_id.remove(&id);
        }
        Some(*known)
    }

    /// Lets the file wait to be read; from backfill it may be raised to live.
    pub(super) fn enqueue(&mut self, key: FileKey, lane: Lane, modified: i64) {
        let Some(known) = self.by_key.get_mut(&key) else { return };
        match (known.queued, lane) {
            (Some(Queued::Live), _) | (Some(Queued::Backfill { .. }), Lane::Backfill) => return,
            (Some(Queued::Backfill { modified }), Lane::Live) => {
                self.backfill.remove(&(modified, key));
            }
            (None, _) => {}
        }
        known.queued = Some(match lane {
            Lane::Live => {
                self.live.push_back(key);
                Queued::Live
            }
            Lane::Backfill => {
                self.backfill.insert((modified, key));
                Queued::Backfill { modified }
            }
        });
    }

    /// Whether nothing waits but files that do not grow.
    pub(super) fn is_backfill(&self) -> bool {
        self.live.is_empty() && !self.backfill.is_empty()
    }

    /// The next file to read, with the lane that it waited in and its age there; of those that do
    /// not grow only one whose time of change `may_be_read`.
    pub(super) fn next(
        &mut self,
        may_be_read: impl Fn(i64) -> bool,
    ) -> Option<(FileKey, Lane, i64)> {
        let (key, lane, modified) = match self.live.pop_front() {
            Some(key) => (key, Lane::Live, 0),
            None => {
                // Those in the middle wait longest, whatever keeps them.
                let ends = [self.backfill.first(), self.backfill.last()];
                let next = ends.into_iter().flatten().find(|(modified, _)| may_be_read(*modified));
                let (modified, key) = *next?;
                self.backfill.remove(&(modified, key));
                (key, Lane::Backfill, modified)
            }
        };
        if let Some(known) = self.by_key.get_mut(&key) {
            known.queued = None;
        }
        Some((key, lane, modified))
    }

    /// The next file to read of those that grow.
    pub(super) fn next_live(&mut self) -> Option<(FileKey, Lane, i64)> {
        if self.live.is_empty() { None } else { self.next(|_| true) }
    }

    fn dequeue(&mut self, key: FileKey) {
        match self.by_key.get_mut(&key).and_then(|known| known.queued.take()) {
            Some(Queued::Live) => self.live.retain(|queued| *queued != key),
            Some(Queued::Backfill { modified }) => {
                self.backfill.remove(&(modified, key));
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(count: u64) -> FileTable {
        let mut files = FileTable::default();
        for n in 0..count {
            let path = format!("/{n}");
            files.add(FileKey(n), KnownFile::new(Path::new(&path), GenerationId(n.to_string())));
        }
        files
    }

    fn order(mut files: FileTable) -> Vec<u64> {
        std::iter::from_fn(|| files.next(|_| true)).map(|(key, ..)| key.0).collect()
    }

    #[test]
    fn live_files_come_first_then_the_oldest() {
        let mut files = files(5);
        files.enqueue(FileKey(0), Lane::Backfill, 30);
        files.enqueue(FileKey(1), Lane::Backfill, 10);
        files.enqueue(FileKey(2), Lane::Live, 99);
        files.enqueue(FileKey(3), Lane::Backfill, 20);
        files.enqueue(FileKey(3), Lane::Live, 20);
        files.enqueue(FileKey(2), Lane::Backfill, 0);
        assert_eq!(order(files), [2, 3, 1, 0]);
    }

    #[test]
    fn a_removed_file_is_found_no_more() {
        let mut files = files(2);
        let id = FileId { volume: 1, file: 1 };
        files.set_id(FileKey(0), Some(id));
        files.enqueue(FileKey(0), Lane::Live, 0);
        files.enqueue(FileKey(1), Lane::Backfill, 0);
        files.set_path(FileKey(0), Path::new("/moved"));
        assert_eq!(files.at(Path::new("/0")), None);
        files.remove(FileKey(0)).unwrap();
        assert_eq!((files.with_id(id), files.at(Path::new("/moved"))), (None, None));
        assert_eq!(order(files), [1]);
    }
}
