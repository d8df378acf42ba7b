//! A line that is too long to be held in memory: length and hash are computed part by part.

use std::io;

use sha2::{Digest as _, Sha256};
use siem_protocol::Digest;

use super::{
    fingerprint::{LongLinePosition, SAMPLE, Sample},
    line_reader::LineReader,
};
use crate::platform::file::ReadAt;

/// Number of bytes that are read at once to restore the hash.
const STEP: usize = 256 << 10;

/// Line that is handed over in parts.
#[derive(Clone, Debug)]
pub(super) struct LongLine {
    position: LongLinePosition,
    length: u64,
    hash: Sha256,
}

impl LongLine {
    /// Creates a line that starts at `start`, before its first part.
    pub(super) fn new(start: u64) -> Self {
        Self {
            position: LongLinePosition { start, parts: 0, head: Sample::default() },
            length: 0,
            hash: Sha256::new(),
        }
    }

    /// Restores a line whose bytes before `offset` were handed over, by reading them again.
    ///
    /// # Errors
    /// Errors of reading the file, and a file that is too short.
    pub(super) fn resume(
        position: LongLinePosition,
        offset: u64,
        file: &dyn ReadAt,
        reader: &mut LineReader,
    ) -> io::Result<Self> {
        let mut line = Self { position, ..Self::new(position.start) };
        while position.start + line.length < offset {
            let from = position.start + line.length;
            let len = usize::try_from(offset - from).map_or(STEP, |len| len.min(STEP));
            let bytes = reader.copy(file, from, len)?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            line.hash.update(bytes);
            line.length += bytes.len() as u64;
        }
        Ok(line)
    }

    /// Adds the next part. Returns its number and, for the last one, length and hash of the line.
    pub(super) fn add(&mut self, bytes: &[u8], is_last: bool) -> (u32, Option<(u64, Digest)>) {
        if self.position.parts == 0 {
            self.position.head = Sample::of(&bytes[..bytes.len().min(SAMPLE)]);
        }
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        self.position.parts = self.position.parts.saturating_add(1);
        let whole = is_last.then(|| {
            let hash = self.hash.clone().finalize();
            (self.length, Digest::from_bytes(hash.into()))
        });
        (self.position.parts, whole)
    }

    /// Start of the line and number of parts.
    pub(super) fn position(&self) -> LongLinePosition {
        self.position
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::line_reader::ReadSizes;

    #[test]
    fn resumed_line_has_the_hash_of_the_whole_line() {
        let file = [b"abc\n".to_vec(), vec![b'x'; 3 * STEP + 7]].concat();
        let mut reader = LineReader::new(ReadSizes { buffer: 100, record: 50, part: 20 });
        let position = LongLinePosition { start: 4, parts: 2, head: Sample::default() };
        let offset = file.len() as u64 - 7;
        let mut line = LongLine::resume(position, offset, &&file[..], &mut reader).unwrap();
        let expected = (file.len() as u64 - 4, Digest::of(&file[4..]));
        assert_eq!(line.add(b"xxxxxxx", true), (3, Some(expected)));

        let short = &file[..200];
        LongLine::resume(position, offset, &short, &mut reader).unwrap_err();
    }
}
