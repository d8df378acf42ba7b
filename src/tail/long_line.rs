//! A line that is too long to be held in memory: length and hash are computed part by part.

use std::io;

use siem_protocol::nul_runs::{LineDigests, LineHasher, Segment};

use super::{
    fingerprint::{LongLinePosition, SAMPLE, Sample},
    line_scan::{SLICE, read_segment},
    partial_line::PartialLine,
};
use crate::platform::file::ReadAt;

/// Line that is handed over in parts.
#[derive(Clone, Debug)]
pub(super) struct LongLine {
    position: LongLinePosition,
    hasher: LineHasher,
}

impl LongLine {
    /// Creates a line that starts at `start`, before its first part.
    pub(super) fn new(start: u64) -> Self {
        Self::restored(LongLinePosition { start, parts: 0, head: Sample::default() })
    }

    /// Creates a line whose parts were handed over; [`catch_up`](Self::catch_up) restores its hash.
    pub(super) fn restored(position: LongLinePosition) -> Self {
        Self { position, hasher: LineHasher::default() }
    }

    /// Reads bytes before `offset` again to restore the hash. Returns whether it is complete; if not,
    /// a slice was read, and the call must be repeated.
    ///
    /// # Errors
    /// Errors of reading the file, and a file that is too short.
    pub(super) fn catch_up(
        &mut self,
        file: &dyn ReadAt,
        offset: u64,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        let mut budget = SLICE;
        while !self.is_at(offset) {
            if budget == 0 {
                return Ok(false);
            }
            let at = self.position.start + self.hasher.length();
            let run = self.hasher.is_in_run().then_some(&self.hasher);
            let segment = read_segment(file, at, offset, run, buffer, &mut budget)?;
            self.hasher.update(segment.ok_or(io::ErrorKind::UnexpectedEof)?);
        }
        Ok(true)
    }

    /// Returns whether the hash covers the line up to `offset`.
    pub(super) fn is_at(&self, offset: u64) -> bool {
        self.position.start + self.hasher.length() >= offset
    }

    /// Hash of the line so far.
    pub(super) fn hasher(&self) -> &LineHasher {
        &self.hasher
    }

    /// Adds the next part. Returns its number and, for the last one, the digests of the line.
    pub(super) fn add(&mut self, bytes: &[u8], is_last: bool) -> (u32, Option<LineDigests>) {
        if self.position.parts == 0 {
            self.position.head = Sample::of(&bytes[..bytes.len().min(SAMPLE)]);
        }
        self.hasher.update(Segment::Data(bytes));
        self.end_part(is_last)
    }

    /// Adds a part that was scanned: `head` are the first bytes of the part, and `hasher` contains
    /// the line up to the end of the part.
    pub(super) fn add_scanned(
        &mut self,
        head: &[u8],
        hasher: LineHasher,
        is_last: bool,
    ) -> (u32, Option<LineDigests>) {
        if self.position.parts == 0 {
            self.position.head = Sample::of(&head[..head.len().min(SAMPLE)]);
        }
        self.hasher = hasher;
        self.end_part(is_last)
    }

    /// Adds the last part of a line that never got its newline.
    pub(super) fn add_incomplete(&mut self, line: &PartialLine) -> (u32, Option<LineDigests>) {
        line.segments().for_each(|segment| self.hasher.update(segment));
        self.end_part(true)
    }

    fn end_part(&mut self, is_last: bool) -> (u32, Option<LineDigests>) {
        self.position.parts = self.position.parts.saturating_add(1);
        (self.position.parts, is_last.then(|| self.hasher.clone().finish()))
    }

    /// Start of the line and number of parts.
    pub(super) fn position(&self) -> LongLinePosition {
        self.position
    }
}

#[cfg(test)]
mod tests {
    use siem_protocol::Digest;

    use super::*;

    #[test]
    fn resumed_line_has_the_hash_of_the_whole_line() {
        let len = usize::try_from(2 * SLICE).unwrap() + 300_007;
        let file = [b"abc\n".to_vec(), vec![b'x'; len]].concat();
        let position = LongLinePosition { start: 4, parts: 2, head: Sample::default() };
        let offset = file.len() as u64 - 7;
        let mut buffer = vec![0; 100_000];
        let mut line = LongLine::restored(position);
        let mut slices = 1;
        while !line.catch_up(&&file[..], offset, &mut buffer).unwrap() {
            slices += 1;
        }
        assert_eq!(slices, 3);
        let (part, digests) = line.add(b"xxxxxxx", true);
        let digests = digests.unwrap();
        assert_eq!((part, digests.length), (3, file.len() as u64 - 4));
        assert_eq!(digests.sha256, Some(Digest::of(&file[4..])));

        let short = &file[..200];
        LongLine::restored(position).catch_up(&short, offset, &mut buffer).unwrap_err();
    }
}
