//! FileTable held open: never more than so many, and those that lie nowhere any more only within a
//! budget.
//!
//! A file that can be opened again is closed first. What a deleted file still holds can be had from
//! its handle alone, so that one stays until what was read of it is stored: when the store fails, it
//! is read again.

use std::{collections::BTreeMap, fs::File, io, mem, time::Duration};

use super::{
    Tail,
    checkpoint::CheckpointRow,
    chunk::{FileKey, GenerationId, Intake, Origin},
    files::{KnownFile, Lane},
    inspect::{InspectOutcome, origin},
    is_absent,
};
use crate::platform::file::{self, FileId, Stamp};

/// A file that is open.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: File,
    pub(super) id: Option<FileId>,
    /// How it looked when it was opened, for the first read.
    pub(super) opened: Option<Stamp>,
    pub(super) row: CheckpointRow,
    pub(super) origin: Origin,
    pub(super) used: Duration,
    /// The generations that this one followed, each with the group that says so, while that is
    /// not stored.
    pub(super) previous: Vec<(u64, GenerationId)>,
    /// What may still be read of it, once it lies at its path no more.
    pub(super) drain: Option<DrainLimit>,
    /// What was left of the file that another took the place of.
    pub(super) before: Option<ReplacedFile>,
}

/// How long and how much may still be read of a file that lies at its path no more.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainLimit {
    until: Duration,
    budget: u64,
}

/// How far a file was read that lies at its path no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// There may be more.
    InPart,
    /// All complete lines were handed over.
    ToTheEnd,
    /// No more can be had, or may be.
    GivenUp,
}

/// The end of a file in whose place another lies.
#[derive(Debug, Default)]
pub(super) struct ReplacedFile {
    /// Its incomplete last line.
    pub(super) rest: Vec<u8>,
    /// How large it was.
    pub(super) size: u64,
}

/// DetachedFiles that outlive a failure of the store.
pub(super) struct DetachedFiles {
    by_generation: BTreeMap<GenerationId, OpenFile>,
    /// Of a stored generation, the one that followed and was not stored.
    followers: BTreeMap<GenerationId, GenerationId>,
}

impl OpenFile {
    fn new(
        file: File,
        id: Option<FileId>,
        row: CheckpointRow,
        origin: Origin,
        used: Duration,
    ) -> Self {
        let (opened, previous, drain, before) = (None, Vec::new(), None, None);
        Self { file, id, opened, row, origin, used, previous, drain, before }
    }

    /// How large the file is now.
    pub(super) fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// How many bytes are held on disk for this handle alone.
    fn pinned(&self) -> u64 {
        match self.drain {
            Some(_) => self.size().saturating_sub(self.row.offset),
            None => 0,
        }
    }
}

impl DetachedFiles {
    fn take(&mut self, generation: &GenerationId) -> Option<OpenFile> {
        let own = self.by_generation.remove(generation);
        own.or_else(|| self.by_generation.remove(self.followers.get(generation)?))
    }
}

impl Tail {
    /// Opens a file and loads its row; whether it still is one.
    pub(super) fn open(&mut self, key: FileKey, intake: &dyn Intake) -> io::Result<bool> {
        self.make_room_for_a_file();
        let Some(known) = self.files.get_mut(key) else { return Ok(false) };
        if !known.has_row {
            // Nobody has heard of the one before, and files are not read in the order of the sweep.
            known.generation = (self.new_generation)();
        }
        let Some(known) = self.files.get(key) else { return Ok(false) };
        let Some((file, stamp)) = file::open_regular(&known.path)? else {
            self.schedule.sweep_soon();
            return Ok(false);
        };
        let row = self.row(key, known, intake)?;
        let origin = origin(key, known);
        let active = OpenFile::new(file, stamp.id, row, origin, self.schedule.now());
        self.active.insert(key, OpenFile { opened: Some(stamp), ..active });
        Ok(true)
    }

    /// How many files are open.
    pub(super) fn open_count(&self) -> usize {
        self.active.len() + self.retired.len()
    }

