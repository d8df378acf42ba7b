//! The line reader, driven as the tail drives it, for fuzz targets.
//!
//! The tail itself needs files and a clock, which are slow; the reader needs neither.

use std::io;

use ai_agent_stage::Piece;

use super::{
    line_reader::{LineReader, ReadOutcome, ReadPosition, ReadSizes},
    long_line::LongLine,
};
use crate::platform::file::ReadAt;

/// Reads a single growing file.
#[derive(Debug)]
pub struct FuzzReader {
    reader: LineReader,
    position: ReadPosition,
    long: Option<LongLine>,
}

impl FuzzReader {
    /// Starts at the beginning of a file; the arguments are sizes in bytes.
    #[must_use]
    pub fn new(buffer: usize, record: usize, part: usize) -> Self {
        let reader = LineReader::new(ReadSizes { buffer, record, part });
        // Unlimited: no stamp of the file was taken.
        let position = ReadPosition { end: u64::MAX, ..ReadPosition::default() };
        Self { reader, position, long: None }
    }

    /// Passes the new lines and parts of `file` to `visit`; returns the end of the searched bytes.
    ///
    /// # Errors
    /// Errors of reading the file.
    pub fn read_on(
        &mut self,
        file: &dyn ReadAt,
        visit: &mut dyn FnMut(Piece<'_>),
    ) -> io::Result<u64> {
        loop {
            let offset = self.position.offset;
            match self.reader.read(file, &self.position)? {
                ReadOutcome::Nothing { scanned } => {
                    self.position.scanned = scanned;
                    return Ok(scanned);
                }
                ReadOutcome::Lines(lines) => {
                    lines.pieces.iter().copied().for_each(&mut *visit);
                    self.position.offset += lines.raw.len() as u64;
                    self.position.scanned = lines.end.unwrap_or(self.position.offset);
                }
                ReadOutcome::Part(found) => {
                    let long = self.long.get_or_insert_with(|| LongLine::new(offset));
                    let (part, whole) = long.add(found.bytes, found.is_last);
                    let (offset, size) = (long.position().start, found.raw.len() as u64);
                    let bytes = found.bytes;
                    visit(Piece::Part { offset, part, bytes, size, whole, incomplete: false });
                    self.position.offset += size;
                    self.position.scanned = self.position.offset;
                    self.position.in_long_line = !found.is_last;
                    self.long = self.long.take().filter(|_| !found.is_last);
                }
            }
        }
    }

    /// Continues with the state that a checkpoint stores, as after a restart.
    ///
    /// # Errors
    /// Errors of reading the file.
    pub fn restart(&mut self, file: &dyn ReadAt) -> io::Result<()> {
        self.position.scanned = self.position.offset;
        if let Some(long) = self.long.take() {
            let (at, offset) = (long.position(), self.position.offset);
            self.long = Some(LongLine::resume(at, offset, file, &mut self.reader)?);
        }
        Ok(())
    }
}
