//! Splits files into lines through a bounded buffer.
//!
//! One buffer serves all files. It grows for a line that does not fit, up to the largest record,
//! and shrinks again; a longer line is handed over in parts. Nothing is copied: lines borrow from the
//! buffer. A line that contains a long run of NUL is left to a [`LineScan`].

use std::io;

use ai_agent_stage::Piece;
use memchr::{memchr, memchr_iter};
use siem_protocol::nul_runs::{LineHasher, MIN_NUL_RUN, NulRun, first_run};

use super::{
    line_scan::{LineScan, ScanState, ScannedContent},
    long_line::LongLine,
    partial_line::PartialLine,
};
use crate::platform::file::ReadAt;

/// Sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadSizes {
    /// Size of the buffer, and of a chunk of lines that fit in it.
    pub(super) buffer: usize,
    /// Longest line, without its ending, that is handed over whole.
    pub(super) record: usize,
    /// Size of a part of a longer line.
    pub(super) part: usize,
}

/// Position at which reading continues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ReadPosition {
    /// First byte that was not handed over.
    pub(super) offset: u64,
    /// End of the bytes that were searched for a newline without finding one.
    pub(super) scanned: u64,
    /// True if the offset is within a line that was partly handed over.
    pub(super) in_long_line: bool,
    /// Size of the file when its stamp was taken. Bytes after it belong to a later change.
    pub(super) end: u64,
}

/// Length of the longest run of NUL that is not removed from a line, in bytes.
#[expect(clippy::cast_possible_truncation, reason = "the length of a short run is small")]
const SHORT_RUN: usize = MIN_NUL_RUN as usize - 1;

/// Result of reading at a position.
#[derive(Debug)]
pub(super) enum ReadOutcome<'b> {
    /// Complete lines.
    Lines(CompleteLines<'b>),
    /// The next part of a line that is longer than a record.
    Part(LongLinePart<'b>),
    /// A line with runs of NUL, or the next part of one.
    Scanned(Box<ScannedLine<'b>>),
    /// A slice of a line with runs of NUL was scanned: the call must be repeated.
    Paused,
    /// No newline up to the end of the file.
    Nothing {
        /// End of the file.
        scanned: u64,
    },
}

/// Consecutive complete lines.
#[derive(Debug)]
pub(super) struct CompleteLines<'b> {
    /// The lines, at least one.
    pub(super) pieces: Vec<Piece<'b>>,
    /// Their bytes, including the endings.
    pub(super) raw: &'b [u8],
    /// End of the file, if no complete line follows.
    pub(super) end: Option<u64>,
}

/// A part of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LongLinePart<'b> {
    /// Bytes of the part, without the line's ending.
    pub(super) bytes: &'b [u8],
    /// Bytes of the part, including the ending.
    pub(super) raw: &'b [u8],
    /// True if this is the last part of the line.
    pub(super) is_last: bool,
}

/// A line with runs of NUL, or a part of one.
#[derive(Debug)]
pub(super) struct ScannedLine<'b> {
    /// Bytes without the runs and the line's ending.
    pub(super) data: &'b [u8],
    /// Runs of NUL.
    pub(super) runs: &'b [NulRun],
    /// Number of bytes of the file, including runs and ending.
    pub(super) size: u64,
    /// True if the line ends here.
    pub(super) is_last: bool,
    /// Hash of the line up to here.
    pub(super) hasher: LineHasher,
}

/// Content of the buffer.
enum Filled {
    /// At least one line, or the start of a long one.
    Line {
        /// Number of bytes in the buffer.
        filled: usize,
        /// Position of the first newline.
        newline: Option<usize>,
        /// True if the first read reached the end of the file.
        at_end: bool,
    },
    /// No newline up to the end of the file.
    Nothing { scanned: u64 },
    /// The first line has a long run of NUL.
    Run,
}

/// Reads lines through a buffer.
#[derive(Debug)]
pub(super) struct LineReader {
    sizes: ReadSizes,
    buffer: Vec<u8>,
    /// Runs of the last line or part.
    runs: Vec<NulRun>,
}

impl LineReader {
    /// Creates a reader; its buffer is allocated on first use.
    pub(super) fn new(sizes: ReadSizes) -> Self {
        let part = sizes.part.clamp(1, sizes.record.max(1));
        let sizes = ReadSizes { buffer: sizes.buffer.max(1), part, ..sizes };
        Self { sizes, buffer: Vec::new(), runs: Vec::new() }
    }

