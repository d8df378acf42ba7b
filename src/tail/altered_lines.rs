//! Lines that touch altered blocks: they are handed over again, marked, after the event that names the
//! ranges.

use std::{collections::VecDeque, io, path::Path, time::Duration};

use ai_agent_stage::{BlockUpdate, Chunk, FileKey, GenerationId, Intake, Origin, Piece};
use memchr::memrchr;
use siem_protocol::{
    AgentEvent,
    agent_event::{AlteredRange, FileAltered},
};

use super::{
    CheckpointRow, Tail,
    block_list::{Block, SMALLEST},
    file_table::KnownFile,
    fingerprint::EdgeSamples,
    inspect::read_pieces,
    open_files::OpenFile,
    verify::{AlteredBlocks, Verifier},
};
use crate::{
    event::Event,
    platform::{
        bounded::BoundedFile,
        file::{ReadAt, Stamp},
    },
};

/// Largest number of ranges in an event.
const MAX_RANGES: usize = 100;

/// Largest distance from an altered block to the start of the line that it is in, in bytes. Longer
/// lines are not handed over again.
const MAX_LINE_START: u64 = 64 << 20;

/// Lines that are handed over again, range by range. A hash is replaced with the last lines of its
/// range: if they are not stored, the range is found again.
pub(super) struct AlteredLines {
    key: FileKey,
    /// The file and the row of the reading position, which belongs to these lines only.
    open: OpenFile,
    /// State of the reading position.
    position: KnownFile,
    /// True once the position is at the start of the first line of the first range.
    is_positioned: bool,
    /// End of the bytes that were read when the file was verified.
    offset: u64,
    /// Present hash of the bytes after the last whole block, if they were altered.
    tail: Option<u64>,
    ranges: VecDeque<Range>,
    event: Option<Event>,
    /// End of the lines that were handed over.
    done: u64,
}

/// Result of handing over a chunk.
enum HandOver {
    /// There may be more.
    More,
    /// A slice of a line with runs of NUL was scanned.
    Paused,
    /// Nothing is left, or the file is another one by now.
    Complete,
}

/// Consecutive altered blocks.
struct Range {
    start: u64,
    end: u64,
    updates: Vec<BlockUpdate>,
    has_tail: bool,
}

impl AlteredLines {
    /// Creates the lines of the `altered` blocks of `file`, which was read up to `offset`.
    pub(super) fn new(
        key: FileKey,
        mut origin: Origin,
        offset: u64,
        altered: AlteredBlocks,
        file: BoundedFile,
        stamp: &Stamp,
    ) -> Self {
        let ranges = ranges(&altered, offset);
        let listed = ranges.iter().take(MAX_RANGES);
        let listed: Vec<_> =
            listed.map(|range| AlteredRange { from: range.start, to: range.end }).collect();
        let path = origin.path.to_string_lossy().into_owned();
        let bytes = ranges.iter().map(|range| range.end - range.start).sum();
        let (count, generation) = (ranges.len() as u64, origin.generation.0.clone());
        tracing::warn!(
            code = "file_altered",
            path,
            generation,
            ranges = count,
            bytes,
            "bytes of a session file were altered after they were read"
        );
        origin.is_altered = true;
        let size = stamp.size;
        let event =
            FileAltered { path, generation, ranges: listed, range_count: count, bytes, size };
        let event = Some(AgentEvent::FileAltered(Box::new(event)).into());
        let row = CheckpointRow::new(origin.path.clone(), 0);
        let open = OpenFile::new(file, None, row, origin, Duration::ZERO);
        let position = unread_file();
        let (tail, done, is_positioned) = (altered.tail, 0, false);
        let ranges = ranges.into();
        Self { key, open, position, is_positioned, offset, tail, ranges, event, done }
    }
}

/// Combines blocks that follow each other.
fn ranges(altered: &AlteredBlocks, offset: u64) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for block in &altered.blocks {
        let Block { first, level, hash } = *block;
        let update = BlockUpdate::Replace { first, level, hash };
        match ranges.last_mut().filter(|range| range.end == block.start()) {
            Some(range) => {
                range.end = block.end();
                range.updates.push(update);
            }
            None => ranges.push(Range {
                start: block.start(),
                end: block.end(),
                updates: vec![update],
                has_tail: false,
            }),
        }
    }
    if altered.tail.is_some() {
        let start = offset - offset % SMALLEST;
        match ranges.last_mut().filter(|range| range.end == start) {
            Some(range) => (range.end, range.has_tail) = (offset, true),
            None => ranges.push(Range { start, end: offset, updates: Vec::new(), has_tail: true }),
        }
    }
    ranges
}

