//! The end of a generation: its incomplete last line, and events about unread bytes.

use ai_agent_stage::{Origin, Piece};
use siem_protocol::{
    AgentEvent,
    nul_runs::{Folded, LineDigests},
};

use super::{checkpoint::CheckpointRow, long_line::LongLine, partial_line::PartialLine};
use crate::event::Event;

/// Data that is handed over when a generation ends.
pub(super) struct GenerationEnd {
    /// Incomplete last line.
    pub(super) piece: Option<FinalPiece>,
    /// Number of bytes that were not read.
    pub(super) unread: u64,
    pub(super) events: Vec<Event>,
}

/// Incomplete last line, or its last part.
pub(super) struct FinalPiece {
    offset: u64,
    line: PartialLine,
    part: Option<u32>,
    /// Digests of the line, if it was handed over in parts or has runs of NUL.
    digests: Option<LineDigests>,
}

impl FinalPiece {
    pub(super) fn piece(&self) -> Piece<'_> {
        let Self { offset, ref line, part, digests } = *self;
        let (bytes, runs, size) = (line.data(), line.runs(), line.size());
        match part {
            None => {
                let folded = digests.map(|digests| Folded { runs, digests });
                Piece::Line { offset, bytes, size, incomplete: true, folded }
            }
            Some(part) => {
                let (nul_runs, whole) = (runs, digests);
                Piece::Part { offset, part, bytes, nul_runs, size, whole, incomplete: true }
            }
        }
    }
}

/// Ends a generation whose file had `size` bytes. `partial_line` is its incomplete last line as read
/// from a handle; if it is empty, the copy in the row is used.
pub(super) fn end_generation(
    origin: &Origin,
    row: &mut CheckpointRow,
    long: Option<&mut LongLine>,
    partial_line: PartialLine,
    size: u64,
) -> GenerationEnd {
    let saved = row.saved_line.take();
    let line = if partial_line.is_empty() { saved.unwrap_or_default() } else { partial_line };
    let long = long.filter(|long| long.is_at(row.offset));
    let (part, digests) = match (row.long, long) {
        (Some(_), Some(long)) if !line.is_empty() => {
            let (part, whole) = long.add_incomplete(&line);
            (Some(part), whole)
        }
        _ => (None, line.digests()),
    };
    let offset = row.long.map_or(row.offset, |long| long.start);
    // The last part of a long line is useless without the hash of the parts before it, which cannot
    // be computed any more.
    let is_usable = !line.is_empty() && part.is_some() == row.long.is_some();
    let piece = is_usable.then_some(FinalPiece { offset, line, part, digests });
    if let Some(piece) = &piece {
        row.offset += piece.line.size();
        row.long = None;
    }
    let abandoned = record_abandoned(origin, row);
    let events = abandoned.into_iter().chain(deleted_unread(origin, row.offset, size));
    GenerationEnd { events: events.collect(), unread: size.saturating_sub(row.offset), piece }
}

/// Event about a line whose parts were sent and that will never be completed.
fn record_abandoned(origin: &Origin, row: &CheckpointRow) -> Option<Event> {
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

/// Event about bytes that were never read, if there are any.
fn deleted_unread(origin: &Origin, from: u64, to: u64) -> Option<Event> {
    let unread = || AgentEvent::FileDeletedUnread {
        path: origin.path.to_string_lossy().into_owned(),
        generation: origin.generation.0.clone(),
        from,
        to,
        bytes: to - from,
    };
    (to > from).then(|| unread().into())
}
