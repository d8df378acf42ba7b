//! Files that went: what is still to be had of them, and what is reported.

use std::{io, time::Duration};

use serde_json::json;
use siem_protocol::names::event;

use super::{
    Tail,
    chunk::{Chunk, FileKey, Intake, Origin, Piece},
    files::{Gone, Lane},
    look::{Looked, abandoned, origin},
};
use crate::{event::Event, platform::file::Stamp};

/// How long and how much is read of a deleted file whose handle is open.
const DRAIN_TIME: Duration = Duration::from_secs(60);
const DRAIN_BYTES: u64 = 1 << 30;
/// How much of an incomplete last line is copied into the row.
const KEPT_BYTES: u64 = 1 << 20;

impl Tail {
    /// A sweep found the file gone.
    pub(super) fn lose(&mut self, key: FileKey, intake: &mut dyn Intake) {
        let is_open = self.active.contains_key(&key);
        let until = self.schedule.now() + DRAIN_TIME;
        let Some(known) = self.files.get_mut(key) else { return };
        let path = known.path.clone();
        self.files.leave_path(key, &path);
        if is_open {
            if let Some(known) = self.files.get_mut(key) {
                known.gone = Some(Gone { until, budget: DRAIN_BYTES });
            }
            self.files.enqueue(key, Lane::Live, 0);
        } else {
            self.bury(key, None, intake);
        }
    }

    /// Reads on in a deleted file whose handle is open, to its end.
    pub(super) fn drain_gone(
        &mut self,
        key: FileKey,
        intake: &mut dyn Intake,
    ) -> io::Result<Looked> {
        let now = self.schedule.now();
        let Some(Gone { until, budget }) = self.files.get(key).and_then(|known| known.gone) else {
            return Ok(Looked::Drained);
        };
        let before = self.files.get(key).map_or(0, |known| known.offset);
        if now < until
            && budget > 0
            && let Ok(Some(Looked::More)) = self.read_on(key, intake)
        {
            if let Some(known) = self.files.get_mut(key) {
                let budget = budget.saturating_sub(known.offset - before);
                known.gone = Some(Gone { until, budget });
            }
            return Ok(Looked::More);
        }
        let rest = self.rest(key).unwrap_or_default();
        self.bury(key, Some(rest), intake);
        Ok(Looked::Drained)
    }

    /// The incomplete last line of an open file that was read up to there.
    fn rest(&mut self, key: FileKey) -> Option<Vec<u8>> {
        let active = self.active.get(&key)?;
        let known = self.files.get(key)?;
        let stamp = Stamp::of(&active.file.metadata().ok()?);
        // Only what follows the last complete line, if reading came so far.
        known.drained?;
        let len = known.scanned.min(stamp.size).checked_sub(known.offset)?;
        let len = usize::try_from(len).ok()?;
        let rest = self.reader.copy(&active.file, known.offset, len).ok()?;
        Some(rest.to_vec())
    }

    /// Ends a file that is gone: hands over its incomplete last line, from the handle or as the
    /// row keeps it, and reports what could not be read.
    fn bury(&mut self, key: FileKey, rest: Option<Vec<u8>>, intake: &mut dyn Intake) {
        let Some(known) = self.files.get(key) else { return };
        let mut row = self.row(key, known, intake);
        let origin = origin(key, known);
        let size = known.size.max(row.offset);
        let rest = rest.filter(|rest| !rest.is_empty()).or_else(|| row.kept.take());
        let rest = rest.unwrap_or_default();
        let has_row = known.has_row;
        self.active.remove(&key);
        self.uncommitted.remove(&key);
        self.schedule.forget(key);
        let Some(mut known) = self.files.remove(key) else { return };

        let mut pieces = Vec::new();
        let mut events = Vec::new();
        if !rest.is_empty() {
            let size = rest.len() as u64;
            let piece = match (row.long, known.long.as_mut()) {
                (None, _) => {
                    Some(Piece::Line { offset: row.offset, bytes: &rest, size, incomplete: true })
                }
                (Some(at), Some(long)) => {
                    let (part, whole) = long.add(&rest, true);
                    Some(Piece::Part {
                        offset: at.start,
                        part,
                        bytes: &rest,
                        size,
                        whole,
                        incomplete: true,
                    })
                }
                // Its hash can't be had any more.
                (Some(_), None) => None,
            };
            if let Some(piece) = piece {
                pieces.push(piece);
                row.offset += size;
                row.long = None;
            }
        }
        events.extend(abandoned(&origin, &row));
        events.extend(unread(&origin, row.offset, size));
        if has_row || !pieces.is_empty() || !events.is_empty() {
            intake.take(Chunk {
                origin: &origin,
                pieces: &pieces,
                checkpoint: None,
                unread: size.saturating_sub(row.offset),
                events,
            });
        }
        intake.forget(key);
    }

    /// Copies incomplete last lines that did not change for long into their rows.
    pub(super) fn keep_tails(&mut self, intake: &mut dyn Intake) {
        let now = self.schedule.now();
        for key in self.schedule.tails() {
            let Some(known) = self.files.get(key) else { continue };
            let is_due = now.saturating_sub(known.changed) >= self.options.keep_after;
            let is_still = known.drained.is_some() && known.unread() > 0;
            if !is_due || known.has_kept || known.long.is_some() || !is_still {
                continue;
            }
            if !intake.has_room() {
                return;
            }
            self.keep_tail(key, intake);
        }
    }

    fn keep_tail(&mut self, key: FileKey, intake: &mut dyn Intake) {
        let Some(known) = self.files.get(key) else { return };
        let mut row = self.row(key, known, intake);
        let (path, origin, offset) = (known.path.clone(), origin(key, known), row.offset);
        let len = usize::try_from(known.unread().min(KEPT_BYTES)).unwrap_or_default();
        let opened = crate::platform::file::open_regular(&path);
        let Ok(Some((file, metadata))) = opened else { return };
        let drained = known.drained;
        let is_unchanged = drained.is_some_and(|stamp| stamp.agrees_with(&Stamp::of(&metadata)));
        let Ok(kept) = self.reader.copy(&file, offset, len) else { return };
        if !is_unchanged || row.long.is_some() || kept.len() < len {
            return;
        }
        row.kept = Some(kept.to_vec());
        row.stamp = Stamp { id: known.id, ..drained.unwrap_or(row.stamp) };
        row.is_drained = true;
        let checkpoint = row.encode();
        intake.take(Chunk {
            origin: &origin,
            pieces: &[],
            checkpoint: Some(&checkpoint),
            unread: 0,
            events: Vec::new(),
        });
        self.uncommitted.insert(key, checkpoint);
        // An open file would go on with the row without it.
        self.active.remove(&key);
        if let Some(known) = self.files.get_mut(key) {
            (known.has_row, known.has_kept) = (true, true);
        }
    }
}

/// The event that bytes of a deleted file were never read, if there are any.
fn unread(origin: &Origin, from: u64, to: u64) -> Option<Event> {
    let facts = json!({
        "path": origin.path.to_string_lossy(),
        "generation": origin.generation.0,
        "from": from,
        "to": to,
    });
    (to > from).then(|| Event::warning(event::FILE_DELETED_UNREAD, facts))
}