    /// Closes files that were quiet for a while.
    pub(super) fn close_quiet(&mut self) {
        let (now, quiet) = (self.schedule.now(), self.options.quiet_after);
        let is_used = |active: &OpenFile| now.saturating_sub(active.used) < quiet;
        self.active.retain(|_, active| is_used(active));
        self.retired.retain(|(_, active)| is_used(active));
        let open = self.active.values().chain(self.retired.iter().map(|(_, active)| active));
        self.schedule.set_quiet(open.map(|active| active.used + quiet).min());
    }

    /// Closes what can be had again, since the system has no more handles.
    pub(super) fn close_all(&mut self) {
        self.active.retain(|_, active| active.drain.is_some());
    }

    /// Keeps a file open that lies nowhere any more until what was read of it is stored.
    pub(super) fn part(&mut self, active: OpenFile) {
        self.retired.push((self.group, active));
        self.make_room(0);
    }

    /// Takes a file back that was kept open.
    pub(super) fn take_retired(&mut self, generation: &GenerationId) -> Option<OpenFile> {
        let index =
            self.retired.iter().position(|(_, active)| active.origin.generation == *generation)?;
        Some(self.retired.remove(index).1)
    }

    /// All groups before the one at hand are stored.
    pub(super) fn drop_stored(&mut self) {
        let at_hand = self.group;
        self.retired.retain(|(group, _)| *group >= at_hand);
        for active in self.active.values_mut() {
            active.previous.retain(|(group, _)| *group >= at_hand);
        }
    }

    fn make_room_for_a_file(&mut self) {
        self.make_room(1);
    }

    /// Closes files until so many more may be opened: the one used the longest ago, among those
    /// that can be opened again if there is any.
    fn make_room(&mut self, more: usize) {
        while self.open_count() + more > self.options.open_files.max(1) {
            let oldest = |is_draining: bool| {
                let active = self.active.iter();
                let active = active.filter(|(_, active)| active.drain.is_some() == is_draining);
                active.min_by_key(|(_, active)| active.used).map(|(key, _)| *key)
            };
            if let Some(key) = oldest(false) {
                self.active.remove(&key);
            } else if !self.retired.is_empty() {
                self.retired.remove(0);
            } else if let Some(key) = oldest(true) {
                // Its file is ended at the next inspect, with what was not read.
                self.active.remove(&key);
            } else {
                return;
            }
        }
    }

    /// Says what may still be read of an open file that lies at its path no more. All such files
    /// together hold at most so many bytes on disk.
    pub(super) fn begin_drain(&mut self, key: FileKey) {
        let others = self.active.iter().filter(|(other, _)| **other != key);
        let pinned: u64 = others.map(|(_, active)| active.pinned()).sum();
        let budget = self.options.drain_bytes.saturating_sub(pinned);
        let until = self.schedule.now() + self.options.drain_time;
        if let Some(active) = self.active.get_mut(&key).filter(|active| active.drain.is_none()) {
            active.drain = Some(DrainLimit { until, budget });
        }
    }

    /// While nothing may be read: lets go of files that lie at their paths no more when their time is
    /// over or they hold more on disk than they may. The next sweep reports what was not read.
    pub(crate) fn tend(&mut self) {
        const REST: Duration = Duration::from_secs(5);

        let now = self.schedule.now();
        if now.saturating_sub(self.tended) < REST {
            return;
        }
        self.tended = now;
        let is_elsewhere = |active: &OpenFile| match file::inspect(&active.origin.path) {
            Ok(sight) => sight.stamp.id != active.id,
            Err(error) => is_absent(&error),
        };
        let open = self.active.iter().filter(|(_, active)| active.drain.is_none());
        let gone: Vec<_> =
            open.filter(|(_, active)| is_elsewhere(active)).map(|(key, _)| *key).collect();
        for key in gone {
            self.begin_drain(key);
        }
        let files = &mut self.files;
        self.active.retain(|key, active| {
            let drain = active.drain;
            let is_kept =
                drain.is_none_or(|drain| now < drain.until && active.pinned() <= drain.budget);
            if !is_kept && let Some(known) = files.get_mut(*key) {
                // Nothing else will ever tell how much was in it.
                known.size = known.size.max(active.size());
            }
            is_kept
        });
    }

