//! Finds changes: by full sweeps, by hints, and by checks of files that changed recently.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ai_agent_stage::{FileKey, Intake};

use super::{
    Tail,
    directory_walk::{self, FoundFile, RootDirectory, Walk},
    file_table::{KnownFile, Lane, age},
    is_absent,
    links::LinkProblem,
};
use crate::platform::{
    bounded::DoesNotAnswer,
    file::{FileKind, Stamp},
};

/// Age from which a new file is queued behind files that grow.
const OLD: Duration = Duration::from_secs(600);

/// Number of entries per slice of a sweep, and cost of a directory in entries.
const SLICE: usize = 512;
const DIRECTORY_COST: usize = 4;

/// A sweep in progress. Files that cannot wait for its end are read between two slices.
#[derive(Debug)]
pub(super) struct Sweep {
    number: u32,
    roots: Vec<RootDirectory>,
    walk: Walk,
    /// Number of files found so far.
    found: u64,
    /// Paths that could not be listed.
    failed: Vec<PathBuf>,
    /// Known files that were found at a path that is not theirs.
    moved: Vec<(FileKey, PathBuf, Stamp)>,
    /// Known files with another file at their path.
    replaced: Vec<(FileKey, Stamp)>,
    /// Duration so far.
    cost: Duration,
}

/// Kind of check that found a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FoundBy {
    /// A sweep, which finds all files and so the new paths of moved ones.
    Sweep,
    /// A check of this file alone.
    Check,
}

impl Tail {
    /// Executes the steps that are due: applies hints, checks hot files, continues the sweep.
    pub(super) fn find_changes(&mut self, intake: &mut dyn Intake) {
        self.notice_revived_places();
        // Hints can be interpreted only after the first sweep.
        if self.schedule.has_swept
            && let Some(hinted) = self.hints.drain()
        {
            self.apply_hints(hinted);
        }
        for directory in self.schedule.due_directories() {
            self.list(directory);
        }
        for key in self.schedule.due_settling_files() {
            self.files.enqueue(key, Lane::Live, 0);
        }
        if let Some(hot) = self.schedule.due_hot_files() {
            let started = self.schedule.now();
            self.check_hot_files(&hot);
            self.schedule.end_hot_check(started + self.access.take_lost());
            self.save_partial_lines(intake);
        }
        if self.sweep.is_some() || self.schedule.is_sweep_due() {
            self.continue_sweep(intake);
        }
    }

    /// Sweeps when a place answers again, since nothing was found there meanwhile.
    fn notice_revived_places(&mut self) {
        let revived = self.access.calls().revived();
        if self.revived != revived {
            self.revived = revived;
            let silent = self.access.calls().silent();
            let is_silent = |path: &Path| silent.iter().any(|(place, _)| place == path);
            self.unreadable.remove_answering(is_silent);
            self.schedule.request_sweep_now();
        }
    }

    /// Checks the files that changed recently, and whether missing roots exist by now.
    fn check_hot_files(&mut self, hot: &[FileKey]) {
        let known = |key: &FileKey| self.files.get(*key).filter(|known| !known.is_deleted);
        let paths = hot.iter().filter_map(known).map(|known| known.path.to_path_buf());
        let mut inspected = self.access.inspect_all(paths.collect());
        for key in hot {
            let Some(known) = self.files.get_mut(*key).filter(|known| !known.is_deleted) else {
                self.schedule.forget(*key);
                continue;
            };
            match inspected
                .remove(&*known.path)
                .unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
            {
                Ok(info) if info.kind == FileKind::File => {
                    if std::mem::take(&mut known.is_racy) {
                        known.drained = None;
                    }
                    self.check_known(*key, info.stamp, FoundBy::Check);
                }
                Err(error) if DoesNotAnswer::of(&error).is_some() => {}
                _ => {
                    self.schedule.request_sweep_soon();
                    self.schedule.forget(*key);
                }
            }
        }
        let exists = |root: &PathBuf| self.access.exists(root);
        if self.schedule.absent_roots.iter().any(exists) {
            self.schedule.request_sweep_now();
        }
    }

    /// Continues the sweep by one slice, or starts one.
    fn continue_sweep(&mut self, intake: &mut dyn Intake) {
        let started = self.schedule.now();
        let mut sweep = self.sweep.take().unwrap_or_else(|| self.start_sweep());
        let mut left = SLICE;
        while left > 0 && !sweep.walk.is_over() {
            left = left.saturating_sub(DIRECTORY_COST + self.sweep_directory(&mut sweep, intake));
        }
        let is_over = sweep.walk.is_over();
        if is_over {
            self.end_sweep(&mut sweep, intake);
        }
        let cost = self.schedule.now().saturating_sub(started);
        // Otherwise a place that does not answer would delay the next sweep of the others.
        sweep.cost += cost.saturating_sub(self.access.take_lost());
        if is_over {
            self.roots = sweep.roots;
            self.followed = sweep.walk.take_followed();
            self.schedule.end_sweep(sweep.cost);
            self.save_partial_lines(intake);
        } else {
            self.sweep = Some(sweep);
        }
    }

