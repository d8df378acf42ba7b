//! Follows files that other programs write, and splits them into lines.
//!
//! Sweeps find every change; a watcher only speeds that up. A file is recognised by its bytes, not by
//! its name: the bytes between two rewrites are a *generation*, and its checkpoint records up to where
//! its lines are in the outbox. Lines are handed over in chunks together with the checkpoint that
//! covers them, so that neither can be stored without the other.
//!
//! `sweep` and `hints` find files that were changed, moved or deleted, `moves` follows moved ones,
//! `inspect` compares a file with its row and reads its next chunk, `decision` is the state machine as a
//! pure function, and `deleted` ends files that were deleted.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

pub use ai_agent_stage::{
    BadRow, BlockUpdate, Chunk, FileKey, GenerationId, Intake, Origin, Piece, Progress, Survey,
};

use crate::platform::{Clock, bounded::BoundedCalls, file::FileId};

mod access;
mod altered_lines;
mod backfill_hold;
mod block_hasher;
mod block_list;
mod check_schedule;
mod checkpoint;
mod decision;
mod deleted;
mod directory_walk;
mod file_table;
mod fingerprint;
#[cfg(feature = "internals")]
pub mod fuzzing;
mod generation_end;
mod generation_id;
mod hints;
mod inspect;
mod line_reader;
mod line_scan;
mod links;
mod listing;
mod long_line;
mod moves;
mod open_files;
mod partial_line;
mod row_update;
mod sweep;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod unreadable;
mod verify;
mod verify_schedule;
mod watcher;
mod watching;

use access::FileAccess;
pub use backfill_hold::{BackfillHold, ExpiryQuery, HoldQuery};
use backfill_hold::{ExpiryState, HoldState};
pub use block_list::updated_blocks;
use check_schedule::CheckSchedule;
use checkpoint::{CheckpointRow, CheckpointSummary};
pub use checkpoint::{has_starting_row, row_path, starting_row};
pub use directory_walk::Names;
use directory_walk::RootDirectory;
use file_table::{FileTable, KnownFile, Lane, age};
use fingerprint::EdgeSamples;
pub use generation_id::{NewGeneration, fresh_generation};
use line_reader::{LineReader, ReadSizes};
use links::LinkProblem;
use open_files::{DetachedFiles, OpenFile};
use sweep::Sweep;
use unreadable::UnreadablePaths;
use verify::Verifier;
pub use verify::VerifyResources;
use watcher::{Hints, Watcher};

/// Options of a tail.
#[derive(Clone, Debug)]
pub struct TailOptions {
    /// Directories whose files are followed, at any depth.
    pub roots: Vec<PathBuf>,
    /// Home directory of the user; a link to a directory that contains it is not followed.
    pub home: Option<PathBuf>,
    /// Names of the files that are followed.
    pub names: Names,
    /// Longest line, in bytes without its ending, that is handed over whole.
    pub max_record_bytes: u64,
    /// Size of a part of a longer line, in bytes.
    pub part_bytes: u64,
    /// Number of bytes that are read at once, and largest size of a chunk unless it is a single
    /// longer line.
    pub chunk_bytes: u64,
    /// Largest number of open files.
    pub open_files: usize,
    /// Largest number of unread bytes for which deleted files are kept open, in total.
    pub drain_bytes: u64,
    /// Longest time for which a deleted file is kept open.
    pub drain_time: Duration,
    /// Time without a read after which a file is closed.
    pub quiet_after: Duration,
    /// Time without a change after which an incomplete last line is copied into the row.
    pub keep_after: Duration,
    /// Longest time between two full sweeps.
    pub poll_interval: Duration,
    /// True to use the change notifications of the operating system.
    pub watch: bool,
}

