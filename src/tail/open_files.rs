//! Open files: a limited number, and within limits those that were deleted.
//!
//! Files that can be opened again are closed first. The unread bytes of a deleted file are available
//! only from its handle, so the handle is kept until everything read from it is stored: if the store fails,
//! the file is read again.

use std::{collections::BTreeMap, io, mem, time::Duration};

use ai_agent_stage::{FileKey, GenerationId, Intake, Origin};

use super::{
    Tail,
    block_hasher::{self, BlockHasher},
    checkpoint::CheckpointRow,
    file_table::{KnownFile, Lane},
    is_absent,
    partial_line::PartialLine,
};
use crate::platform::{
    bounded::BoundedFile,
    file::{self, FileId, Stamp},
};

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: BoundedFile,
    pub(super) id: Option<FileId>,
    /// Stamp at the time it was opened, for the first read.
    pub(super) opened: Option<Stamp>,
    pub(super) row: CheckpointRow,
    /// Hasher of the bytes after the row's offset; `None` until they are read.
    pub(super) hasher: Option<BlockHasher>,
    pub(super) origin: Origin,
    pub(super) used: Duration,
    /// Number of bytes that were handed over as runs of NUL.
    pub(super) skipped_nuls: u64,
    /// Generations that this one replaced, each with the number of the group that reports it, until
    /// that group is stored.
    pub(super) previous: Vec<(u64, GenerationId)>,
    /// Limit on further reading, once the file is no longer at its path.
    pub(super) drain: Option<DrainLimit>,
    /// End of the file that was at this path before.
    pub(super) replaced: Option<ReplacedFile>,
}

/// Time and number of bytes within which a file that is no longer at its path may still be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainLimit {
    until: Duration,
    bytes: u64,
}

/// Result of reading a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkProgress {
    /// There may be more.
    More,
    /// All complete lines were handed over.
    Drained,
}

/// Result of reading a chunk of a file that is no longer at its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DrainOutcome {
    /// There may be more.
    More,
    /// All complete lines were handed over.
    Complete,
    /// The limit is reached, or the file cannot be read.
    Stopped,
}

/// End of a file that was replaced by another.
#[derive(Debug, Default)]
pub(super) struct ReplacedFile {
    /// Incomplete last line.
    pub(super) partial_line: PartialLine,
    /// Size of the file.
    pub(super) size: u64,
}

/// Handles that are kept while the tail is restored from the stored rows.
pub(super) struct DetachedFiles {
    by_generation: BTreeMap<GenerationId, OpenFile>,
    /// For a stored generation, the one that replaced it and was not stored.
    successors: BTreeMap<GenerationId, GenerationId>,
}

impl OpenFile {
    pub(super) fn new(
        file: BoundedFile,
        id: Option<FileId>,
        row: CheckpointRow,
        origin: Origin,
        used: Duration,
    ) -> Self {
        let (opened, hasher, previous, drain, replaced) = (None, None, Vec::new(), None, None);
        let skipped_nuls = 0;
        Self {
            file,
            id,
            opened,
            row,
            hasher,
            origin,
            used,
            skipped_nuls,
            previous,
            drain,
            replaced,
        }
    }

    /// Current size of the file.
    pub(super) fn size(&self) -> u64 {
        self.file.size().unwrap_or(0)
    }

    /// Number of bytes that were read, runs of NUL not counted.
    fn read_bytes(&self) -> u64 {
        self.row.offset.saturating_sub(self.skipped_nuls)
    }

    /// Prepares the hasher for further bytes. Returns false if the bytes after the last whole block
    /// were altered.
    ///
    /// # Errors
    /// Errors of reading the file.
    pub(super) fn prepare_hasher(&mut self) -> io::Result<bool> {
        let Self { file, row, hasher, origin, .. } = self;
        let hasher = hasher.get_or_insert_with(|| {
            let tail = row.blocks.unwrap_or_else(|| block_hasher::unknown_tail(row.offset));
            BlockHasher::new(block_hasher::seed(&origin.generation), tail, row.offset)
        });
        hasher.resume(file)
    }

    /// Number of bytes that occupy disk space only because of this handle.
    fn pinned(&self) -> u64 {
        match self.drain {
            Some(_) => {
                let unread = self.size().saturating_sub(self.row.offset);
                self.file.occupied().map_or(unread, |occupied| unread.min(occupied))
            }
            None => 0,
        }
    }
}

impl DetachedFiles {
    fn remove(&mut self, generation: &GenerationId) -> Option<OpenFile> {
        let own = self.by_generation.remove(generation);
        own.or_else(|| self.by_generation.remove(self.successors.get(generation)?))
    }
}