    fn start_sweep(&mut self) -> Sweep {
        let number = self.schedule.start_sweep();
        let mut failed = Vec::new();
        self.schedule.absent_roots.clear();
        let roots = directory_walk::resolve(&self.options.roots, &self.access, |path, error| {
            if is_absent(&error) {
                self.schedule.absent_roots.push(path.to_owned());
            } else {
                self.unreadable.add(path, &error, number);
            }
            failed.push(path.to_owned());
        });
        self.watch_roots(&roots);
        self.access.start_sweep(&self.options.roots, &roots, self.options.home.as_deref());
        let directories = roots.iter().map(|root| root.configured.clone()).collect();
        let walk = Walk::new(directories, &self.options.names, self.access.clone());
        let (moved, replaced, cost) = (Vec::new(), Vec::new(), Duration::ZERO);
        Sweep { number, roots, walk, found: 0, failed, moved, replaced, cost }
    }

    /// Checks all files in the next directory; returns its number of entries.
    fn sweep_directory(&mut self, sweep: &mut Sweep, intake: &mut dyn Intake) -> usize {
        let watch = self.watch_attempt();
        let Sweep { number, walk, found, failed, moved, replaced, .. } = sweep;
        let mut unlisted = Vec::new();
        let visit = |FoundFile { path, stamp, is_linked }: FoundFile| {
            *found += 1;
            intake.saw(*found);
            match self.files.at(&path) {
                Some(key) => {
                    let Some(known) = self.files.get_mut(key) else { return };
                    if stamp.id.is_none() || stamp.id == known.id {
                        known.last_sweep = *number;
                        self.check_known(key, stamp, FoundBy::Sweep);
                        return;
                    }
                    replaced.push((key, stamp));
                    if let Some(other) = stamp.id.and_then(|id| self.files.with_id(id)) {
                        moved.push((other, path, stamp));
                    }
                }
                None => match stamp.id.and_then(|id| self.files.with_id(id)) {
                    // It was found under another path already.
                    Some(key) if is_linked && self.is_found(key, *number) => {}
                    Some(key) => moved.push((key, path, stamp)),
                    None => self.add_new_file(&path, stamp),
                },
            }
        };
        let fail = |path: &Path, error| unlisted.push((path.to_owned(), error));
        let count = walk.list(watch.call(), visit, fail);
        self.note_watched(&watch);
        for (path, error) in unlisted {
            let problem = LinkProblem::of(&error);
            if problem.is_some() || !is_absent(&error) {
                self.unreadable.add(&path, &error, *number);
            }
            // The file to which a link led is no longer here. Files below a link to a directory that
            // is missing may come back with it, for example with its file system.
            let is_known_link = problem.is_some() && self.files.at(&path).is_some();
            if !is_known_link {
                failed.push(path);
            }
        }
        count
    }

    /// Returns true if a sweep has found a file.
    pub(super) fn is_found(&self, key: FileKey, sweep: u32) -> bool {
        self.files.get(key).is_some_and(|known| known.last_sweep == sweep)
    }

    fn set_found(&mut self, key: FileKey, sweep: u32) {
        if let Some(known) = self.files.get_mut(key) {
            known.last_sweep = sweep;
        }
    }

    /// Returns true if the sweep before this one missed the file too. A single sweep misses a file
    /// that is renamed behind its back.
    fn was_missed_before(&self, key: FileKey, sweep: u32) -> bool {
        self.files.get(key).is_some_and(|known| sweep - known.last_sweep > 1)
    }

    /// Completes a sweep: decides about files that were moved, replaced or deleted.
    fn end_sweep(&mut self, sweep: &mut Sweep, intake: &mut dyn Intake) {
        let number = sweep.number;
        for (key, stamp) in sweep.replaced.drain(..) {
            if self.was_missed_before(key, number) {
                self.check_known(key, stamp, FoundBy::Sweep);
                self.set_found(key, number);
            }
        }
        let mut vacated = Vec::new();
        for (key, path, stamp) in sweep.moved.drain(..) {
            let occupant = self.files.at(&path).filter(|occupant| *occupant != key);
            let Some(is_moved) = self.follow_move(key, &path, &mut vacated, intake) else {
                // Undecided: the file counts as neither deleted nor new.
                self.set_found(key, number);
                continue;
            };
            if is_moved {
                // The file that was there is deleted, unless it is found elsewhere.
                if let Some(known) = occupant.and_then(|occupant| self.files.get_mut(occupant)) {
                    known.last_sweep = known.last_sweep.min(number - 1);
                }
            } else if self.files.at(&path).is_none() {
                self.add_new_file(&path, stamp);
            }
        }
        for (path, stamp) in vacated {
            if self.files.at(&path).is_some() {
                continue;
            }
            match stamp.id.and_then(|id| self.files.with_id(id)) {
                Some(_) => self.schedule.request_sweep_soon(),
                None => self.add_new_file(&path, stamp),
            }
        }
        self.excuse_unlisted_files(&sweep.failed, number);
        // A file that was moved meanwhile may be where the sweep had already been. The next sweep
        // finds it.
        if !self.schedule.is_sweep_required() {
            self.end_missing_files(&sweep.roots, intake);
        }
        if !self.unreadable.is_empty() {
            let deleted = self.files.iter().filter(|(_, known)| known.is_deleted);
            let deleted: HashSet<&Path> = deleted.map(|(_, known)| &*known.path).collect();
            let is_known = |path: &Path| self.files.at(path).is_some() || deleted.contains(path);
            self.unreadable.remove_before(number, is_known);
        }
    }

