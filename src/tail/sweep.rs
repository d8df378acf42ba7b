//! Finds what changed: by full sweeps, by hints, and by looks at files that changed recently.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use siem_protocol::AgentEvent;

use super::{
    Tail,
    chunk::{Chunk, FileKey, Intake},
    decision::{Decision, FoundAt, OldPath, decide},
    files::{KnownFile, Lane},
    inspect::{age, origin},
    is_absent,
    schedule::Schedule,
    walk::{self, Root, Walk},
    watcher::{Hinted, Watcher, may_be_directory},
};
use crate::platform::file::{self, FileInfo, FileKind, Stamp};

/// A new file last changed longer ago is old, and waits for those that grow.
const OLD: Duration = Duration::from_secs(600);

/// How many entries are listed at a time, and as how many a directory counts itself.
const SLICE: usize = 512;
const DIRECTORY: usize = 4;

/// A sweep on its way: between two of its slices files are read that cannot wait for its end.
#[derive(Debug)]
pub(super) struct Sweep {
    number: u32,
    roots: Vec<Root>,
    walk: Walk,
    /// How many files were found so far.
    found: u64,
    /// What could not be listed.
    failed: Vec<PathBuf>,
    /// KnownFile files that were found under another path, or another one of theirs.
    moved: Vec<(FileKey, PathBuf, Stamp)>,
    /// KnownFile files in whose place another lies.
    replaced: Vec<(FileKey, Stamp)>,
    /// How long it took so far.
    cost: Duration,
}

/// Who saw a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FoundBy {
    /// A sweep: it sees all files, and so where a moved one lies.
    Sweep,
    /// A inspect at this file alone.
    Check,
}

impl Tail {
    /// Does what is due: takes hints, looks at hot files, sweeps on.
    pub(super) fn find_changes(&mut self, intake: &mut dyn Intake) {
        // ReplacedFile the first sweep is over nobody knows what a hint is about.
        if self.schedule.has_swept
            && let Some(hinted) = self.hints.take()
        {
            self.apply_hints(hinted);
        }
        for directory in self.schedule.young() {
            self.list(directory);
        }
        for key in self.schedule.settling() {
            self.files.enqueue(key, Lane::Live, 0);
        }
        if let Some(hot) = self.schedule.hot() {
            let begun = self.schedule.now();
            self.check_hot_files(&hot);
            self.schedule.end_hot(begun);
            self.save_partial_lines(intake);
        }
        if self.sweep.is_some() || self.schedule.is_sweep_due() {
            self.sweep_on(intake);
        }
    }

    fn apply_hints(&mut self, hinted: Hinted) {
        if hinted.is_blind {
            self.schedule.blind();
        }
        if hinted.is_incomplete {
            self.schedule.sweep_soon();
        }
        if hinted.paths.is_empty() || !self.schedule.has_swept {
            return;
        }
        let roots = std::mem::take(&mut self.roots);
        for path in hinted.paths {
            self.apply_hint(&roots, &path);
        }
        self.roots = roots;
    }

    fn apply_hint(&mut self, roots: &[Root], hinted: &Path) {
        let found = roots.iter().find_map(|root| Some((root, root.path_of(hinted)?)));
        let Some((root, path)) = found else { return };
        let is_file = self.options.names.are_of(&path);
        let FileInfo { kind, stamp } = match file::inspect(&path) {
            Ok(sight) => sight,
            Err(_) => {
                // Gone or moved, alone or with what lay in it: a sweep tells.
                if self.files.at(&path).is_some() || may_be_directory(&path) {
                    self.schedule.sweep_soon();
                }
                return;
            }
        };
        if !walk::is_reached_without_symlinks(&root.configured, &path) {
            return;
        }
        if kind == FileKind::Directory {
            if path == root.configured {
                self.schedule.sweep_soon();
            } else if self.options.names.are_at_any_depth() {
                self.list(path.clone());
                self.schedule.list_again(path);
            }
        } else if kind == FileKind::File && is_file {
            self.check_path(&path, stamp);
        }
    }

    /// Looks at all files below a directory.
    fn list(&mut self, directory: PathBuf) {
        let mut walk = Walk::new(vec![directory], &self.options.names);
        while let Some(directory) = walk.next() {
            self.watch(directory);
            // What can't be listed is reported by the next sweep.
            walk.list(|path, stamp| self.check_path(&path, stamp), |_, _| {});
        }
    }