    /// Reads the lines at `position` that fit in the buffer, or one longer line or part. `long` is the
    /// line that contains the offset. `scan` is kept by the caller for the next call.
    ///
    /// # Errors
    /// Errors of reading the file; the call can be repeated.
    pub(super) fn read(
        &mut self,
        file: &dyn ReadAt,
        position: &ReadPosition,
        long: Option<&LongLine>,
        scan: &mut Option<Box<LineScan>>,
    ) -> io::Result<ReadOutcome<'_>> {
        let is_repeated = scan.take_if(|scan| scan.is_void()).is_some();
        scan.take_if(|scan| !scan.continues(position.offset, position.end));
        if scan.is_some() {
            return self.read_scanned(file, position, scan);
        }
        let ReadSizes { buffer: step, record, part } = self.sizes;
        let offset = position.offset;
        let (filled, newline, at_end) = match self.fill(file, position)? {
            Filled::Line { filled, newline, at_end } => (filled, newline, at_end),
            Filled::Nothing { scanned } => return Ok(ReadOutcome::Nothing { scanned }),
            Filled::Run => {
                let hasher = long.map(|long| long.hasher().clone()).unwrap_or_default();
                let line = LineScan::new(offset, part, hasher);
                *scan = Some(Box::new(if is_repeated { line.repeated() } else { line }));
                return self.read_scanned(file, position, scan);
            }
        };
        let bytes = &self.buffer[..filled];
        if position.in_long_line || newline.is_none_or(|end| content_len(bytes, 0, end) > record) {
            return Ok(ReadOutcome::Part(next_part(bytes, part)));
        }
        // After the first read the buffer was extended for a single line.
        let bytes = match newline {
            Some(end) if filled > step => &bytes[..=end],
            _ => bytes,
        };
        let (pieces, size) = split_lines(bytes, offset, record);
        let rest = &bytes[size..];
        let is_drained = at_end && rest.len() < record + 2 && memchr(b'\n', rest).is_none();
        let end = is_drained.then(|| offset + filled as u64);
        Ok(ReadOutcome::Lines(CompleteLines { pieces, raw: &bytes[..size], end }))
    }

    /// Fills the buffer from `position` on, until it contains a newline or enough of a long line.
    fn fill(&mut self, file: &dyn ReadAt, position: &ReadPosition) -> io::Result<Filled> {
        let ReadSizes { buffer: step, record, part } = self.sizes;
        let offset = position.offset;
        // If so many bytes contain no newline, the line is longer than a record (or a part), even if
        // the last byte is the `\r` of the ending.
        let limit = if position.in_long_line { part + 2 } else { record + 2 };
        self.fit(step);
        if position.scanned.saturating_sub(offset) > step as u64
            && let Some(scanned) = self.search(file, position.scanned, offset + limit as u64)?
        {
            return Ok(Filled::Nothing { scanned });
        }
        let mut filled = 0;
        loop {
            let target = if filled == 0 { step } else { limit.min(filled + step) };
            self.buffer.resize(target.max(self.buffer.len()), 0);
            let at = offset + filled as u64;
            let count = file.fill_to(&mut self.buffer[filled..target], at, position.end)?;
            let newline = memchr(b'\n', &self.buffer[filled..filled + count]);
            let newline = newline.map(|found| filled + found);
            let at_end = filled + count < target;
            let is_first = filled == 0;
            let unsearched = filled.saturating_sub(SHORT_RUN);
            filled += count;
            if first_run(&self.buffer[unsearched..newline.unwrap_or(filled)]).is_some() {
                return Ok(Filled::Run);
            }
            if newline.is_some() || filled >= limit {
                return Ok(Filled::Line { filled, newline, at_end: is_first && at_end });
            }
            if at_end {
                return Ok(Filled::Nothing { scanned: offset + filled as u64 });
            }
        }
    }

    /// Scans the next slice of a line with runs of NUL, and reads its data if that was the last.
    fn read_scanned(
        &mut self,
        file: &dyn ReadAt,
        position: &ReadPosition,
        scan: &mut Option<Box<LineScan>>,
    ) -> io::Result<ReadOutcome<'_>> {
        let Some(line) = scan else { return Ok(ReadOutcome::Paused) };
        let state = line.advance(file, position.end, self.step_buffer())?;
        let is_last = match state {
            ScanState::Paused => return Ok(ReadOutcome::Paused),
            ScanState::AtEnd => return Ok(ReadOutcome::Nothing { scanned: line.end() }),
            ScanState::Complete => true,
            ScanState::PartComplete => false,
        };
        let size = line.size(state);
        let Some(line) = scan.take() else { return Ok(ReadOutcome::Paused) };
        let is_repeated = line.is_repeated();
        let content = line.into_content();
        let Some(len) = content.read_data(file, position.offset, &mut self.buffer)? else {
            if is_repeated {
                // As if the file ended here: the line is scanned again after the next check of the
                // file, and not at once.
                return Ok(ReadOutcome::Nothing { scanned: position.offset });
            }
            // The file was changed in the meantime.
            *scan = Some(Box::new(LineScan::void(position.offset)));
            return Ok(ReadOutcome::Paused);
        };
        let (runs, hasher) = content.into_parts();
        self.runs = runs;
        let (data, runs) = (&self.buffer[..len], &self.runs[..]);
        Ok(ReadOutcome::Scanned(Box::new(ScannedLine { data, runs, size, is_last, hasher })))
    }

    /// Reads an incomplete last line that was scanned; `None` if its bytes have changed.
    ///
    /// # Errors
    /// Errors of reading the file.
    pub(super) fn read_incomplete(
        &mut self,
        file: &dyn ReadAt,
        offset: u64,
        content: ScannedContent,
    ) -> io::Result<Option<PartialLine>> {
        self.step_buffer();
        let Some(len) = content.read_data(file, offset, &mut self.buffer)? else {
            return Ok(None);
        };
        let (runs, _) = content.into_parts();
        Ok(PartialLine::new(self.buffer[..len].to_vec(), runs).ok())
    }

    /// The buffer in its usual size.
    pub(super) fn step_buffer(&mut self) -> &mut [u8] {
        self.fit(self.sizes.buffer);
        self.buffer.resize(self.sizes.buffer, 0);
        &mut self.buffer
    }

    /// Reads `len` bytes at `offset`; fewer at the end of the file.
    ///
    /// # Errors
    /// Errors of reading the file.
    pub(super) fn copy(&mut self, file: &dyn ReadAt, offset: u64, len: usize) -> io::Result<&[u8]> {
        self.fit(self.sizes.buffer);
        self.buffer.resize(len.max(self.buffer.len()), 0);
        let filled = file.fill_at(&mut self.buffer[..len], offset)?;
        Ok(&self.buffer[..filled])
    }

    /// Allocated size of the buffer.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        self.buffer.capacity()
    }

    /// Shrinks the buffer to `step` bytes.
    fn fit(&mut self, step: usize) {
        if self.buffer.len() > step {
            self.buffer.truncate(step);
            self.buffer.shrink_to(step);
        }
    }

    /// Searches for a newline from `from` without keeping the bytes before it. Returns the end of
    /// the file if it comes before a newline and before `limit`.
    fn search(&mut self, file: &dyn ReadAt, mut from: u64, limit: u64) -> io::Result<Option<u64>> {
        self.buffer.resize(self.sizes.buffer, 0);
        while from < limit {
            let filled = file.fill_at(&mut self.buffer, from)?;
            if memchr(b'\n', &self.buffer[..filled]).is_some() {
                return Ok(None);
            }
            from += filled as u64;
            if filled < self.buffer.len() && from < limit {
                return Ok(Some(from));
            }
        }
        Ok(None)
    }
}

