//! Known files, and the queues of those that have to be read.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    path::Path,
    sync::Arc,
    time::Duration,
};

use ai_agent_stage::{FileKey, GenerationId, Origin};

use super::{
    line_scan::{LineScan, ScannedContent},
    long_line::LongLine,
};
use crate::platform::{
    Timestamp,
    file::{FileId, Stamp},
};

/// State of a file that is kept in memory whether it is open or not.
#[derive(Debug)]
pub(super) struct KnownFile {
    pub(super) path: Arc<Path>,
    pub(super) era: u32,
    pub(super) generation: GenerationId,
    /// File id when its bytes were last read.
    pub(super) id: Option<FileId>,
    /// Stamp at the time it was read to its end; `None` while there may be more.
    pub(super) drained: Option<Stamp>,
    /// Size at the last check.
    pub(super) size: u64,
    /// End of the bytes that were handed over.
    pub(super) offset: u64,
    /// End of the bytes that were searched for a newline without finding one.
    pub(super) scanned: u64,
    /// Long line that contains the offset.
    pub(super) long: Option<Box<LongLine>>,
    /// Scan of a line with runs of NUL at the offset.
    pub(super) scan: Option<Box<LineScan>>,
    /// Number of the last sweep that found it.
    pub(super) last_sweep: u32,
    /// Time at which a change was last found.
    pub(super) changed: Duration,
    /// Id of another file that a sweep found at its path, if this one was found nowhere.
    pub(super) replaced_by: Option<FileId>,
    /// True if the outbox has, or will have, a row of its generation.
    pub(super) has_row: bool,
    /// True if the row contains the start of its incomplete last line.
    pub(super) has_saved_line: bool,
    /// True if it changed so shortly before it was read that its stamp could miss a change.
    pub(super) is_racy: bool,
    /// True if it was found deleted and is read through its open handle.
    pub(super) is_deleted: bool,
    queued: Option<Queued>,
}

/// Priority of a file in the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Files that grow, in turn.
    Live,
    /// Other unread files, oldest first.
    Backfill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queued {
    Live,
    Backfill { modified: i64 },
}

/// All known files by key, path and id.
#[derive(Debug, Default)]
pub(super) struct FileTable {
    /// Boxed, because a hash map allocates more slots than it has entries.
    by_key: HashMap<FileKey, Box<KnownFile>>,
    by_path: HashMap<Arc<Path>, FileKey>,
    by_id: HashMap<FileId, FileKey>,
    live: VecDeque<FileKey>,
    backfill: BTreeSet<(i64, FileKey)>,
}

impl KnownFile {
    /// Creates a file from which nothing was read.
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
            scan: None,
            last_sweep: 0,
            changed: Duration::ZERO,
            replaced_by: None,
            has_row: false,
            has_saved_line: false,
            is_racy: false,
            is_deleted: false,
            queued: None,
        }
    }

    /// Modification time by which it is queued in [`Lane::Backfill`].
    pub(super) fn backfill_time(&self) -> Option<i64> {
        match self.queued {
            Some(Queued::Backfill { modified }) => Some(modified),
            Some(Queued::Live) | None => None,
        }
    }

    /// Origin of the file's lines.
    pub(super) fn origin(&self, key: FileKey) -> Origin {
        let mut origin = Origin::new(key, self.path.to_path_buf(), self.generation.clone());
        origin.era = self.era;
        origin
    }

    /// Content of an incomplete last line with runs of NUL that was scanned up to `end`.
    pub(super) fn incomplete_content(&self, end: u64) -> Option<ScannedContent> {
        let scan = self.scan.as_ref()?;
        let is_current = scan.continues(self.offset, end) && scan.end() == end;
        is_current.then(|| scan.incomplete())
    }

    /// Number of bytes that were not handed over.
    pub(super) fn unread(&self) -> u64 {
        self.size.saturating_sub(self.offset)
    }

    /// Number of bytes that were not handed over, as far as known: a file that became shorter
    /// contains other bytes.
    pub(super) fn outstanding(&self) -> u64 {
        self.size.checked_sub(self.offset).unwrap_or(self.size)
    }

    /// Number of bytes of an incomplete last line, if nothing else is outstanding.
    pub(super) fn incomplete(&self) -> u64 {
        if self.scanned >= self.size { self.size.saturating_sub(self.offset) } else { 0 }
    }
}

/// Time since a file's bytes were changed. A modification time slightly in the future comes from
/// another clock and counts as now; one far in the future was set before the clock was set back.
pub(super) fn age(stamp: &Stamp, now: Timestamp) -> Duration {
    /// Largest difference between two clocks.
    const MAX_SKEW: Duration = Duration::from_secs(600);

    let modified = Timestamp(u64::try_from(stamp.modified / 1_000_000).unwrap_or_default());
    let ahead = modified - now;
    if ahead < MAX_SKEW { now - modified } else { ahead }
}

impl FileTable {
    pub(super) fn add(&mut self, key: FileKey, known: KnownFile) {
        self.by_path.insert(Arc::clone(&known.path), key);
        self.add_deleted(key, known);
    }

    /// Adds a file that is no longer at its path.
    pub(super) fn add_deleted(&mut self, key: FileKey, known: KnownFile) {
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

    /// Sets the id of the file from which bytes are read from now on.
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

    /// Sets a new path.
    pub(super) fn set_path(&mut self, key: FileKey, path: &Path) {
        let Some(known) = self.by_key.get_mut(&key) else { return };
        let old = std::mem::replace(&mut known.path, path.into());
        let path = Arc::clone(&known.path);
        self.leave_path(key, &old);
        self.by_path.insert(path, key);
    }

    /// Records that the file is no longer at `path`.
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

    /// Queues the file; a file in the backfill lane may be raised to the live lane.
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

    /// Returns true if only files in the backfill lane are queued.
    pub(super) fn is_backfill(&self) -> bool {
        self.live.is_empty() && !self.backfill.is_empty()
    }

    /// Removes the next file from the queues; returns it with its lane and modification time. A file
    /// in the backfill lane is returned only if `may_be_read` accepts its modification time.
    pub(super) fn next(
        &mut self,
        may_be_read: impl Fn(i64) -> bool,
    ) -> Option<(FileKey, Lane, i64)> {
        let (key, lane, modified) = match self.live.pop_front() {
            Some(key) => (key, Lane::Live, 0),
            None => {
                // A hold covers a range of times: if it covers both ends, it covers the rest.
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

    /// Removes the next file of the live lane.
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
    fn live_files_precede_the_oldest_backfill() {
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
    fn removed_file_is_not_found() {
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