    /// Counts files below paths that could not be listed as found: only a sweep that lists a directory
    /// can miss its files.
    fn excuse_unlisted_files(&mut self, failed: &[PathBuf], sweep: u32) {
        if failed.is_empty() {
            return;
        }
        let is_unlisted = |known: &KnownFile| {
            known.last_sweep != sweep
                && !known.is_deleted
                && failed.iter().any(|failed| known.path.starts_with(failed))
        };
        let unlisted: Vec<FileKey> =
            self.files.iter().filter(|(_, known)| is_unlisted(known)).map(|(key, _)| key).collect();
        for key in unlisted {
            self.set_found(key, sweep);
        }
    }

    /// Ends the files that the sweep did not find although everything above them was listed.
    fn end_missing_files(&mut self, roots: &[RootDirectory], intake: &mut dyn Intake) {
        let sweep = self.schedule.sweeps;
        let is_missing = |known: &KnownFile| {
            known.last_sweep != sweep
                && !known.is_deleted
                && roots.iter().any(|root| known.path.starts_with(&root.configured))
        };
        let mut missing: Vec<_> =
            self.files.iter().filter(|(_, known)| is_missing(known)).map(|(key, _)| key).collect();
        missing.sort_unstable();
        let (deleted, missed): (Vec<FileKey>, Vec<FileKey>) =
            missing.into_iter().partition(|key| self.was_missed_before(*key, sweep));
        for key in missed {
            // Files that are deleted one after the other must not cause sweep after sweep without a
            // pause. The unread bytes of an open one may be lost with its handle.
            if deleted.is_empty() || self.open.contains_key(&key) {
                self.schedule.request_sweep_now();
            } else {
                self.schedule.request_sweep_soon();
            }
        }
        for key in deleted {
            self.handle_deleted(key, intake);
        }
    }

    /// Updates a known file that was found at its path, and queues it if it may have changed.
    pub(super) fn check_known(&mut self, key: FileKey, stamp: Stamp, found_by: FoundBy) {
        let now = self.schedule.now();
        let Some(known) = self.files.get_mut(key) else { return };
        // Read again now that its stamp would show a change.
        if found_by == FoundBy::Sweep && std::mem::take(&mut known.is_racy) {
            known.drained = None;
        }
        if known.drained.is_some_and(|drained| drained.agrees_with(&stamp)) {
            return;
        }
        let is_other = stamp.id.is_some() && known.id.is_some() && stamp.id != known.id;
        if is_other && known.replaced_by != stamp.id {
            if found_by == FoundBy::Check {
                // Only a sweep can determine whether the old file was moved.
                self.schedule.request_sweep_now();
                return;
            }
            known.replaced_by = stamp.id;
        } else if !is_other {
            known.replaced_by = None;
        }
        // A queued backfill file that is found again unchanged is not live.
        if !is_other && known.size == stamp.size && known.backfill_time() == Some(stamp.modified) {
            return;
        }
        if known.size != stamp.size || known.drained.is_some() {
            known.changed = now;
        }
        known.size = stamp.size;
        // After a start, files that grow do not wait for the others.
        let is_live = self.schedule.has_swept || age(&stamp, self.clock.now()) <= OLD;
        let path = Arc::clone(&known.path);
        self.enqueue_file(key, &path, &stamp, is_live);
    }

    /// Queues a file. A log and its rotated files are read in the order in which they were written:
    /// of two with the same modification time, the one that was rotated more often is older.
    fn enqueue_file(&mut self, key: FileKey, path: &Path, stamp: &Stamp, is_live: bool) {
        let (lane, modified) = match self.options.names.rotations(path) {
            Some(rotations) => (Lane::Backfill, stamp.modified.saturating_sub(rotations)),
            None if is_live => (Lane::Live, stamp.modified),
            None => (Lane::Backfill, stamp.modified),
        };
        self.files.enqueue(key, lane, modified);
    }

    /// Adds a file that is not known yet.
    pub(super) fn add_new_file(&mut self, path: &Path, stamp: Stamp) {
        let key = FileKey::fresh();
        let mut known = KnownFile::new(path, (self.new_generation)());
        known.id = stamp.id;
        known.size = stamp.size;
        known.last_sweep = self.schedule.sweeps;
        known.changed = self.schedule.now();
        self.files.add(key, known);
        let is_old = age(&stamp, self.clock.now()) > OLD;
        let is_live = self.schedule.has_swept && !is_old;
        self.enqueue_file(key, path, &stamp, is_live);
    }
}