    fn check_path(&mut self, path: &Path, stamp: Stamp) {
        match self.files.at(path) {
            Some(key) => self.see(key, stamp, FoundBy::Check),
            None => {
                let is_known = stamp.id.and_then(|id| self.files.with_id(id));
                if is_known.is_some() {
                    // Moved here, perhaps.
                    self.schedule.sweep_now();
                } else {
                    self.add_new_file(path, stamp);
                }
            }
        }
    }

    /// Looks at the files that changed recently, and for roots that were not there.
    fn check_hot_files(&mut self, hot: &[FileKey]) {
        for key in hot {
            let Some(known) = self.files.get_mut(*key).filter(|known| !known.is_gone) else {
                self.schedule.forget(*key);
                continue;
            };
            match file::inspect(&known.path) {
                Ok(sight) if sight.kind == FileKind::File => {
                    if std::mem::take(&mut known.is_racy) {
                        known.drained = None;
                    }
                    self.see(*key, sight.stamp, FoundBy::Check);
                }
                _ => {
                    self.schedule.sweep_soon();
                    self.schedule.forget(*key);
                }
            }
        }
        let is_there = |root: &PathBuf| fs::metadata(root).is_ok();
        if self.schedule.absent_roots.iter().any(is_there) {
            self.schedule.sweep_now();
        }
    }

    /// Sweeps on for a little while.
    fn sweep_on(&mut self, intake: &mut dyn Intake) {
        let begun = self.schedule.now();
        let mut sweep = self.sweep.take().unwrap_or_else(|| self.begin_sweep());
        let mut left = SLICE;
        while left > 0
            && let Some(directory) = sweep.walk.next()
        {
            self.watch(directory);
            left = left.saturating_sub(DIRECTORY + self.sweep_directory(&mut sweep, intake));
        }
        let is_over = sweep.walk.next().is_none();
        if is_over {
            self.end_sweep(&mut sweep, intake);
        }
        sweep.cost += self.schedule.now().saturating_sub(begun);
        if is_over {
            self.roots = sweep.roots;
            self.schedule.end_sweep(sweep.cost);
            self.save_partial_lines(intake);
        } else {
            self.sweep = Some(sweep);
        }
    }

    fn begin_sweep(&mut self) -> Sweep {
        let number = self.schedule.begin_sweep();
        let mut failed = Vec::new();
        self.schedule.absent_roots.clear();
        let roots = walk::resolve(&self.options.roots, |path, error| {
            if is_absent(&error) {
                self.schedule.absent_roots.push(path.to_owned());
            } else {
                self.unreadable.note(path, &error, number);
            }
            failed.push(path.to_owned());
        });
        self.watch_roots(&roots);
        let directories = roots.iter().map(|root| root.configured.clone()).collect();
        let walk = Walk::new(directories, &self.options.names);
        let (moved, replaced, cost) = (Vec::new(), Vec::new(), Duration::ZERO);
        Sweep { number, roots, walk, found: 0, failed, moved, replaced, cost }
    }

    /// Looks at all files in the next directory, and says how many entries it has.
    fn sweep_directory(&mut self, sweep: &mut Sweep, intake: &mut dyn Intake) -> usize {
        let Sweep { number, walk, found, failed, moved, replaced, .. } = sweep;
        let mut unlisted = Vec::new();
        let visit = |path: PathBuf, stamp: Stamp| {
            *found += 1;
            intake.saw(*found);
            match self.files.at(&path) {
                Some(key) => {
                    let Some(known) = self.files.get_mut(key) else { return };
                    known.seen = *number;
                    if stamp.id.is_none() || stamp.id == known.id {
                        self.see(key, stamp, FoundBy::Sweep);
                        return;
                    }
                    replaced.push((key, stamp));
                    if let Some(other) = stamp.id.and_then(|id| self.files.with_id(id)) {
                        moved.push((other, path, stamp));
                    }
                }
                None => match stamp.id.and_then(|id| self.files.with_id(id)) {
                    Some(key) => moved.push((key, path, stamp)),
                    None => self.add_new_file(&path, stamp),
                },
            }
        };
        let count = walk.list(visit, |path, error| unlisted.push((path.to_owned(), error)));
        for (path, error) in unlisted {
            if !is_absent(&error) {
                self.unreadable.note(&path, &error, *number);
            }
            failed.push(path);
        }
        count
    }