impl Tail {
    /// Opens a file and loads its row; returns false if it is not a regular file.
    pub(super) fn open_file(&mut self, key: FileKey, intake: &dyn Intake) -> io::Result<bool> {
        self.close_until_room_for(1);
        let Some(known) = self.files.get_mut(key) else { return Ok(false) };
        if !known.has_row {
            // Its id was never handed over. With a new one, ids are in the order of reading.
            known.generation = (self.new_generation)();
        }
        let Some(known) = self.files.get(key) else { return Ok(false) };
        let Some((file, stamp)) = self.access.open(&known.path)? else {
            self.schedule.request_sweep_soon();
            return Ok(false);
        };
        let is_other = known.id.is_some() && stamp.id != known.id && stamp.id != known.replaced_by;
        if is_other && stamp.id.is_some() && self.access.is_linked(&known.path) {
            // A link leads elsewhere by now: a sweep finds out where.
            self.schedule.request_sweep_soon();
            return Ok(false);
        }
        let row = self.row(key, known, intake)?;
        let of_other = stamp.id.filter(|_| is_other).and_then(|id| self.files.with_id(id));
        if row.offset == 0 && of_other.is_some_and(|other| other != key) {
            // Another known file was moved here. Without bytes that were read, any file would match.
            self.schedule.request_sweep_soon();
            return Ok(false);
        }
        let open = OpenFile::new(file, stamp.id, row, known.origin(key), self.schedule.now());
        self.open.insert(key, OpenFile { opened: Some(stamp), ..open });
        Ok(true)
    }

    /// Number of open files.
    pub(super) fn open_count(&self) -> usize {
        self.open.len() + self.retired.len()
    }

    /// Closes files that have not been used for a while.
    pub(super) fn close_quiet(&mut self) {
        let (now, quiet) = (self.schedule.now(), self.options.quiet_after);
        let is_used = |open: &OpenFile| now.saturating_sub(open.used) < quiet;
        self.open.retain(|_, open| is_used(open));
        self.retired.retain(|(_, open)| is_used(open));
        let open = self.open.values().chain(self.retired.iter().map(|(_, open)| open));
        self.schedule.set_close_due(open.map(|open| open.used + quiet).min());
    }

    /// Closes all files that can be opened again, because the system has no more handles.
    pub(super) fn close_reopenable(&mut self) {
        self.open.retain(|_, open| open.drain.is_some());
    }

    /// Keeps a file open that is no longer at its path until everything read from it is stored.
    pub(super) fn retire(&mut self, open: OpenFile) {
        self.retired.push((self.group, open));
        self.close_until_room_for(0);
    }

    /// Returns a retired file to use.
    pub(super) fn take_retired(&mut self, generation: &GenerationId) -> Option<OpenFile> {
        let index =
            self.retired.iter().position(|(_, open)| open.origin.generation == *generation)?;
        Some(self.retired.remove(index).1)
    }

    /// Releases the handles kept for groups before the current one, which are stored.
    pub(super) fn release_stored(&mut self) {
        let current = self.group;
        self.retired.retain(|(group, _)| *group >= current);
        for open in self.open.values_mut() {
            open.previous.retain(|(group, _)| *group >= current);
        }
    }

    /// Closes files until `more` can be opened: the least recently used one first, those that can be
    /// opened again before others.
    fn close_until_room_for(&mut self, more: usize) {
        while self.open_count() + more > self.options.open_files.max(1) {
            let oldest = |is_draining: bool| {
                let open = self.open.iter();
                let open = open.filter(|(_, open)| open.drain.is_some() == is_draining);
                open.min_by_key(|(_, open)| open.used).map(|(key, _)| *key)
            };
            if let Some(key) = oldest(false) {
                self.open.remove(&key);
            } else if !self.retired.is_empty() {
                self.retired.remove(0);
            } else if let Some(key) = oldest(true) {
                // The next inspection ends the file and reports its unread bytes.
                self.open.remove(&key);
            } else {
                return;
            }
        }
    }

    /// Sets the limit on further reading from an open file that is no longer at its path. All such
    /// files share a limit on the disk space that they occupy.
    pub(super) fn start_drain(&mut self, key: FileKey) {
        let others = self.open.iter().filter(|(other, _)| **other != key);
        let pinned: u64 = others.map(|(_, open)| open.pinned()).sum();
        let bytes = self.options.drain_bytes.saturating_sub(pinned);
        let until = self.schedule.now() + self.options.drain_time;
        if let Some(open) = self.open.get_mut(&key).filter(|open| open.drain.is_none()) {
            open.drain = Some(DrainLimit { until, bytes });
        }
    }

