//! Follows files that others write: which have unread bytes, and whole lines out of them.
//!
//! A sweep is the truth, a watcher only a hint. A file is known by its bytes, not by its name: one
//! life of a file is a *generation*, and its checkpoint says up to where its lines are in the
//! outbox. What is read is handed over in chunks that carry the checkpoint that covers them, so
//! that neither can be stored without the other.
//!
//! `decide` is the state machine, as a pure function; `inspect` holds a file against its row and
//! reads on, `sweep` finds files that changed, moved or went, `gone` ends them.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use crate::platform::{
    Clock,
    file::{self, FileId},
};

mod backfill_hold;
mod checkpoint;
mod chunk;
mod decision;
mod deleted;
mod files;
mod fingerprint;
#[doc(hidden)]
pub mod fuzzing;
mod inspect;
mod long_line;
mod open_files;
mod reader;
mod schedule;
mod sweep;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod unreadable;
mod walk;
mod watcher;

use backfill_hold::HoldState;
pub use backfill_hold::{BackfillHold, HoldQuery};
use checkpoint::{CheckpointRow, CheckpointSummary};
pub use checkpoint::{beginning, has_beginning, row_path};
pub use chunk::{
    BadRow, Chunk, FileKey, GenerationId, Intake, NewGeneration, Origin, Piece, Progress, Survey,
    Unreadable, fresh_generation,
};
use files::{FileTable, KnownFile, Lane};
use fingerprint::EdgeSamples;
use inspect::age;
use open_files::OpenFile;
use reader::{ReadSizes, Reader};
use schedule::Schedule;
use sweep::Sweep;
use unreadable::UnreadablePaths;
pub use walk::Names;
use walk::Root;
use watcher::{Hints, Watcher};

/// What to follow, and how.
#[derive(Clone, Debug)]
pub struct TailOptions {
    /// Directories whose files are followed, at any depth.
    pub roots: Vec<PathBuf>,
    /// Which files are followed there.
    pub names: Names,
    /// The longest line, in bytes without its ending, that is handed over whole.
    pub max_record_bytes: u64,
    /// How many bytes a part of a longer line has.
    pub part_bytes: u64,
    /// How many bytes are read at once, and so how many a chunk of lines has at most, unless it
    /// is one longer line.
    pub chunk_bytes: u64,
    /// How many files are held open at most.
    pub open_files: usize,
    /// For how many unread bytes deleted files are held open, all together.
    pub drain_bytes: u64,
    /// How long each of them is.
    pub drain_time: Duration,
    /// How long a file may be quiet before it is closed.
    pub quiet_after: Duration,
    /// How long an incomplete last line must not have changed to be copied into the row.
    pub keep_after: Duration,
    /// The longest time between two full sweeps.
    pub poll_interval: Duration,
    /// Whether to ask the system for hints about changes.
    pub watch: bool,
}

impl Default for TailOptions {
    fn default() -> Self {
        Self {
            roots: Vec::new(),
            names: Names::EndingIn(".jsonl".to_owned()),
            max_record_bytes: 8 << 20,
            part_bytes: 2 << 20,
            chunk_bytes: 256 << 10,
            open_files: 64,
            drain_bytes: 1 << 30,
            drain_time: Duration::from_secs(60),
            quiet_after: Duration::from_secs(10),
            keep_after: Duration::from_secs(600),
            poll_interval: Duration::from_secs(300),
            watch: true,
        }
    }
}

/// Follows the files below its roots.
///
/// Synchronous and for one thread: a source calls [`Tail::read`] with the group that the pipeline
/// is filling, stores the group, and says so with [`Tail::committed`]; when the group can't be
/// stored, [`Tail::restore`] takes everything back.
pub struct Tail {
    options: TailOptions,
    clock: Arc<dyn Clock>,
    new_generation: NewGeneration,
    schedule: Schedule,
    hints: Arc<Hints>,
    watcher: Option<Watcher>,
    /// The roots that the last sweep found.
    roots: Vec<Root>,
    files: FileTable,
    /// FileTable that are open, at most `options.open_files`.
    active: BTreeMap<FileKey, OpenFile>,
    /// FileTable that are done with and lie nowhere any more, open until the group that says so is
    /// stored.
    retired: Vec<(u64, OpenFile)>,
    /// When it was looked last for files that went, while nothing may be read.
    tended: Duration,
    /// Rows that were handed over and are not known to be stored, each with its group.
    uncommitted: HashMap<FileKey, (u64, Vec<u8>)>,
    /// The number of the group at hand.
    group: u64,
    /// The sweep that goes on.
    sweep: Option<Sweep>,
    unreadable: UnreadablePaths,
    /// What keeps files waiting that do not grow.
    holding: HoldState,
    reader: Reader,
    ends: EdgeSamples,
}