    /// All was listed: judges what only that could tell.
    fn end_sweep(&mut self, sweep: &mut Sweep, intake: &mut dyn Intake) {
        let number = sweep.number;
        for (key, stamp) in sweep.replaced.drain(..) {
            self.see(key, stamp, FoundBy::Sweep);
        }
        let mut vacated = Vec::new();
        for (key, path, stamp) in sweep.moved.drain(..) {
            let occupant = self.files.at(&path).filter(|occupant| *occupant != key);
            let Some(is_moved) = self.follow_move(key, &path, &mut vacated, intake) else {
                // Neither gone nor new, as long as nobody knows.
                if let Some(known) = self.files.get_mut(key) {
                    known.seen = number;
                }
                continue;
            };
            if is_moved {
                // What lay there before is gone, unless it is found elsewhere.
                if let Some(known) = occupant.and_then(|occupant| self.files.get_mut(occupant)) {
                    known.seen = 0;
                }
            } else if self.files.at(&path).is_none() {
                self.add_new_file(&path, stamp);
            }
        }
        for (path, stamp) in vacated {
            if self.files.at(&path).is_none() {
                self.add_new_file(&path, stamp);
            }
        }
        // What was moved meanwhile may lie where the sweep had been before; the next one sees it.
        if !self.schedule.is_sweep_asked_now() {
            self.end_missing_files(&sweep.roots, &sweep.failed, intake);
        }
        self.unreadable.forget_before(number, |path| self.files.at(path).is_some());
    }

    /// Sweeps once more, with a watcher. Not with the first sweep: while all files are read for the
    /// first time the watcher would tell of each one that is opened, and that costs more than to
    /// inspect at all of them again.
    pub(super) fn begin_to_watch(&mut self) {
        if self.may_watch() && !self.schedule.is_watching {
            self.schedule.sweep_now();
        }
    }

    fn may_watch(&self) -> bool {
        let Schedule { has_swept, watch_again, .. } = self.schedule;
        self.options.watch && has_swept && self.schedule.now() >= watch_again
    }

    fn watch_roots(&mut self, roots: &[Root]) {
        if !self.may_watch() {
            return;
        }
        if !self.schedule.is_watching {
            self.watcher = Watcher::new(&self.hints, &self.options.names);
        }
        match self.watcher.as_mut().map(|watcher| watcher.watch_roots(roots)) {
            Some(true) => self.schedule.is_watching = true,
            Some(false) | None => self.schedule.blind(),
        }
    }

    /// Watches a directory that is listed next.
    fn watch(&mut self, directory: &Path) {
        if self.schedule.is_watching
            && let Some(watcher) = &self.watcher
            && !watcher.watch(directory)
        {
            self.schedule.blind();
        }
    }

    /// EdgeSamples the files that the sweep did not see, although everything above them was listed.
    fn end_missing_files(&mut self, roots: &[Root], failed: &[PathBuf], intake: &mut dyn Intake) {
        let sweep = self.schedule.sweeps;
        let is_lost = |known: &KnownFile| {
            known.seen != sweep
                && !known.is_gone
                && roots.iter().any(|root| known.path.starts_with(&root.configured))
                && !failed.iter().any(|failed| known.path.starts_with(failed))
        };
        let mut lost: Vec<_> =
            self.files.iter().filter(|(_, known)| is_lost(known)).map(|(key, _)| key).collect();
        lost.sort_unstable();
        for key in lost {
            self.handle_deleted(key, intake);
        }
    }

    /// A known file was seen at its path.
    fn see(&mut self, key: FileKey, stamp: Stamp, seen: FoundBy) {
        let now = self.schedule.now();
        let Some(known) = self.files.get_mut(key) else { return };
        // Once more, when its stamp would show a change.
        if seen == FoundBy::Sweep && std::mem::take(&mut known.is_racy) {
            known.drained = None;
        }
        if known.drained.is_some_and(|drained| drained.agrees_with(&stamp)) {
            return;
        }
        let is_other = stamp.id.is_some() && known.id.is_some() && stamp.id != known.id;
        if is_other && known.replaced_by != stamp.id {
            if seen == FoundBy::Check {
                // Only a sweep knows whether the file that lay here lies elsewhere.
                self.schedule.sweep_now();
                return;
            }
            known.replaced_by = stamp.id;
        } else if !is_other {
            known.replaced_by = None;
        }
        // One that waits its turn among old files does not grow because it is seen again.
        if !is_other && known.size == stamp.size && known.waits_since() == Some(stamp.modified) {
            return;
        }
        if known.size != stamp.size || known.drained.is_some() {
            known.changed = now;
        }
        known.size = stamp.size;
        // After a start the files that grow are not kept waiting for the rest.
        let is_live = self.schedule.has_swept || age(&stamp, self.clock.now()) <= OLD;
        let path = Arc::clone(&known.path);
        self.enqueue_file(key, &path, &stamp, is_live);
    }