    /// Closes deleted files whose limit is reached, while the outbox is full and nothing may be
    /// read. The next sweep reports their unread bytes.
    pub(crate) fn tend(&mut self) {
        const INTERVAL: Duration = Duration::from_secs(5);

        let now = self.schedule.now();
        if now.saturating_sub(self.last_tended) < INTERVAL {
            return;
        }
        self.last_tended = now;
        let is_elsewhere = |open: &OpenFile| match self.access.inspect(&open.origin.path) {
            Ok(info) => info.stamp.id != open.id,
            Err(error) => is_absent(&error),
        };
        let open = self.open.iter().filter(|(_, open)| open.drain.is_none());
        let deleted: Vec<_> =
            open.filter(|(_, open)| is_elsewhere(open)).map(|(key, _)| *key).collect();
        for key in deleted {
            self.start_drain(key);
        }
        let files = &mut self.files;
        self.open.retain(|key, open| {
            let is_within = |limit: DrainLimit| now < limit.until && open.pinned() <= limit.bytes;
            let is_kept = open.drain.is_none_or(is_within);
            if !is_kept && let Some(known) = files.get_mut(*key) {
                // The size cannot be determined without the handle.
                known.size = known.size.max(open.size());
            }
            is_kept
        });
    }

    /// Reads the next chunk of a file that is no longer at its path, within its limit. If the file
    /// was rewritten before it was deleted, the new content is read too.
    ///
    /// # Errors
    /// The error of a file system that cannot be reached at present: the call can be repeated.
    pub(super) fn drain(
        &mut self,
        key: FileKey,
        intake: &mut dyn Intake,
    ) -> io::Result<DrainOutcome> {
        let Some(open) = self.open.get(&key) else { return Ok(DrainOutcome::Stopped) };
        let Some(DrainLimit { until, bytes }) = open.drain else {
            return Ok(DrainOutcome::Stopped);
        };
        let before = open.read_bytes();
        if self.schedule.now() >= until || bytes == 0 {
            return Ok(DrainOutcome::Stopped);
        }
        let progress = match self.read_next_chunk(key, intake) {
            Ok(None) => self.start_new_generation(key, intake).map(|_| Some(ChunkProgress::More)),
            read => read,
        };
        match progress {
            Ok(Some(ChunkProgress::Drained)) => return Ok(DrainOutcome::Complete),
            Ok(_) => {}
            Err(error) if file::is_unavailable(&error) => return Err(error),
            Err(_) => return Ok(DrainOutcome::Stopped),
        }
        if let Some(open) = self.open.get_mut(&key) {
            let bytes = bytes.saturating_sub(open.read_bytes().saturating_sub(before));
            open.drain = Some(DrainLimit { until, bytes });
        }
        Ok(DrainOutcome::More)
    }

    /// Number of open files that are no longer at their path, and the disk space that they occupy.
    pub(super) fn pinned(&self) -> (usize, u64) {
        let draining = self.open.values().filter(|open| open.drain.is_some());
        draining.fold((0, 0), |(files, bytes), open| (files + 1, bytes + open.pinned()))
    }

    /// Detaches all handles, to be attached again to the generations that are stored.
    pub(super) fn detach_handles(&mut self) -> DetachedFiles {
        let retired = self.retired.drain(..).map(|(_, open)| open);
        let mut detached =
            DetachedFiles { by_generation: BTreeMap::new(), successors: BTreeMap::new() };
        for open in retired.chain(mem::take(&mut self.open).into_values()) {
            for (_, previous) in &open.previous {
                detached.successors.insert(previous.clone(), open.origin.generation.clone());
            }
            detached.by_generation.insert(open.origin.generation.clone(), open);
        }
        detached
    }

    /// Attaches the handle of a stored generation.
    pub(super) fn attach_handle(
        &mut self,
        detached: &mut DetachedFiles,
        key: FileKey,
        known: &KnownFile,
        row: &[u8],
    ) {
        let (Some(open), Ok(row)) =
            (detached.remove(&known.generation), CheckpointRow::decode(row))
        else {
            return;
        };
        let OpenFile { file, id, .. } = open;
        let open = OpenFile::new(file, id, row, known.origin(key), self.schedule.now());
        self.open.insert(key, open);
    }

    /// Keeps the remaining handles, of files that were never stored: a deleted one is known only by
    /// its handle.
    pub(super) fn keep_unstored(&mut self, detached: DetachedFiles) {
        for (_, OpenFile { file, id, origin, .. }) in detached.by_generation {
            // A file system that cannot be reached does not mean that the file was deleted.
            let is_there = match self.access.inspect(&origin.path) {
                Ok(info) => info.stamp.id == id,
                Err(error) => !is_absent(&error),
            };
            if is_there && self.files.at(&origin.path).is_some() {
                continue;
            }
            let key = FileKey::fresh();
            let mut known = KnownFile::new(&origin.path, (self.new_generation)());
            (known.id, known.is_deleted) = (id, !is_there);
            let row = CheckpointRow::new(origin.path, 0);
            let open = OpenFile::new(file, id, row, known.origin(key), self.schedule.now());
            known.size = open.size();
            known.changed = self.schedule.now();
            known.last_sweep = self.schedule.sweeps;
            self.open.insert(key, open);
            if is_there {
                self.files.add(key, known);
            } else {
                self.files.add_deleted(key, known);
                self.start_drain(key);
            }
            self.files.enqueue(key, Lane::Live, 0);
        }
    }
}