impl Tail {
    /// Follows the files below `options.roots`, with no memory of them.
    ///
    /// `wake` is called, from another thread, when a hint came in while nobody reads.
    #[must_use]
    pub fn new(
        options: TailOptions,
        clock: Arc<dyn Clock>,
        new_generation: NewGeneration,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX / 4).min(1 << 30);
        let sizes = ReadSizes {
            buffer: size(options.chunk_bytes),
            record: size(options.max_record_bytes),
            part: size(options.part_bytes),
        };
        Self {
            schedule: Schedule::new(options.poll_interval, Arc::clone(&clock)),
            clock,
            new_generation,
            hints: Arc::new(Hints::new(wake)),
            watcher: None,
            roots: Vec::new(),
            files: FileTable::default(),
            active: BTreeMap::new(),
            retired: Vec::new(),
            tended: Duration::ZERO,
            uncommitted: HashMap::new(),
            group: 0,
            sweep: None,
            unreadable: UnreadablePaths::default(),
            holding: HoldState::default(),
            reader: Reader::new(sizes),
            ends: EdgeSamples::default(),
            options,
        }
    }

    /// Asks `ask` now and then, when there are only files left that do not grow, whether those wait.
    #[must_use]
    pub fn with_hold_query(mut self, ask: HoldQuery) -> Self {
        self.holding = HoldState::by(ask);
        self
    }

    /// Whether what comes next is nothing but files that do not grow.
    #[must_use]
    pub fn is_backfill(&self) -> bool {
        self.schedule.has_swept && self.files.is_backfill()
    }

    /// Takes the place of `old`, which has other options, to be restored then: files keep their
    /// keys, and those that are deleted and open stay so.
    pub fn inherit(&mut self, old: Self) {
        let Self { files, active, retired, .. } = old;
        (self.files, self.active, self.retired) = (files, active, retired);
    }

    /// Follows the files below another root too.
    pub fn follow(&mut self, root: PathBuf) {
        if !self.options.roots.contains(&root) {
            self.options.roots.push(root);
            self.schedule.sweep_now();
        }
    }

    /// Forgets everything in memory and begins again from the stored rows: at the start, and after
    /// a group that could not be stored.
    ///
    /// A file keeps its key over this, as long as it keeps its path.
    ///
    /// # Errors
    /// [`BadRow`]: a file that is known must not begin anew because its row is not understood.
    pub fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        let before = std::mem::take(&mut self.files);
        let mut handles = self.take_handles();
        self.uncommitted.clear();
        self.sweep = None;
        self.schedule.restart();
        let now = self.schedule.now();
        for (generation, bytes) in rows {
            let row = match CheckpointRow::summary(&bytes) {
                Ok(row) => row,
                Err(source) => {
                    self.adopt(handles);
                    return Err(BadRow::new(generation, source));
                }
            };
            // Of two generations of one path one is gone, and was not read to its end.
            let other = self.files.at(&row.path);
            let is_gone = other.is_some_and(|other| !self.gives_way(other, &row));
            if let Some(other) = other.filter(|_| !is_gone) {
                self.files.leave_path(other, &row.path);
                self.end_soon(other);
            }
            let old = before.at(&row.path).filter(|_| other.is_none());
            let era = old.and_then(|key| before.get(key)).map_or(0, |known| known.era);
            let key = old.unwrap_or_else(FileKey::fresh);
            let mut known = KnownFile::new(&row.path, generation);
            known.era = era;
            known.id = row.stamp.id;
            known.drained = row.is_drained.then_some(row.stamp);
            known.size = row.stamp.size;
            known.offset = row.offset;
            known.scanned = if row.is_drained { row.stamp.size } else { row.offset };
            known.has_row = true;
            known.has_kept = row.has_kept;
            known.changed = now;
            self.schedule.heat(key, age(&row.stamp, self.clock.now()));
            if known.unread() > 0 {
                self.schedule.watch_tail(key);
            }
            self.resume(&mut handles, key, &known, &bytes);
            if is_gone {
                self.files.add_gone(key, known);
                self.end_soon(key);
            } else {
                self.files.add(key, known);
            }
        }
        self.adopt(handles);
        Ok(())
    }

    /// Whether a known file is not the one that lies at its path, but the one of `row` is; when
    /// nobody can tell, the one of which less was read.
    fn gives_way(&self, known: FileKey, row: &CheckpointSummary) -> bool {
        let Some(known) = self.files.get(known) else { return true };
        let here = file::inspect(&row.path).ok().and_then(|sight| sight.stamp.id);
        let is_here = |id: Option<FileId>| id.is_some() && id == here;
        (is_here(row.stamp.id), row.offset) > (is_here(known.id), known.offset)
    }

    /// Reads a file to its end that lies at its path no more, as far as it is open.
    fn end_soon(&mut self, key: FileKey) {
        if let Some(known) = self.files.get_mut(key) {
            known.is_gone = true;
            self.begin_drain(key);
            self.files.enqueue(key, Lane::Live, 0);
        }
    }

    /// Hands chunks to `intake` until it has no room or nothing is unread.
    pub fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        let mut has_read = false;
        loop {
            if !intake.has_room() {
                return Progress::More;
            }
            self.find_changes(intake);
            // Which files are the oldest the first sweep tells.
            let has_swept = self.schedule.has_swept;
            let next = match has_swept {
                true if self.files.is_backfill() => {
                    let (uptime, now) = (self.schedule.now(), self.clock.now());
                    let holding = &mut self.holding;
                    self.files.next(holding.may_be_read(uptime, now))
                }
                true => self.files.next(|_| true),
                false => self.files.next_live(),
            };
            let Some((key, lane, modified)) = next else {
                if self.sweep.is_some() && has_read {
                    return Progress::More;
                }
                if self.sweep.is_none() {
                    self.begin_to_watch();
                }
                if self.sweep.is_some() || self.schedule.is_sweep_urgent() {
                    continue;
                }
                break;
            };
            if self.schedule.is_late_to_watch() {
                self.begin_to_watch();
            }
            has_read = true;
            if self.inspect(key, lane, intake) {
                self.files.enqueue(key, lane, modified);
            } else if lane == Lane::Backfill {
                self.active.remove(&key);
            }
        }
        self.close_quiet();
        let next = self.schedule.until_next();
        match self.files.is_backfill() {
            true => Progress::Idle { next: next.min(self.holding.rest(self.schedule.now())) },
            false => Progress::Idle { next },
        }
    }

    /// The group with all chunks so far is on its way to the store: what comes is in another.
    pub fn sealed(&mut self) {
        self.group += 1;
    }

    /// What was handed over before [`sealed`](Self::sealed) was called last is stored. A file that
    /// ended in there must not be taken for one that was never stored when the next group fails.
    pub fn committed(&mut self) {
        let at_hand = self.group;
        self.uncommitted.retain(|_, (group, _)| *group >= at_hand);
        self.uncommitted.shrink_to(64);
        self.drop_stored();
    }

    /// How things stand.
    #[must_use]
    pub fn survey(&self) -> Survey {
        let (files_pinned, bytes_pinned) = self.pinned();
        let mut survey = Survey::default();
        survey.files = self.files.len();
        survey.files_open = self.open_count();
        survey.files_settling = self.schedule.settling_count();
        survey.files_pinned = files_pinned;
        survey.bytes_pinned = bytes_pinned;
        survey.unreadable = self.unreadable.list();
        survey.is_watching = self.schedule.is_watching;
        survey.sweeps = self.schedule.sweeps;
        survey.sweep_cost = self.schedule.sweep_cost;
        for (_, known) in self.files.iter() {
            survey.files_unread += usize::from(known.outstanding() > 0);
            survey.bytes_unread += known.outstanding();
        }
        survey
    }

    /// The row of a file's generation as it was last handed over.
    ///
    /// # Errors
    /// When there is one and it can't be had: the file must then be left alone, since without its
    /// row any bytes inspect like its own.
    fn row(
        &self,
        key: FileKey,
        known: &KnownFile,
        intake: &dyn Intake,
    ) -> io::Result<CheckpointRow> {
        let path = || known.path.to_path_buf();
        let stored;
        let bytes = match self.uncommitted.get(&key) {
            Some((_, bytes)) => bytes,
            None if !known.has_row => return Ok(CheckpointRow::new(path(), 0)),
            None => match intake.checkpoint(&known.generation) {
                Some(bytes) => {
                    stored = bytes;
                    &stored
                }
                None => return Err(io::Error::other("the file's checkpoint can't be had")),
            },
        };
        CheckpointRow::decode(bytes)
            .map(|row| CheckpointRow { path: path(), ..row })
            .map_err(io::Error::other)
    }
}

/// Whether an error says that nothing lies at a path.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
