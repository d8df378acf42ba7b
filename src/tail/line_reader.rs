//! Splits files into lines through a bounded buffer.
//!
//! One buffer serves all files. It grows for a line that does not fit, up to the largest record,
//! and shrinks again; a longer line is handed over in parts. Nothing is copied: lines borrow from the
//! buffer.

use std::io;

use ai_agent_stage::Piece;
use memchr::{memchr, memchr_iter};

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

/// Result of reading at a position.
#[derive(Debug)]
pub(super) enum ReadOutcome<'b> {
    /// Complete lines.
    Lines(CompleteLines<'b>),
    /// The next part of a line that is longer than a record.
    Part(LongLinePart<'b>),
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

/// Reads lines through a buffer.
#[derive(Debug)]
pub(super) struct LineReader {
    sizes: ReadSizes,
    buffer: Vec<u8>,
}

impl LineReader {
    /// Creates a reader; its buffer is allocated on first use.
    pub(super) fn new(sizes: ReadSizes) -> Self {
        let part = sizes.part.clamp(1, sizes.record.max(1));
        let sizes = ReadSizes { buffer: sizes.buffer.max(1), part, ..sizes };
        Self { sizes, buffer: Vec::new() }
    }

    /// Reads the lines at `position` that fit in the buffer, or one longer line or part.
    ///
    /// # Errors
    /// Errors of reading the file; the call can be repeated.
    pub(super) fn read(
        &mut self,
        file: &dyn ReadAt,
        position: &ReadPosition,
    ) -> io::Result<ReadOutcome<'_>> {
        let ReadSizes { buffer: step, record, part } = self.sizes;
        let offset = position.offset;
        // If so many bytes contain no newline, the line is longer than a record (or a part), even if
        // the last byte is the `\r` of the ending.
        let limit = if position.in_long_line { part + 2 } else { record + 2 };
        self.fit(step);
        if position.scanned.saturating_sub(offset) > step as u64
            && let Some(scanned) = self.search(file, position.scanned, offset + limit as u64)?
        {
            return Ok(ReadOutcome::Nothing { scanned });
        }
        let mut filled = 0;
        let (newline, at_end) = loop {
            let target = if filled == 0 { step } else { limit.min(filled + step) };
            self.buffer.resize(target.max(self.buffer.len()), 0);
            let at = offset + filled as u64;
            let count = file.fill_to(&mut self.buffer[filled..target], at, position.end)?;
            let newline = memchr(b'\n', &self.buffer[filled..filled + count]);
            let newline = newline.map(|found| filled + found);
            let at_end = filled + count < target;
            let is_first = filled == 0;
            filled += count;
            if newline.is_some() || filled >= limit {
                break (newline, is_first && at_end);
            }
            if at_end {
                return Ok(ReadOutcome::Nothing { scanned: offset + filled as u64 });
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

/// Returns the complete lines of `bytes` up to one that is longer than a record, and their size.
fn split_lines(bytes: &[u8], offset: u64, record: usize) -> (Vec<Piece<'_>>, usize) {
    let mut pieces = Vec::with_capacity(bytes.len() / 1024 + 1);
    let mut start = 0;
    for end in memchr_iter(b'\n', bytes) {
        let len = content_len(bytes, start, end);
        if len > record {
            break;
        }
        pieces.push(Piece::Line {
            offset: offset + start as u64,
            bytes: &bytes[start..start + len],
            size: (end + 1 - start) as u64,
            incomplete: false,
        });
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
mod tests {
    use proptest::prelude::*;
    use siem_protocol::Digest;

    use super::*;
    use crate::tail::long_line::LongLine;

    /// Line as it was read: offset, bytes, size and number of parts.
    #[derive(Debug, PartialEq)]
    struct ReadLine {
        offset: u64,
        bytes: Vec<u8>,
        size: u64,
        parts: usize,
    }

    /// Reads from a position to the current end of a file, as the tail does.
    #[derive(Default)]
    struct LineFollower {
        position: ReadPosition,
        long: Option<LongLine>,
        partial: Vec<u8>,
        partial_size: u64,
        out: Vec<ReadLine>,
    }

    impl LineFollower {
        fn follow(&mut self, reader: &mut LineReader, file: &[u8]) {
            loop {
                let ReadSizes { record, part, buffer } = reader.sizes;
                self.position.end = file.len() as u64;
                match reader.read(&file, &self.position).unwrap() {
                    ReadOutcome::Nothing { scanned } => {
                        assert_eq!(scanned, file.len() as u64);
                        self.position.scanned = scanned;
                        return;
                    }
                    ReadOutcome::Lines(lines) => {
                        let first = self.position.offset;
                        for piece in &lines.pieces {
                            let Piece::Line { offset, bytes, size, incomplete: false } = *piece
                            else {
                                panic!("{piece:?}");
                            };
                            assert_eq!(offset, self.position.offset);
                            assert!(bytes.len() <= record);
                            self.out.push(ReadLine {
                                offset,
                                bytes: bytes.to_vec(),
                                size,
                                parts: 0,
                            });
                            self.position.offset += size;
                        }
                        assert_eq!(first + lines.raw.len() as u64, self.position.offset);
                        assert!(lines.raw.len() <= buffer.max(record + 2));
                        self.position.scanned = lines.end.unwrap_or(self.position.offset);
                    }
                    ReadOutcome::Part(found) => {
                        assert!(!found.bytes.is_empty());
                        assert!(found.bytes.len() <= part + 1);
                        let start = self.position.offset;
                        let long = self.long.get_or_insert_with(|| LongLine::new(start));
                        let (_, whole) = long.add(found.bytes, found.is_last);
                        let (line, parts) = (long.position().start, long.position().parts as usize);
                        self.partial.extend_from_slice(found.bytes);
                        self.partial_size += found.raw.len() as u64;
                        self.position.offset += found.raw.len() as u64;
                        self.position.scanned = self.position.offset;
                        self.position.in_long_line = !found.is_last;
                        if found.is_last {
                            let bytes = std::mem::take(&mut self.partial);
                            let expected = (bytes.len() as u64, Digest::of(&bytes));
                            assert_eq!(whole, Some(expected));
                            let size = std::mem::take(&mut self.partial_size);
                            self.out.push(ReadLine { offset: line, bytes, size, parts });
                            self.long = None;
                        } else {
                            assert_eq!(found.raw, found.bytes);
                        }
                    }
                }
            }
        }
    }

    /// Returns the complete lines of `file` by a simple algorithm.
    fn expected_lines(file: &[u8]) -> Vec<(u64, Vec<u8>, u64)> {
        let mut offset = 0;
        let mut lines = Vec::new();
        for line in file.split_inclusive(|byte| *byte == b'\n') {
            if let Some(content) = line.strip_suffix(b"\n") {
                let content = content.strip_suffix(b"\r").unwrap_or(content);
                lines.push((offset, content.to_vec(), line.len() as u64));
            }
            offset += line.len() as u64;
        }
        lines
    }

    fn check(file: &[u8], cuts: &[usize], sizes: ReadSizes) {
        let mut reader = LineReader::new(sizes);
        let mut follower = LineFollower::default();
        for cut in cuts.iter().copied().chain([file.len()]) {
            follower.follow(&mut reader, &file[..cut]);
        }
        let out: Vec<_> =
            follower.out.iter().map(|out| (out.offset, out.bytes.clone(), out.size)).collect();
        assert_eq!(out, expected_lines(file));
        for line in &follower.out {
            assert_eq!(line.parts > 0, line.bytes.len() > sizes.record, "{line:?}");
        }
    }

    const SIZES: ReadSizes = ReadSizes { buffer: 16, record: 40, part: 10 };

    #[test]
    fn lines_of_any_length_are_read_whole_or_in_parts() {
        for ending in ["\n", "\r\n"] {
            for len in 0..100 {
                let line = format!("a\n{}{ending}\r\r\nb\n", "x".repeat(len));
                check(line.as_bytes(), &[], SIZES);
                let bytewise: Vec<_> = (0..line.len()).collect();
                check(line.as_bytes(), &bytewise, SIZES);
            }
        }
    }

    #[test]
    fn line_of_the_record_size_is_read_whole() {
        let file = [&[b'x'; 40][..], b"\r\n", &[b'y'; 41], b"\r\n"].concat();
        let mut reader = LineReader::new(SIZES);
        let mut follower = LineFollower::default();
        // Before its newline, the line could still become too long.
        follower.follow(&mut reader, &file[..41]);
        assert_eq!((follower.out.len(), follower.long.is_none()), (0, true));
        follower.follow(&mut reader, &file);
        assert_eq!((follower.out[0].parts, follower.out[1].parts), (0, 5));
    }

    #[test]
    fn buffer_shrinks_after_a_long_line() {
        let mut reader =
            LineReader::new(ReadSizes { buffer: 1 << 10, record: 1 << 20, part: 1 << 16 });
        let file = [&[b'x'; 1 << 19][..], b"\nshort\n"].concat();
        let mut follower = LineFollower::default();
        follower.follow(&mut reader, &file);
        assert_eq!(follower.out.len(), 2);
        assert!(reader.footprint() <= 2 << 10, "{}", reader.footprint());
    }

    /// Counts the bytes that are read.
    struct Counted<'a>(&'a [u8], std::cell::Cell<u64>);

    impl ReadAt for Counted<'_> {
        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
            let count = self.0.read_at(bytes, offset)?;
            self.1.set(self.1.get() + count as u64);
            Ok(count)
        }
    }

    #[test]
    fn newline_search_resumes_where_it_stopped() {
        let mut reader =
            LineReader::new(ReadSizes { buffer: 1 << 10, record: 1 << 20, part: 1 << 16 });
        let mut position = ReadPosition::default();
        let file = vec![b'x'; 1 << 19];
        let mut read = 0;
        for end in (0..file.len()).step_by(1 << 9) {
            let file = Counted(&file[..end], std::cell::Cell::default());
            position.end = end as u64;
            let ReadOutcome::Nothing { scanned } = reader.read(&file, &position).unwrap() else {
                panic!("there is no newline");
            };
            position.scanned = scanned;
            read += file.1.get();
        }
        assert!(read < 2 << 19, "{read} bytes were read of {}", file.len());
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => Just(b"\n".to_vec()),
            2 => Just(b"\r\n".to_vec()),
            1 => Just(b"\r".to_vec()),
            1 => Just(b"\0".to_vec()),
            4 => (0..130_usize).prop_map(|len| vec![b'x'; len]),
            2 => proptest::collection::vec(any::<u8>(), 0..20),
        ];
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_read_as_lines(
            file in bytes(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
            buffer in 1..300_usize,
            record in 1..150_usize,
            part in 1..60_usize,
        ) {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(file.len() + 1)).collect();
            cuts.sort_unstable();
            check(&file, &cuts, ReadSizes { buffer, record, part: part.min(record) });
        }
    }
}
