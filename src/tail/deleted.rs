//! FileTable that went: what is still to be had of them, and what is reported.

use siem_protocol::{AgentEvent, Digest};

use super::{
    Tail,
    checkpoint::CheckpointRow,
    chunk::{Chunk, FileKey, Intake, Origin, Piece},
    files::Lane,
    inspect::{InspectOutcome, origin},
    long_line::LongLine,
    open_files::Drained,
};
use crate::{
    event::Event,
    platform::file::{self, Stamp},
};

/// How much of an incomplete last line is copied into the row.
const KEPT_BYTES: u64 = 1 << 20;

impl Tail {
    /// A sweep found the file gone.
    pub(super) fn handle_deleted(&mut self, key: FileKey, intake: &mut dyn Intake) {
        let Some(known) = self.files.get_mut(key) else { return };
        let path = known.path.clone();
        known.is_gone = true;
        self.files.leave_path(key, &path);
        if self.active.contains_key(&key) {
            self.begin_drain(key);
            self.files.enqueue(key, Lane::Live, 0);
        } else {
            self.end_deleted_file(key, Vec::new(), intake);
        }
    }

    /// Reads on in a deleted file whose handle is open, to its end.
    pub(super) fn drain_gone(&mut self, key: FileKey, intake: &mut dyn Intake) -> InspectOutcome {
        let drained = self.drain(key, intake);
        if drained == Drained::InPart {
            return InspectOutcome::More;
        }
        let rest = self.rest(key, drained);
        self.end_deleted_file(key, rest, intake);
        InspectOutcome::Drained
    }

    /// The incomplete last line of an open file that was read up to there.
    pub(super) fn rest(&mut self, key: FileKey, drained: Drained) -> Vec<u8> {
        let (Some(active), Some(known)) = (self.active.get(&key), self.files.get(key)) else {
            return Vec::new();
        };
        if drained != Drained::ToTheEnd {
            return Vec::new();
        }
        let len = known.scanned.min(active.size()).saturating_sub(known.offset);
        let len = usize::try_from(len).unwrap_or_default();
        let rest = self.reader.copy(&active.file, known.offset, len);
        rest.map_or_else(|_| Vec::new(), <[u8]>::to_vec)
    }

    /// EdgeSamples a file that is gone: hands over its incomplete last line, from the handle or as the
    /// row keeps it, and reports what could not be read.
    fn end_deleted_file(&mut self, key: FileKey, rest: Vec<u8>, intake: &mut dyn Intake) {
        let Some(known) = self.files.get(key) else { return };
        // Without its row it can't be ended; the group is not stored, and all of this comes again.
        let Ok(mut row) = self.row(key, known, intake) else { return };
        let origin = origin(key, known);
        let active = self.active.remove(&key);
        let size = match &active {
            Some(active) => active.size().max(active.row.stamp.size),
            // Of the file that took its place nothing is known.
            None if known.replaced_by.is_some() => row.stamp.size,
            None => known.size,
        };
        let has_row = known.has_row;
        self.uncommitted.remove(&key);
        self.schedule.forget(key);
        let Some(mut known) = self.files.remove(key) else { return };

        let long = known.long.as_deref_mut();
        let GenerationEnd { piece, unread, events } =
            end_generation(&origin, &mut row, long, rest, size);
        let pieces: Vec<_> = piece.iter().map(FinalPiece::piece).collect();
        if has_row || !pieces.is_empty() || !events.is_empty() {
            intake.take(Chunk::new(&origin, &pieces, None).with_unread(unread).with_events(events));
            if let Some(active) = active {
                self.part(active);
            }
        }
        intake.forget(key);
    }