/// Returns the start of the line that contains the byte at `at`; `None` if it is too far away.
fn line_start(file: &dyn ReadAt, at: u64) -> io::Result<Option<u64>> {
    let mut end = at;
    let mut buffer = vec![0; 16 << 10];
    while end > 0 {
        if at - end > MAX_LINE_START {
            return Ok(None);
        }
        let len = usize::try_from(end).map_or(buffer.len(), |end| end.min(buffer.len()));
        let start = end - len as u64;
        let filled = file.fill_at(&mut buffer[..len], start)?;
        if let Some(newline) = memrchr(b'\n', &buffer[..filled]) {
            return Ok(Some(start + newline as u64 + 1));
        }
        end = start;
    }
    Ok(Some(0))
}

/// Offset at which a piece, or the line that it is a part of, starts.
fn start_of(piece: &Piece<'_>) -> u64 {
    match piece {
        Piece::Line { offset, .. } | Piece::Part { offset, .. } | Piece::Lines { offset, .. } => {
            *offset
        }
        Piece::Skipped { .. } => 0,
    }
}

impl Tail {
    /// Hands over lines of altered blocks. Returns true if the intake has no room for more of them.
    pub(super) fn hand_over_altered(
        &mut self,
        verifier: &mut Verifier,
        intake: &mut dyn Intake,
    ) -> bool {
        while let Some(lines) = &mut verifier.altered {
            if !intake.has_room() {
                return true;
            }
            match self.hand_over_next(lines, intake) {
                Ok(HandOver::More) => {}
                Ok(HandOver::Paused) => return true,
                // If the file cannot be read any more, its blocks are verified again.
                Ok(HandOver::Complete) | Err(_) => verifier.altered = None,
            }
        }
        false
    }

    /// Hands over the next chunk.
    fn hand_over_next(
        &mut self,
        lines: &mut AlteredLines,
        intake: &mut dyn Intake,
    ) -> io::Result<HandOver> {
        let key = lines.key;
        let Some(known) = self.files.get(key).filter(|known| !known.is_deleted) else {
            return Ok(HandOver::Complete);
        };
        if known.generation != lines.open.origin.generation {
            return Ok(HandOver::Complete);
        }
        let mut row = self.row(key, known, intake)?;
        let AlteredLines { open, position, is_positioned, ranges, event, done, .. } = lines;
        if event.is_some() && self.is_replaced(key, &row, &open.file)? {
            return Ok(HandOver::Complete);
        }
        let Some(range) = ranges.front_mut() else { return Ok(HandOver::Complete) };
        // The line in which the checkpoint is has not been handed over yet.
        let limit = row.long.map_or(row.offset, |long| long.start);
        let end = range.end.min(limit);
        if !std::mem::replace(is_positioned, true) {
            let start = line_start(&open.file, range.start)?.unwrap_or(end).max(*done);
            open.row = CheckpointRow::new(open.row.path.clone(), start);
            *position = unread_file();
            (position.offset, position.scanned) = (start, start);
        }
        let mut pieces = Vec::new();
        let is_at_end = |open: &OpenFile| open.row.offset >= end && open.row.long.is_none();
        let mut is_over = is_at_end(open);
        if !is_over {
            let mut edges = EdgeSamples::default();
            let found = read_pieces(&mut self.reader, &mut edges, open, position, limit)?;
            if found.is_paused {
                return Ok(HandOver::Paused);
            }
            pieces = found.pieces;
            is_over = found.end.is_some() || is_at_end(open);
        }
        let kept = pieces.partition_point(|piece| start_of(piece) < end);
        *done = pieces.get(kept).map_or(open.row.offset, start_of);
        pieces.truncate(kept);
        let mut updates = Vec::new();
        let mut has_new_tail = false;
        if is_over {
            updates = std::mem::take(&mut range.updates);
            has_new_tail = range.has_tail && row.offset == lines.offset;
            if has_new_tail {
                row.blocks = lines.tail;
            }
        }
        let checkpoint = row.encode();
        let mut chunk = Chunk::new(&open.origin, &pieces, Some(&checkpoint));
        chunk.blocks = updates;
        chunk.events.extend(event.take());
        intake.take(chunk);
        self.uncommitted.insert(key, (self.group, checkpoint));
        if has_new_tail {
            // An open file continues the hash of the bytes that it had before.
            self.open.remove(&key);
        }
        if is_over {
            *is_positioned = false;
            ranges.pop_front();
        }
        Ok(if ranges.is_empty() { HandOver::Complete } else { HandOver::More })
    }
}

/// State of a file of which nothing was read.
fn unread_file() -> KnownFile {
    KnownFile::new(Path::new(""), GenerationId(String::new()))
}
