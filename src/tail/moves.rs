//! Files that were found at another path than theirs.

use std::{
    io,
    path::{Path, PathBuf},
};

use ai_agent_stage::{Chunk, FileKey, Intake};
use siem_protocol::AgentEvent;

use super::{
    Tail,
    checkpoint::CheckpointRow,
    decision::{FileDecision, FoundAt, OldPath, decide},
    file_table::Lane,
    is_absent,
    links::LinkProblem,
};
use crate::platform::file::{FileInfo, FileKind, Stamp};

impl Tail {
    /// Handles a file id that was found at another path: returns whether the file was moved there, or
    /// `None` if that is unknown. A file at its old path is added to `vacated`.
    pub(super) fn follow_move(
        &mut self,
        key: FileKey,
        path: &Path,
        vacated: &mut Vec<(PathBuf, Stamp)>,
        intake: &mut dyn Intake,
    ) -> Option<bool> {
        match self.try_follow_move(key, path, vacated, intake) {
            Ok(Some(is_moved)) => Some(is_moved),
            Ok(None) => {
                self.schedule.request_sweep_soon();
                None
            }
            Err(error) if is_absent(&error) => {
                self.schedule.request_sweep_soon();
                None
            }
            Err(error) => {
                self.unreadable.add(path, &error, self.schedule.sweeps);
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
    ) -> io::Result<Option<bool>> {
        let Some(known) = self.files.get(key) else { return Ok(None) };
        let (old_path, old_stamp) = match self.access.inspect(&known.path) {
            Ok(FileInfo { kind: FileKind::File, stamp }) => {
                let is_same = stamp.id == known.id;
                // Two paths to one directory entry are one file, unlike two entries of a file.
                if is_same && self.access.is_same_entry(&known.path, path)? {
                    if known.last_sweep == self.schedule.sweeps {
                        return Ok(Some(true));
                    }
                    return self.move_to(key, path, OldPath::Missing, None, vacated, intake);
                }
                (if is_same { OldPath::SameFile } else { OldPath::OtherFile }, Some(stamp))
            }
            Ok(_) => (OldPath::Missing, None),
            Err(error) if is_absent(&error) || LinkProblem::of(&error).is_some() => {
                (OldPath::Missing, None)
            }
            Err(error) => return Err(error),
        };
        self.move_to(key, path, old_path, old_stamp, vacated, intake)
    }

    /// Moves a known file to `path` if that has the same bytes; returns `None` if another file is at
    /// `path` by now.
    fn move_to(
        &mut self,
        key: FileKey,
        path: &Path,
        old_path: OldPath,
        old_stamp: Option<Stamp>,
        vacated: &mut Vec<(PathBuf, Stamp)>,
        intake: &mut dyn Intake,
    ) -> io::Result<Option<bool>> {
        let Some(known) = self.files.get(key) else { return Ok(None) };
        let Some((file, stamp)) = self.access.open(path)? else { return Ok(None) };
        if stamp.id != known.id {
            return Ok(None);
        }
        if old_path == OldPath::SameFile && self.access.inspect(&known.path)?.stamp.id != known.id {
            // It was moved after its old path was inspected.
            return Ok(None);
        }
        let mut row = self.row(key, known, intake)?;
        let file_match = row.compare(&file, stamp.size, &mut self.edges)?;
        // If the link has replaced a known file, the next sweep decides about that one, and comes
        // here again.
        let is_early = self.files.at(path).is_some_and(|occupant| {
            occupant != key && !self.is_found(occupant, self.schedule.sweeps)
        });
        if old_path == OldPath::SameFile && !is_early {
            let linked = AgentEvent::FileLinked {
                path: path.to_string_lossy().into_owned(),
                other_path: known.path.to_string_lossy().into_owned(),
                size: stamp.size,
            };
            intake.report(linked.into());
        }
        if decide(FoundAt::OtherPath(old_path), file_match) != FileDecision::Move {
            return Ok(Some(false));
        }
        let from = known.path.clone();
        row.path = path.to_owned();
        self.record_move(key, path, &row, stamp.size, intake);
        if let Some(stamp) = old_stamp {
            vacated.push((from.to_path_buf(), stamp));
        }
        Ok(Some(true))
    }

    /// Changes the path of a known file, and hands over its row with the new path if it has one.
    fn record_move(
        &mut self,
        key: FileKey,
        path: &Path,
        row: &CheckpointRow,
        size: u64,
        intake: &mut dyn Intake,
    ) {
        self.open.remove(&key);
        self.files.set_path(key, path);
        let sweep = self.schedule.sweeps;
        let Some(known) = self.files.get_mut(key) else { return };
        (known.last_sweep, known.is_deleted, known.replaced_by) = (sweep, false, None);
        known.drained = None;
        known.size = size;
        if known.has_row {
            let checkpoint = row.encode();
            intake.take(Chunk::new(&known.origin(key), &[], Some(&checkpoint)));
            self.uncommitted.insert(key, (self.group, checkpoint));
        }
        self.files.enqueue(key, Lane::Live, 0);
    }
}
