//! The line reader, driven as the tail drives it, for fuzz targets.
//!
//! The tail itself needs files and a clock, which are slow; the reader needs neither.

use std::io;

use ai_agent_stage::Piece;
use siem_protocol::nul_runs::Folded;

use super::{
    line_reader::{LineReader, ReadOutcome, ReadPosition, ReadSizes, ScannedLine},
    line_scan::LineScan,
    long_line::LongLine,
};
use crate::platform::file::ReadAt;

/// Reads a single growing file.
#[derive(Debug)]
pub struct FuzzReader {
    reader: LineReader,
    position: ReadPosition,
    long: Option<LongLine>,
    scan: Option<Box<LineScan>>,
}

impl FuzzReader {
    /// Starts at the beginning of a file; the arguments are sizes in bytes.
    #[must_use]
    pub fn new(buffer: usize, record: usize, part: usize) -> Self {
        let reader = LineReader::new(ReadSizes { buffer, record, part });
        // Unlimited: no stamp of the file was taken.
        let position = ReadPosition { end: u64::MAX, ..ReadPosition::default() };
        Self { reader, position, long: None, scan: None }
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
            match self.reader.read(file, &self.position, self.long.as_ref(), &mut self.scan)? {
                ReadOutcome::Paused => {}
                ReadOutcome::Scanned(found) => {
                    let ScannedLine { data: bytes, runs, size, is_last, hasher } = *found;
                    visit(if is_last && self.long.is_none() {
                        let folded = Some(Folded { runs, digests: hasher.finish() });
                        Piece::Line { offset, bytes, size, incomplete: false, folded }
                    } else {
                        let long = self.long.get_or_insert_with(|| LongLine::new(offset));
                        let (part, whole) = long.add_scanned(bytes, hasher, is_last);
                        let (offset, nul_runs) = (long.position().start, runs);
                        let incomplete = false;
                        Piece::Part { offset, part, bytes, nul_runs, size, whole, incomplete }
                    });
                    self.end_part(size, is_last);
                }
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
                    let (bytes, is_last, nul_runs) = (found.bytes, found.is_last, &[][..]);
                    let incomplete = false;
                    visit(Piece::Part { offset, part, bytes, nul_runs, size, whole, incomplete });
                    self.end_part(size, is_last);
                }
            }
        }
    }

    fn end_part(&mut self, size: u64, is_last: bool) {
        self.position.offset += size;
        self.position.scanned = self.position.offset;
        self.long.take_if(|_| is_last);
        self.position.in_long_line = self.long.is_some();
    }

    /// Continues with the state that a checkpoint stores, as after a restart.
    ///
    /// # Errors
    /// Errors of reading the file.
    pub fn restart(&mut self, file: &dyn ReadAt) -> io::Result<()> {
        self.position.scanned = self.position.offset;
        self.scan = None;
        if let Some(long) = &mut self.long {
            *long = LongLine::restored(long.position());
            while !long.catch_up(file, self.position.offset, self.reader.step_buffer())? {}
        }
        Ok(())
    }
}
