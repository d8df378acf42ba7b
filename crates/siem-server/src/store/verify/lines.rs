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
        self.go_to(from)?;
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

    fn go_to(&mut self, to: u64) -> io::Result<()> {
        match i64::try_from(to).ok().zip(i64::try_from(self.at).ok()) {
            Some((to, at)) => self.reader.seek_relative(to - at)?,
            None => drop(self.reader.seek(SeekFrom::Start(to))?),
        }
        self.at = to;
        Ok(())
    }

    /// Reports whether there is anything but newlines and zeros between two positions.
    pub(super) fn has_text(&mut self, from: u64, to: u64) -> io::Result<bool> {
        self.go_to(from)?;
        while self.at < to {
            let block = self.reader.fill_buf()?;
            let length =
                usize::try_from(to - self.at).map_or(block.len(), |to| to.min(block.len()));
            if length == 0 {
                break;
            }
            if block[..length].iter().any(|byte| !matches!(byte, 0 | b'\n')) {
                return Ok(true);
            }
            self.reader.consume(length);
            self.at += length as u64;
        }
        Ok(false)
    }
}