    /// Reads on in a file that lies at its path no more, as far as it may. Whatever it was
    /// rewritten with before it went is read too.
    pub(super) fn drain(&mut self, key: FileKey, intake: &mut dyn Intake) -> Drained {
        let Some(active) = self.active.get(&key) else { return Drained::GivenUp };
        let Some(DrainLimit { until, budget }) = active.drain else { return Drained::GivenUp };
        let before = active.row.offset;
        if self.schedule.now() >= until || budget == 0 {
            return Drained::GivenUp;
        }
        match self.read_on(key, intake) {
            Ok(Some(InspectOutcome::More)) => {}
            Ok(Some(InspectOutcome::Drained)) => return Drained::ToTheEnd,
            Ok(None) if self.start_new_generation(key, intake).is_ok() => return Drained::InPart,
            Ok(None) | Err(_) => return Drained::GivenUp,
        }
        if let Some(active) = self.active.get_mut(&key) {
            let budget = budget.saturating_sub(active.row.offset.saturating_sub(before));
            active.drain = Some(DrainLimit { until, budget });
        }
        Drained::InPart
    }

    /// FileTable held open that lie nowhere any more, and the bytes held on disk for them.
    pub(super) fn pinned(&self) -> (usize, u64) {
        let draining = self.active.values().filter(|active| active.drain.is_some());
        draining.fold((0, 0), |(files, bytes), active| (files + 1, bytes + active.pinned()))
    }

    /// Takes all handles, to be given back to the generations that are stored.
    pub(super) fn take_handles(&mut self) -> DetachedFiles {
        let retired = self.retired.drain(..).map(|(_, active)| active);
        let mut handles =
            DetachedFiles { by_generation: BTreeMap::new(), followers: BTreeMap::new() };
        for active in retired.chain(mem::take(&mut self.active).into_values()) {
            for (_, previous) in &active.previous {
                handles.followers.insert(previous.clone(), active.origin.generation.clone());
            }
            handles.by_generation.insert(active.origin.generation.clone(), active);
        }
        handles
    }

    /// Gives a stored generation its handle back.
    pub(super) fn resume(
        &mut self,
        handles: &mut DetachedFiles,
        key: FileKey,
        known: &KnownFile,
        row: &[u8],
    ) {
        let (Some(active), Ok(row)) = (handles.take(&known.generation), CheckpointRow::decode(row))
        else {
            return;
        };
        let OpenFile { file, id, .. } = active;
        let active = OpenFile::new(file, id, row, origin(key, known), self.schedule.now());
        self.active.insert(key, active);
    }

    /// Goes on with files that were never stored: of one that is gone by now nothing else knows.
    pub(super) fn adopt(&mut self, handles: DetachedFiles) {
        for (_, OpenFile { file, id, origin: last, .. }) in handles.by_generation {
            let is_there = file::inspect(&last.path).is_ok_and(|sight| sight.stamp.id == id);
            if is_there && self.files.at(&last.path).is_some() {
                continue;
            }
            let key = FileKey::fresh();
            let mut known = KnownFile::new(&last.path, (self.new_generation)());
            (known.id, known.is_gone) = (id, !is_there);
            let row = CheckpointRow::new(last.path, 0);
            let active = OpenFile::new(file, id, row, origin(key, &known), self.schedule.now());
            known.size = active.size();
            known.changed = self.schedule.now();
            self.active.insert(key, active);
            if is_there {
                self.files.add(key, known);
            } else {
                self.files.add_gone(key, known);
                self.begin_drain(key);
            }
            self.files.enqueue(key, Lane::Live, 0);
        }
    }
}