    /// Copies incomplete last lines that did not change for long into their rows.
    pub(super) fn save_partial_lines(&mut self, intake: &mut dyn Intake) {
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
            self.save_partial_line(key, intake);
        }
    }

    fn save_partial_line(&mut self, key: FileKey, intake: &mut dyn Intake) {
        let Some(known) = self.files.get(key) else { return };
        let Ok(mut row) = self.row(key, known, intake) else { return };
        let (path, origin, offset) = (known.path.clone(), origin(key, known), row.offset);
        let len = usize::try_from(known.unread().min(KEPT_BYTES)).unwrap_or_default();
        let Ok(Some((file, stamp))) = file::open_regular(&path) else { return };
        let drained = known.drained;
        let is_unchanged = drained.is_some_and(|drained| drained.agrees_with(&stamp));
        let Ok(kept) = self.reader.copy(&file, offset, len) else { return };
        if !is_unchanged || row.long.is_some() || kept.len() < len {
            return;
        }
        row.kept = Some(kept.to_vec());
        row.stamp = Stamp { id: known.id, ..drained.unwrap_or(row.stamp) };
        row.is_drained = true;
        let checkpoint = row.encode();
        intake.take(Chunk::new(&origin, &[], Some(&checkpoint)));
        self.uncommitted.insert(key, (self.group, checkpoint));
        // An open file would go on with the row without it.
        self.active.remove(&key);
        if let Some(known) = self.files.get_mut(key) {
            (known.has_row, known.has_kept) = (true, true);
        }
    }
}

/// The end of a generation.
pub(super) struct GenerationEnd {
    /// Its incomplete last line.
    pub(super) piece: Option<FinalPiece>,
    /// How many bytes were not read of it.
    pub(super) unread: u64,
    /// What is to be reported.
    pub(super) events: Vec<Event>,
}

/// An incomplete last line, or the last part of one.
pub(super) struct FinalPiece {
    offset: u64,
    bytes: Vec<u8>,
    part: Option<(u32, Option<(u64, Digest)>)>,
}

impl FinalPiece {
    pub(super) fn piece(&self) -> Piece<'_> {
        let Self { offset, ref bytes, part } = *self;
        let size = bytes.len() as u64;
        match part {
            None => Piece::Line { offset, bytes, size, incomplete: true },
            Some((part, whole)) => {
                Piece::Part { offset, part, bytes, size, whole, incomplete: true }
            }
        }
    }
}

/// What is left to be said of a generation whose file was `size` bytes large and holds them no
/// more: of its incomplete last line, from a handle or as the row keeps it, and of what was never
/// read.
pub(super) fn end_generation(
    origin: &Origin,
    row: &mut CheckpointRow,
    long: Option<&mut LongLine>,
    rest: Vec<u8>,
    size: u64,
) -> GenerationEnd {
    let kept = row.kept.take();
    let rest = if rest.is_empty() { kept.unwrap_or_default() } else { rest };
    let part = match (row.long, long) {
        (Some(_), Some(long)) if !rest.is_empty() => Some(long.add(&rest, true)),
        _ => None,
    };
    let offset = row.long.map_or(row.offset, |at| at.start);
    // Without the hash of the parts before, which can't be had any more, the last is of no use.
    let piece = (!rest.is_empty() && part.is_some() == row.long.is_some()).then_some(FinalPiece {
        offset,
        bytes: rest,
        part,
    });
    if let Some(piece) = &piece {
        row.offset += piece.bytes.len() as u64;
        row.long = None;
    }
    let events = abandoned(origin, row).into_iter().chain(unread(origin, row.offset, size));
    GenerationEnd { events: events.collect(), unread: size.saturating_sub(row.offset), piece }
}

/// The event that a line sent in parts will never be completed, if there is one.
fn abandoned(origin: &Origin, row: &CheckpointRow) -> Option<Event> {
    let long = row.long?;
    let abandoned = AgentEvent::RecordAbandoned {
        path: origin.path.to_string_lossy().into_owned(),
        generation: origin.generation.0.clone(),
        offset: long.start,
        parts: long.parts,
        bytes: row.offset - long.start,
    };
    Some(abandoned.into())
}

/// The event that bytes of a file that holds them no more were never read, if there are any.
fn unread(origin: &Origin, from: u64, to: u64) -> Option<Event> {
    let unread = || AgentEvent::FileDeletedUnread {
        path: origin.path.to_string_lossy().into_owned(),
        generation: origin.generation.0.clone(),
        from,
        to,
        bytes: to - from,
    };
    (to > from).then(|| unread().into())
}
