//! Advancing a checkpoint row past lines that are handed over.

use std::io;

use ai_agent_stage::Piece;

use super::{
    checkpoint::CheckpointRow,
    fingerprint::{BORDERS, Borders, EdgeSamples, SAMPLE, Sample},
    line_reader::{CompleteLines, LongLinePart},
    long_line::LongLine,
};
use crate::platform::file::ReadAt;

/// Returns the row of a generation that starts at the boundary `at` in the file of `row`.
pub(super) fn trimmed_row(
    row: &CheckpointRow,
    at: u64,
    file: &dyn ReadAt,
    edges: &mut EdgeSamples,
) -> io::Result<CheckpointRow> {
    let mut borders = row.borders.clone();
    borders.cut(at);
    let mut new = CheckpointRow { borders, ..CheckpointRow::new(row.path.clone(), at) };
    edges.read(file, at)?;
    update_samples(&mut new, edges);
    Ok(new)
}

/// Advances the row past complete lines.
pub(super) fn add_lines(
    row: &mut CheckpointRow,
    edges: &mut EdgeSamples,
    lines: &CompleteLines<'_>,
) {
    let surplus = lines.pieces.len().saturating_sub(BORDERS);
    if surplus > 0 {
        // All older boundaries would be dropped; only the start of the kept ones matters.
        let first = lines.pieces.get(surplus).map_or(row.offset, |piece| offset_of(piece));
        row.borders = Borders::starting_at(first);
    }
    for piece in &lines.pieces[surplus..] {
        let Piece::Line { offset, size, .. } = *piece else { continue };
        let start = usize::try_from(offset - row.offset).unwrap_or(usize::MAX);
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        let raw = lines.raw.get(start..start.saturating_add(len)).unwrap_or_default();
        row.borders.push(&raw[raw.len().saturating_sub(SAMPLE)..], size);
    }
    row.offset += lines.raw.len() as u64;
    edges.extend(lines.raw);
    update_samples(row, edges);
}

fn offset_of(piece: &Piece<'_>) -> u64 {
    match piece {
        Piece::Line { offset, .. } | Piece::Part { offset, .. } | Piece::Lines { offset, .. } => {
            *offset
        }
        Piece::Skipped { .. } => 0,
    }
}

/// Advances the row past a part of a long line; returns the part as a piece.
pub(super) fn add_part<'b>(
    row: &mut CheckpointRow,
    edges: &mut EdgeSamples,
    long: &mut LongLine,
    part: &LongLinePart<'b>,
) -> Piece<'b> {
    let (number, whole) = long.add(part.bytes, part.is_last);
    let start = long.position().start;
    row.offset += part.raw.len() as u64;
    row.long = (!part.is_last).then(|| long.position());
    edges.extend(part.raw);
    if part.is_last {
        let size = row.offset - start;
        let len = usize::try_from(size).map_or(SAMPLE, |size| size.min(edges.tail.len()));
        row.borders.push(&edges.tail[edges.tail.len() - len..], size);
    }
    update_samples(row, edges);
    Piece::Part {
        offset: start,
        part: number,
        bytes: part.bytes,
        size: part.raw.len() as u64,
        whole,
        incomplete: false,
    }
}

fn update_samples(row: &mut CheckpointRow, edges: &EdgeSamples) {
    row.fingerprint.head = Sample::of_head(&edges.head, row.borders.base());
    row.fingerprint.tail = Sample::of(&edges.tail);
    if row.first.len() < SAMPLE as u64 {
        row.first = Sample::of(&edges.head);
    }
}
