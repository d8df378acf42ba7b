//! Lines that touch altered blocks: they are handed over again, marked, after the event that names the
//! ranges.

use std::{collections::VecDeque, io, path::Path, time::Duration};

use ai_agent_stage::{BlockUpdate, Chunk, FileKey, GenerationId, Intake, Origin, Piece};
use memchr::{memchr, memrchr};
use siem_protocol::{
    AgentEvent,
    agent_event::{AlteredRange, FileAltered},
};

use super::{
    CheckpointRow, Tail,
    block_hasher::{hash, seed},
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

/// Largest distance from an altered block to the start of the line that it is in, and to the first line
/// that starts in it, in bytes. Longer lines are not handed over again.
const MAX_LINE_START: u64 = 64 << 20;

/// Time after which other files are read before further lines are handed over again.
const HAND_OVER_TIME: Duration = Duration::from_millis(10);

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
    /// End of the lines that were handed over, where a line starts.
    done: u64,
    /// Start of the last range that is too far away from the start of its line.
    too_far: u64,
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

impl Range {
    /// Returns the start of the first line of the range that was not handed over again yet. Lines up
    /// to `done` were. If the first line starts too far before the range, `too_far` is updated, and the
    /// next one is the first. `None` if there is none, or the range is after `limit`, from which on no
    /// line was handed over.
    ///
    /// # Errors
    /// Errors of reading the file.
    fn find_start(
        &self,
        file: &dyn ReadAt,
        limit: u64,
        done: u64,
        too_far: &mut u64,
    ) -> io::Result<Option<u64>> {
        if self.start >= limit {
            return Ok(None);
        }
        let start = line_start(file, self.start, done, *too_far)?;
        if start.is_some() {
            return Ok(start);
        }
        *too_far = self.start;
        next_line_start(file, self.start, self.end.min(limit))
    }
}

impl AlteredLines {
    /// Key of the file, unless the event about it was handed over.
    pub(super) fn unreported(&self) -> Option<FileKey> {
        self.event.as_ref().map(|_| self.key)
    }

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
        let (tail, done, too_far, is_positioned) = (altered.tail, 0, 0, false);
        let ranges = ranges.into();
        Self { key, open, position, is_positioned, offset, tail, ranges, event, done, too_far }
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

/// Returns the start of the line that contains the byte at `at`, or `floor`, at which a line starts,
/// if that comes later; `None` if it is too far away. This was the result for `too_far`, a position
/// before `at`, or it is 0: bytes before it are not searched again.
fn line_start(file: &dyn ReadAt, at: u64, floor: u64, too_far: u64) -> io::Result<Option<u64>> {
    let mut end = at;
    let mut buffer = vec![0; 16 << 10];
    while end > floor {
        if at - end > MAX_LINE_START || end <= too_far {
            return Ok(None);
        }
        let left = usize::try_from(end - floor).unwrap_or(usize::MAX);
        let len = left.min(buffer.len());
        let start = end - len as u64;
        let filled = file.fill_at(&mut buffer[..len], start)?;
        if let Some(newline) = memrchr(b'\n', &buffer[..filled]) {
            return Ok(Some(start + newline as u64 + 1));
        }
        end = start;
    }
    Ok(Some(floor))
}

/// Returns the start of the first line that starts between `from` and `end`; `None` if there is none, or it
/// is too far away.
fn next_line_start(file: &dyn ReadAt, from: u64, end: u64) -> io::Result<Option<u64>> {
    let end = end.min(from.saturating_add(MAX_LINE_START));
    let mut buffer = vec![0; 16 << 10];
    let mut at = from;
    while at < end {
        let len = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        let filled = file.fill_at(&mut buffer[..len], at)?;
        if let Some(newline) = memchr(b'\n', &buffer[..filled]) {
            let start = at + newline as u64 + 1;
            return Ok(Some(start).filter(|start| *start < end));
        }
        if filled < len {
            break;
        }
        at += len as u64;
    }
    Ok(None)
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
    /// Hands over lines of altered blocks. Returns true if other files have to be read, or the group
    /// has to be stored, before further lines. If lines are left otherwise, they wait as a backlog
    /// does.
    pub(super) fn hand_over_altered(
        &mut self,
        verifier: &mut Verifier,
        intake: &mut dyn Intake,
    ) -> bool {
        let started = self.schedule.now();
        while let Some(lines) = &mut verifier.altered {
            let elapsed = self.schedule.now().saturating_sub(started);
            if !intake.has_room() || elapsed >= HAND_OVER_TIME {
                return true;
            }
            if !intake.has_room_for_backfill() {
                return false;
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
        let AlteredLines { open, position, is_positioned, ranges, event, done, too_far, .. } =
            lines;
        if event.is_some() && self.is_replaced(key, &row, &open.file)? {
            return Ok(HandOver::Complete);
        }
        let Some(range) = ranges.front_mut() else { return Ok(HandOver::Complete) };
        // The line in which the checkpoint is has not been handed over yet.
        let limit = row.long.map_or(row.offset, |long| long.start);
        let end = range.end.min(limit);
        let mut is_skipped = false;
        if !std::mem::replace(is_positioned, true) {
            let start = range.find_start(&open.file, limit, *done, too_far)?;
            is_skipped = start.is_none();
            let start = start.unwrap_or(end);
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
            // The file is shorter by now, or its bytes are being changed.
            if found.end.is_some_and(|found| found < end) {
                return Ok(HandOver::Complete);
            }
            pieces = found.pieces;
            is_over = found.end.is_some() || is_at_end(open);
        }
        let kept = pieces.partition_point(|piece| start_of(piece) < end);
        if !is_skipped {
            *done = pieces.get(kept).map_or(open.row.offset, start_of);
        }
        pieces.truncate(kept);
        let mut updates = Vec::new();
        let mut has_new_tail = false;
        if is_over {
            updates = std::mem::take(&mut range.updates);
            let tail = lines.tail.filter(|_| range.has_tail);
            let seed = seed(&open.origin.generation);
            let found = tail.map(|tail| present_tail(&open.file, lines.offset, tail, &row, seed));
            match found.transpose()?.flatten() {
                Some(PresentTail::Partial(hash)) => {
                    has_new_tail = true;
                    row.blocks = Some(hash);
                }
                Some(PresentTail::Block(update)) => updates.push(update),
                None => {}
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

/// Hash that takes the place of that of altered bytes after the last whole block.
enum PresentTail {
    /// They are still after the last whole block.
    Partial(u64),
    /// The file has grown, and they are in a whole block.
    Block(BlockUpdate),
}

/// Returns the present hash of the block whose first bytes, up to `offset`, had the hash `tail` when they
/// were verified. The file may have been read up to the offset of `row` since. `None` if the bytes differ
/// again: they are verified later.
fn present_tail(
    file: &dyn ReadAt,
    offset: u64,
    tail: u64,
    row: &CheckpointRow,
    seed: u64,
) -> io::Result<Option<PresentTail>> {
    let start = offset - offset % SMALLEST;
    let end = row.offset.min(start + SMALLEST);
    let Some(size) = end.checked_sub(start).and_then(|size| usize::try_from(size).ok()) else {
        return Ok(None);
    };
    let verified = usize::try_from(offset - start).unwrap_or(usize::MAX);
    let mut bytes = vec![0; size];
    if file.fill_at(&mut bytes, start)? < size
        || bytes.get(..verified).is_none_or(|bytes| hash(bytes, seed) != tail)
    {
        return Ok(None);
    }
    let hash = hash(&bytes, seed);
    Ok(Some(match end - start {
        SMALLEST => {
            PresentTail::Block(BlockUpdate::Replace { first: start / SMALLEST, level: 0, hash })
        }
        _ => PresentTail::Partial(hash),
    }))
}

/// State of a file of which nothing was read.
fn unread_file() -> KnownFile {
    KnownFile::new(Path::new(""), GenerationId(String::new()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// File of any size with a newline at an offset. Counts the bytes that are read.
    struct TwoLines {
        newline: u64,
        read: Cell<u64>,
    }

    impl ReadAt for TwoLines {
        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
            bytes.fill(b'x');
            let newline = self.newline.checked_sub(offset).map(|at| usize::try_from(at).unwrap());
            if let Some(byte) = newline.and_then(|at| bytes.get_mut(at)) {
                *byte = b'\n';
            }
            self.read.set(self.read.get() + bytes.len() as u64);
            Ok(bytes.len())
        }
    }

    #[test]
    fn start_of_a_line_is_found_between_the_limits() {
        let file = TwoLines { newline: 100_000, read: Cell::default() };
        let start = |at, floor| line_start(&file, at, floor, 0).unwrap();
        assert_eq!(start(200_000, 0), Some(100_001));
        assert_eq!(start(100_001, 0), Some(100_001));
        assert_eq!(start(100_000, 0), Some(0));
        assert_eq!(start(200_000, 150_000), Some(150_000));
        assert_eq!(start(200_000, 250_000), Some(250_000));
        assert_eq!(start(100_001 + MAX_LINE_START, 0), Some(100_001));
    }

    /// Each range of a line of gigabytes was the start of another search.
    #[test]
    fn start_that_is_too_far_away_is_searched_once() {
        let file = TwoLines { newline: 9, read: Cell::default() };
        let mut too_far = 0;
        let mut find = |start| {
            let range = Range { start, end: start + 1, updates: Vec::new(), has_tail: false };
            range.find_start(&file, u64::MAX, 0, &mut too_far).unwrap()
        };
        let first = 2 * MAX_LINE_START;
        for n in 0..100 {
            assert_eq!(find(first + n * 2 * SMALLEST), None);
        }
        assert!(file.read.get() < MAX_LINE_START + 300 * SMALLEST, "{}", file.read.get());
        // The lines after the one that is too long are not.
        let range = Range { start: first, end: 2 * first, updates: Vec::new(), has_tail: false };
        let file = TwoLines { newline: first + 70_000, read: Cell::default() };
        let start = range.find_start(&file, u64::MAX, 0, &mut 0).unwrap();
        assert_eq!(start, Some(first + 70_001));
        let limit = first + 70_001;
        assert_eq!(range.find_start(&file, limit, 0, &mut 0).unwrap(), None, "it is not read yet");
        let limited = Range { start: 50, end: 60, updates: Vec::new(), has_tail: false };
        assert_eq!(limited.find_start(&file, 50, 0, &mut 0).unwrap(), None);
    }
}