/// Length of the line in `bytes` from `start` to the newline at `end`, without its ending.
fn content_len(bytes: &[u8], start: usize, end: usize) -> usize {
    let has_return = end > start && bytes[end - 1] == b'\r';
    end - start - usize::from(has_return)
}

/// Returns the complete lines of `bytes` up to one that is longer than a record or has a long run of
/// NUL, and their size.
fn split_lines(bytes: &[u8], offset: u64, record: usize) -> (Vec<Piece<'_>>, usize) {
    let mut pieces = Vec::with_capacity(bytes.len() / 1024 + 1);
    let mut start = 0;
    for end in memchr_iter(b'\n', bytes) {
        let len = content_len(bytes, start, end);
        let line = &bytes[start..start + len];
        if len > record || first_run(line).is_some() {
            break;
        }
        pieces.push(Piece::line(offset + start as u64, line, (end + 1 - start) as u64));
        start = end + 1;
    }
    (pieces, start)
}

/// Returns the next part of the line at the start of `bytes`. Two more bytes are examined, so that a
/// line ending is never split and the last part is never empty.
fn next_part(bytes: &[u8], part: usize) -> LongLinePart<'_> {
    let window = &bytes[..bytes.len().min(part + 2)];
    match memchr(b'\n', window) {
        Some(end) => {
            let len = content_len(window, 0, end);
            LongLinePart { bytes: &bytes[..len], raw: &bytes[..=end], is_last: true }
        }
        None => LongLinePart { bytes: &bytes[..part], raw: &bytes[..part], is_last: false },
    }
}

#[cfg(test)]
mod tests;