    /// Lets a file wait to be read. A log and what it was renamed to are read in the order in which
    /// they were written: of two that changed in one tick of the clock, what was renamed more often
    /// is older.
    fn enqueue_file(&mut self, key: FileKey, path: &Path, stamp: &Stamp, is_live: bool) {
        let (lane, modified) = match self.options.names.rotations(path) {
            Some(rotations) => (Lane::Backfill, stamp.modified.saturating_sub(rotations)),
            None if is_live => (Lane::Live, stamp.modified),
            None => (Lane::Backfill, stamp.modified),
        };
        self.files.enqueue(key, lane, modified);
    }

    /// A file was seen that is not known.
    fn add_new_file(&mut self, path: &Path, stamp: Stamp) {
        let key = FileKey::fresh();
        let mut known = KnownFile::new(path, (self.new_generation)());
        known.id = stamp.id;
        known.size = stamp.size;
        known.seen = self.schedule.sweeps;
        known.changed = self.schedule.now();
        self.files.add(key, known);
        let is_old = age(&stamp, self.clock.now()) > OLD;
        let is_live = self.schedule.has_swept && !is_old;
        self.enqueue_file(key, path, &stamp, is_live);
    }

    /// A file id was found under another path: whether the file was moved there, if that can be
    /// told. What lies at its old path by now comes to `vacated`.
    fn follow_move(
        &mut self,
        key: FileKey,
        path: &Path,
        vacated: &mut Vec<(PathBuf, Stamp)>,
        intake: &mut dyn Intake,
    ) -> Option<bool> {
        match self.try_follow_move(key, path, vacated, intake) {
            Ok(is_moved) => Some(is_moved),
            Err(error) => {
                self.unreadable.note(path, &error, self.schedule.sweeps);
                None
            }
        }
    }

    fn try_follow_move(
        &mut self,
        key: FileKey,
        path: &Path,
        vacated: &mut Vec<(PathBuf, Stamp)>,
        intake: &mut dyn Intake,
    ) -> io::Result<bool> {
        let Some(known) = self.files.get(key) else { return Ok(false) };
        let (old_path, old_stamp) = match file::inspect(&known.path) {
            Ok(FileInfo { kind: FileKind::File, stamp }) => {
                let is_same = stamp.id == known.id;
                (if is_same { OldPath::SameFile } else { OldPath::OtherFile }, Some(stamp))
            }
            Ok(_) => (OldPath::Gone, None),
            Err(error) if is_absent(&error) => (OldPath::Gone, None),
            Err(error) => return Err(error),
        };
        let Some((file, stamp)) = file::open_regular(path)? else { return Ok(false) };
        if stamp.id != known.id {
            return Ok(false);
        }
        let mut row = self.row(key, known, intake)?;
        let sameness = row.compare(&file, stamp.size, &mut self.ends)?;
        if old_path == OldPath::SameFile {
            let linked = AgentEvent::FileLinked {
                path: path.to_string_lossy().into_owned(),
                other_path: known.path.to_string_lossy().into_owned(),
                size: stamp.size,
            };
            intake.report(linked.into());
        }
        if decide(FoundAt::OtherPath(old_path), sameness) != Decision::Move {
            return Ok(false);
        }
        let from = known.path.clone();
        self.active.remove(&key);
        self.files.set_path(key, path);
        let sweep = self.schedule.sweeps;
        let Some(known) = self.files.get_mut(key) else { return Ok(false) };
        (known.seen, known.is_gone, known.replaced_by) = (sweep, false, None);
        known.drained = None;
        known.size = stamp.size;
        if known.has_row {
            row.path = path.to_owned();
            let checkpoint = row.encode();
            intake.take(Chunk::new(&origin(key, known), &[], Some(&checkpoint)));
            self.uncommitted.insert(key, (self.group, checkpoint));
        }
        self.files.enqueue(key, Lane::Live, 0);
        if let Some(stamp) = old_stamp {
            vacated.push((from.to_path_buf(), stamp));
        }
        Ok(true)
    }
}
