//! Advancing a checkpoint row past lines that are handed over.

use std::io;

use ai_agent_stage::Piece;
use siem_protocol::nul_runs::Folded;

use super::{
    checkpoint::CheckpointRow,
    fingerprint::{BORDERS, Borders, EdgeSamples, SAMPLE, Sample},
    line_reader::{CompleteLines, LongLinePart, ScannedLine},
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
        push_border(row, edges, start);
    }
    update_samples(row, edges);
    Piece::Part {
        offset: start,
        part: number,
        bytes: part.bytes,
        nul_runs: &[],
        size: part.raw.len() as u64,
        whole,
        incomplete: false,
    }
}

/// Advances the row past a line with runs of NUL, or a part of one; returns it as a piece. Its first
/// and last bytes are read again.
///
/// # Errors
/// Errors of reading the file; nothing was advanced then.
pub(super) fn add_scanned<'b>(
    row: &mut CheckpointRow,
    edges: &mut EdgeSamples,
    file: &dyn ReadAt,
    long: &mut Option<Box<LongLine>>,
    scanned: ScannedLine<'b>,
) -> io::Result<Piece<'b>> {
    let ScannedLine { data, runs, size, is_last, hasher } = scanned;
    let offset = row.offset;
    let mut head = [0; SAMPLE];
    let len = usize::try_from(size).map_or(SAMPLE, |size| size.min(SAMPLE));
    let filled = file.fill_at(&mut head[..len], offset)?;
    edges.read(file, offset + size)?;
    row.offset += size;
    let piece = if is_last && row.long.is_none() {
        push_border(row, edges, offset);
        let folded = Folded { runs, digests: hasher.finish() };
        let folded = Some(folded).filter(|folded| !folded.runs.is_empty());
        Piece::Line { offset, bytes: data, size, incomplete: false, folded }
    } else {
        let line = long.get_or_insert_with(|| Box::new(LongLine::new(offset)));
        let (part, whole) = line.add_scanned(&head[..filled], hasher, is_last);
        let offset = line.position().start;
        row.long = (!is_last).then(|| line.position());
        if is_last {
            push_border(row, edges, offset);
        }
        Piece::Part { offset, part, bytes: data, nul_runs: runs, size, whole, incomplete: false }
    };
    update_samples(row, edges);
    Ok(piece)
}

/// Adds the end of the line that starts at `start` and ends at the row's offset.
fn push_border(row: &mut CheckpointRow, edges: &EdgeSamples, start: u64) {
    let size = row.offset - start;
    let len = usize::try_from(size).map_or(SAMPLE, |size| size.min(edges.tail.len()));
    row.borders.push(&edges.tail[edges.tail.len() - len.min(edges.tail.len())..], size);
}

fn update_samples(row: &mut CheckpointRow, edges: &EdgeSamples) {
    row.fingerprint.head = Sample::of_head(&edges.head, row.borders.base());
    row.fingerprint.tail = Sample::of(&edges.tail);
    if row.first.len() < SAMPLE as u64 {
        row.first = Sample::of(&edges.head);
    }
}
