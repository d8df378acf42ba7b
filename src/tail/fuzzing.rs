//! The reader, driven as the tail drives it, for fuzzing.
//!
//! Hidden, and public all the same: the bodies of the fuzz targets are built by cargo-fuzz on
//! nightly and by a test on stable, and both see only what is public. The tail itself needs files
//! and a clock, which are slow; what takes bytes apart needs neither.

use std::io;

use super::{
    chunk::Piece,
    long_line::LongLine,
    reader::{ReadOutcome, ReadPosition, ReadSizes, Reader},
};
use crate::platform::file::ReadAt;

/// Reads one file that grows.
#[derive(Debug)]
pub struct Reading {
    reader: Reader,
    position: ReadPosition,
    long: Option<LongLine>,
}

impl Reading {
    /// Begins at the start of a file, with a buffer, a longest record and a part of so many bytes.
    #[must_use]
    pub fn new(buffer: usize, record: usize, part: usize) -> Self {
        let reader = Reader::new(ReadSizes { buffer, record, part });
        // Nobody has asked where the file ends.
        let position = ReadPosition { end: u64::MAX, ..ReadPosition::default() };
        Self { reader, position, long: None }
    }

    /// Shows what is new in `file`, and says up to where it looked.
    ///
    /// # Errors
    /// What reading the file says.
    pub fn read_on(
        &mut self,
        file: &dyn ReadAt,
        show: &mut dyn FnMut(Piece<'_>),
    ) -> io::Result<u64> {
        loop {
            let offset = self.position.offset;
            match self.reader.read(file, &self.position)? {
                ReadOutcome::Nothing { scanned } => {
                    self.position.scanned = scanned;
                    return Ok(scanned);
                }
                ReadOutcome::Lines(lines) => {
                    lines.pieces.iter().copied().for_each(&mut *show);
                    self.position.offset += lines.raw.len() as u64;
                    self.position.scanned = lines.end.unwrap_or(self.position.offset);
                }
                ReadOutcome::Part(found) => {
                    let long = self.long.get_or_insert_with(|| LongLine::begin(offset));
                    let (part, whole) = long.add(found.bytes, found.is_last);
                    let (offset, size) = (long.at().start, found.raw.len() as u64);
                    let bytes = found.bytes;
                    show(Piece::Part { offset, part, bytes, size, whole, incomplete: false });
                    self.position.offset += size;
                    self.position.scanned = self.position.offset;
                    self.position.in_long_line = !found.is_last;
                    self.long = self.long.take().filter(|_| !found.is_last);
                }
            }
        }
    }

    /// Goes on with what a checkpoint keeps, as after a restart.
    ///
    /// # Errors
    /// What reading the file says.
    pub fn restart(&mut self, file: &dyn ReadAt) -> io::Result<()> {
        self.position.scanned = self.position.offset;
        if let Some(long) = self.long.take() {
            let (at, offset) = (long.at(), self.position.offset);
            self.long = Some(LongLine::resume(at, offset, file, &mut self.reader)?);
        }
        Ok(())
    }
}
