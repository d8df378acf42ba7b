//! Lines of an epoch in the order of their positions.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use crate::regular_file::open_regular_file;

/// Size of the buffer.
const BUFFER: usize = 256 << 10;
/// No line is longer: of a longer one, each part counts as a line.
const LONGEST: u64 = 256 << 20;

/// File of the lines of an epoch.
#[derive(Debug)]
pub(super) struct LineFile {
    reader: BufReader<File>,
    at: u64,
    line: Vec<u8>,
    /// Size of the file when it was opened.
    pub(super) length: u64,
}

impl LineFile {
    /// Opens a file; `None` if there is none.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = match open_regular_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let length = file.metadata()?.len();
        let reader = BufReader::with_capacity(BUFFER, file);
        Ok(Some(Self { reader, at: 0, line: Vec::new(), length }))
    }

    /// Passes the lines between two positions to `show`, without their newlines, and without empty ones. The last
    /// one may be cut.
    pub(super) fn each(
        &mut self,
        from: u64,
        to: u64,
        mut show: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        if from != self.at {
            match i64::try_from(from).ok().zip(i64::try_from(self.at).ok()) {
                Some((from, at)) => self.reader.seek_relative(from - at)?,
                None => drop(self.reader.seek(SeekFrom::Start(from))?),
            }
            self.at = from;
        }
        while self.at < to {
            self.line.clear();
            let most = (to - self.at).min(LONGEST);
            let read = self.reader.by_ref().take(most).read_until(b'\n', &mut self.line)?;
            if read == 0 {
                return Ok(());
            }
            self.at += read as u64;
            let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
            if !line.is_empty() {
                show(line);
            }
        }
        Ok(())
    }

    /// Reports whether there is anything but empty lines and zeros between two positions.
    pub(super) fn has_text(&mut self, from: u64, to: u64) -> io::Result<bool> {
        let mut has_text = false;
        self.each(from, to, |line| has_text |= line.iter().any(|byte| *byte != 0))?;
        Ok(has_text)
    }
}
