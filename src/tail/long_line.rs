//! A line too large to be held: counted and hashed while its parts go by.

use std::io;

use sha2::{Digest as _, Sha256};
use siem_protocol::Digest;

use super::{
    checkpoint::LongLinePosition,
    fingerprint::{SAMPLE, Sample},
    reader::Reader,
};
use crate::platform::file::ReadAt;

/// How many bytes are read at once to count and hash again.
const STEP: usize = 256 << 10;

/// A line of which parts were handed over.
#[derive(Clone, Debug)]
pub(super) struct LongLine {
    at: LongLinePosition,
    length: u64,
    hash: Sha256,
}

impl LongLine {
    /// A line that begins at `start`, before its first part.
    pub(super) fn begin(start: u64) -> Self {
        Self {
            at: LongLinePosition { start, parts: 0, head: Sample::default() },
            length: 0,
            hash: Sha256::new(),
        }
    }

    /// A line as it stood when the bytes before `offset` had been handed over: reads them again.
    ///
    /// # Errors
    /// What reading the file says, or that it is too short.
    pub(super) fn resume(
        at: LongLinePosition,
        offset: u64,
        file: &dyn ReadAt,
        reader: &mut Reader,
    ) -> io::Result<Self> {
        let mut line = Self { at, ..Self::begin(at.start) };
        while at.start + line.length < offset {
            let from = at.start + line.length;
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

    /// Adds the next part: its number and, for the last one, length and hash of the line.
    pub(super) fn add(&mut self, bytes: &[u8], is_last: bool) -> (u32, Option<(u64, Digest)>) {
        if self.at.parts == 0 {
            self.at.head = Sample::of(&bytes[..bytes.len().min(SAMPLE)]);
        }
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        self.at.parts = self.at.parts.saturating_add(1);
        let whole = is_last.then(|| {
            let hash = self.hash.clone().finalize();
            (self.length, Digest::from_bytes(hash.into()))
        });
        (self.at.parts, whole)
    }

    /// Where the line begins and how many parts were added.
    pub(super) fn at(&self) -> LongLinePosition {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::reader::ReadSizes;

    #[test]
    fn a_resumed_line_has_the_hash_of_the_whole() {
        let file = [b"abc\n".to_vec(), vec![b'x'; 3 * STEP + 7]].concat();
        let mut reader = Reader::new(ReadSizes { buffer: 100, record: 50, part: 20 });
        let at = LongLinePosition { start: 4, parts: 2, head: Sample::default() };
        let offset = file.len() as u64 - 7;
        let mut line = LongLine::resume(at, offset, &&file[..], &mut reader).unwrap();
        let expected = (file.len() as u64 - 4, Digest::of(&file[4..]));
        assert_eq!(line.add(b"xxxxxxx", true), (3, Some(expected)));

        let short = &file[..200];
        LongLine::resume(at, offset, &short, &mut reader).unwrap_err();
    }
}