impl Default for TailOptions {
    fn default() -> Self {
        Self {
            roots: Vec::new(),
            home: None,
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
/// Synchronous and single-threaded: a source calls [`Tail::read`] with the group that the pipeline is
/// building, and [`Tail::committed`] once the group is stored. If the group cannot be stored,
/// [`Tail::restore`] starts again from the stored rows.
pub struct Tail {
    options: TailOptions,
    clock: Arc<dyn Clock>,
    new_generation: NewGeneration,
    schedule: CheckSchedule,
    hints: Arc<Hints>,
    watcher: Option<Arc<Watcher>>,
    /// Roots that the last sweep found.
    roots: Vec<RootDirectory>,
    /// Links to directories that the last sweep followed.
    followed: Vec<RootDirectory>,
    access: FileAccess,
    /// Number of places that had answered again when that was last noticed.
    revived: u64,
    files: FileTable,
    /// Open files, at most `options.open_files` with the retired ones.
    open: BTreeMap<FileKey, OpenFile>,
    /// Ended files, each open until the group with its end is stored.
    retired: Vec<(u64, OpenFile)>,
    /// Time of the last [`Tail::tend`].
    last_tended: Duration,
    /// Rows that were handed over and may not be stored yet, each with the number of its group.
    uncommitted: HashMap<FileKey, (u64, Vec<u8>)>,
    /// Number of the current group.
    group: u64,
    /// Sweep in progress.
    sweep: Option<Sweep>,
    unreadable: UnreadablePaths,
    /// Hold on files that do not grow.
    hold: HoldState,
    expiry: ExpiryState,
    reader: LineReader,
    edges: EdgeSamples,
    /// Number of slices of lines with runs of NUL that may be scanned before the group is stored.
    slices_left: u32,
    /// `None` while it runs, and if files are not verified.
    verifier: Option<Verifier>,
}

/// Number of slices that are scanned before [`Tail::read`] returns, so that records of other files
/// do not wait in the group.
const SLICES_PER_GROUP: u32 = 8;

impl Tail {
    /// Creates a tail of the files below `options.roots` that has no known files.
    ///
    /// `wake` is called from another thread when a change was reported.
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
        let calls = BoundedCalls::new(Arc::clone(&clock));
        Self {
            schedule: CheckSchedule::new(options.poll_interval, Arc::clone(&clock)),
            clock,
            new_generation,
            hints: Arc::new(Hints::new(wake)),
            watcher: None,
            roots: Vec::new(),
            followed: Vec::new(),
            access: FileAccess::new(calls, &options.roots),
            revived: 0,
            files: FileTable::default(),
            open: BTreeMap::new(),
            retired: Vec::new(),
            last_tended: Duration::ZERO,
            uncommitted: HashMap::new(),
            group: 0,
            sweep: None,
            unreadable: UnreadablePaths::default(),
            hold: HoldState::default(),
            expiry: ExpiryState::default(),
            reader: LineReader::new(sizes),
            edges: EdgeSamples::default(),
            slices_left: 0,
            verifier: None,
            options,
        }
    }

    /// Uses `calls` to call file systems, so that other parts of the agent know the same places.
    #[must_use]
    pub fn with_calls(mut self, calls: &BoundedCalls) -> Self {
        self.revived = calls.revived();
        self.access.set_calls(calls.clone());
        self
    }

    /// Calls `query` periodically to learn which files that do not grow are held back.
    #[must_use]
    pub fn with_hold_query(mut self, query: HoldQuery) -> Self {
        self.hold = HoldState::new(query);
        self
    }

    /// Calls `query` periodically to learn which files may soon be deleted: these are read even while
    /// a backlog waits in its files.
    #[must_use]
    pub fn with_expiry_query(mut self, query: ExpiryQuery) -> Self {
        self.expiry = ExpiryState::new(query);
        self
    }

    /// Verifies files against the hashes of what was read, while nothing is unread.
    #[must_use]
    pub fn with_verification(mut self, resources: VerifyResources) -> Self {
        self.verifier = Some(Verifier::new(resources));
        self
    }

    /// Returns true if only files that do not grow are queued.
    #[must_use]
    pub fn is_backfill(&self) -> bool {
        self.schedule.has_swept && self.files.is_backfill()
    }

    /// Takes over the files of `old`, which has other options; [`Tail::restore`] must follow. Files
    /// keep their keys, and deleted files stay open.
    pub fn inherit(&mut self, old: Self) {
        let Self { files, open, retired, verifier, schedule, .. } = old;
        (self.files, self.open, self.retired) = (files, open, retired);
        self.schedule.continue_time_of(&schedule);
        if let (Some(new), Some(old)) = (&mut self.verifier, verifier) {
            new.inherit(old);
        }
    }

    /// Adds a root.
    pub fn follow(&mut self, root: PathBuf) {
        if !self.options.roots.contains(&root) {
            self.options.roots.push(root);
            self.schedule.request_sweep_now();
        }
    }

    /// Requests a sweep, after the machine has slept.
    pub fn resume(&mut self) {
        self.schedule.request_sweep_now();
        let now = self.schedule.now();
        if let Some(verifier) = &mut self.verifier {
            verifier.schedule.resume(now);
        }
    }

    /// Starts again from the stored rows: at start, and after a group could not be stored.
    ///
    /// A file keeps its key as long as it keeps its path.
    ///
    /// # Errors
    /// [`BadRow`] for an invalid row: its file must not be read from the beginning as if it were new.
    pub fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        let before = std::mem::take(&mut self.files);
        let mut handles = self.detach_handles();
        self.uncommitted.clear();
        self.unreadable.groups_lost();
        self.sweep = None;
        self.verifier.iter_mut().for_each(Verifier::restart);
        self.schedule.restart();
        for (generation, bytes) in rows {
            let row = match CheckpointRow::summary(&bytes) {
                Ok(row) => row,
                Err(source) => {
                    self.keep_unstored(handles);
                    return Err(BadRow::new(generation, source));
                }
            };
            self.restore_row(&before, &mut handles, generation, row, &bytes);
        }
        self.keep_unstored(handles);
        Ok(())
    }

    fn restore_row(
        &mut self,
        before: &FileTable,
        handles: &mut DetachedFiles,
        generation: GenerationId,
        row: CheckpointSummary,
        bytes: &[u8],
    ) {
        // If two generations have one path, one of the files was deleted before its end was read.
        let other = self.files.at(&row.path);
        let is_deleted = other.is_some_and(|other| !self.is_superseded_by(other, &row));
        if let Some(other) = other.filter(|_| !is_deleted) {
            self.files.leave_path(other, &row.path);
            self.drain_and_end(other);
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
        known.has_saved_line = row.has_saved_line;
        known.changed = self.schedule.now();
        known.last_sweep = self.schedule.sweeps;
        self.schedule.mark_hot(key, age(&row.stamp, self.clock.now()));
        if known.unread() > 0 {
            self.schedule.add_partial_line(key);
        }
        self.attach_handle(handles, key, &known, bytes);
        if is_deleted {
            self.files.add_deleted(key, known);
            self.drain_and_end(key);
        } else {
            self.files.add(key, known);
        }
    }

    /// Returns true if the file at the path of `row` belongs to `row` and not to a known file with
    /// the same path; if that is unknown, whether more was read of `row`.
    fn is_superseded_by(&self, known: FileKey, row: &CheckpointSummary) -> bool {
        let Some(known) = self.files.get(known) else { return true };
        let here = self.access.inspect(&row.path).ok().and_then(|info| info.stamp.id);
        let is_here = |id: Option<FileId>| id.is_some() && id == here;
        (is_here(row.stamp.id), row.offset) > (is_here(known.id), known.offset)
    }

    /// Drains and ends a file that is no longer at its path.
    fn drain_and_end(&mut self, key: FileKey) {
        if let Some(known) = self.files.get_mut(key) {
            known.is_deleted = true;
            self.start_drain(key);
            self.files.enqueue(key, Lane::Live, 0);
        }
    }

    /// Hands over chunks until `intake` has no room or nothing is unread.
    pub fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        let (mut has_read, mut is_held) = (false, false);
        self.slices_left = SLICES_PER_GROUP;
        loop {
            if !intake.has_room() || self.slices_left == 0 {
                return Progress::More;
            }
            self.find_changes(intake);
            self.report_unreadable(intake);
            // Saved lines and moves may have filled the group: what was found is read into the next
            // one. Otherwise a backlog would count as one that waits for delivery.
            if !intake.has_room() {
                return Progress::More;
            }
            // The oldest files are known after the first sweep.
            let has_swept = self.schedule.has_swept;
            let next = match has_swept {
                // The order of a log says nothing about its age.
                true if self.files.is_backfill()
                    && self.options.names.is_recursive()
                    && !intake.has_room_for_backfill() =>
                {
                    is_held = false;
                    let (uptime, now) = (self.schedule.now(), self.clock.now());
                    self.files.next(self.expiry.expiring_times(uptime, now))
                }
                true if self.files.is_backfill() => {
                    let (uptime, now) = (self.schedule.now(), self.clock.now());
                    is_held = true;
                    let hold = &mut self.hold;
                    self.files.next(hold.readable_times(uptime, now))
                }
                true => self.files.next(|_| true),
                false => self.files.next_live(),
            };
            let Some((key, lane, modified)) = next else {
                if self.sweep.is_some() && has_read {
                    return Progress::More;
                }
                if self.sweep.is_none() {
                    self.start_watching();
                }
                if self.sweep.is_some() || self.schedule.needs_sweep_to_be_idle() {
                    continue;
                }
                break;
            };
            if self.schedule.must_start_watching() {
                self.start_watching();
            }
            has_read = true;
            if self.inspect(key, lane, intake) {
                self.files.enqueue(key, lane, modified);
            } else if lane == Lane::Backfill {
                self.open.remove(&key);
            }
        }
        self.report_unreadable(intake);
        if self.verify(intake) {
            return Progress::More;
        }
        self.close_quiet();
        let next = self.schedule.until_next();
        let next = self.until_verification().map_or(next, |verification| next.min(verification));
        // While a backlog waits for delivery, the query is not repeated, and stays due.
        match self.files.is_backfill() && is_held {
            true => Progress::Idle { next: next.min(self.hold.until_query(self.schedule.now())) },
            false => Progress::Idle { next },
        }
    }

    fn report_unreadable(&mut self, intake: &mut dyn Intake) {
        for event in self.unreadable.due_events(self.group) {
            intake.report(event.into());
        }
    }

    /// Records that the group with all chunks so far is being stored: further chunks belong to the
    /// next one.
    pub fn sealed(&mut self) {
        self.group += 1;
    }

    /// Records that everything handed over before the last call of [`sealed`](Self::sealed) is
    /// stored. Files that ended in it must not be read again if the next group fails.
    pub fn committed(&mut self) {
        let current = self.group;
        self.uncommitted.retain(|_, (group, _)| *group >= current);
        self.uncommitted.shrink_to(64);
        self.unreadable.stored_before(current);
        self.release_stored();
    }

    /// Returns statistics.
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
        survey.is_verifying = self.verifier.is_some();
        survey.verified_at = self.verifier.as_ref().and_then(Verifier::pass_ended);
        for (_, known) in self.files.iter() {
            survey.files_unread += usize::from(known.outstanding() > 0);
            survey.bytes_unread = survey.bytes_unread.saturating_add(known.outstanding());
            survey.files_incomplete += usize::from(known.incomplete() > 0);
            survey.bytes_incomplete = survey.bytes_incomplete.saturating_add(known.incomplete());
        }
        survey
    }

    /// Returns the row of a file's generation as it was last handed over.
    ///
    /// # Errors
    /// If there is a row and it cannot be read. The file must then not be read: without its row, any
    /// bytes would match it.
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
                None => return Err(io::Error::other("cannot read the checkpoint of the file")),
            },
        };
        CheckpointRow::decode(bytes)
            .map(|row| CheckpointRow { path: path(), ..row })
            .map_err(io::Error::other)
    }
}

/// Returns true if an error means that nothing is at a path, or a link that leads to nothing.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || LinkProblem::of(error) == Some(&LinkProblem::Broken)
}
