//! Reads the log files of the agent: the last lines, and those that are added, also across a rotation.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{
    file::{self, FileId, ReadAt as _},
    log_file,
};

/// Size of the pieces that are read.
const PIECE: usize = 64 << 10;

/// Position in the log files of a directory.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    current: Option<Current>,
}

/// The file that is read, and the end of what was read. It stays open, so that its id is not reused.
#[derive(Debug)]
struct Current {
    log: OpenLog,
    offset: u64,
}

#[derive(Debug)]
struct OpenLog {
    file: File,
    id: Option<FileId>,
    size: u64,
}

/// Receives pieces of the log.
type Write<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

impl LogReader {
    /// Creates a reader of the files in `dir`, from which nothing was read.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), current: None }
    }

    /// Returns true if there is a log file, or was one that is being read.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.current.is_some() || self.open_all().is_ok_and(|all| !all.is_empty())
    }

    /// Passes the last `count` lines to `write`, oldest first. [`read_new`](Self::read_new) continues
    /// after them.
    ///
    /// # Errors
    /// Errors of reading the files, and of `write`.
    pub fn read_last(&mut self, count: u64, write: Write<'_>) -> io::Result<()> {
        let mut all = self.open_all()?;
        let mut wanted = count;
        let mut starts = Vec::new();
        for log in &all {
            let (start, lines) = start_of_last(log, wanted)?;
            starts.push(start);
            wanted -= lines;
            if wanted == 0 {
                break;
            }
        }
        all.truncate(starts.len());
        for (log, start) in all.into_iter().zip(starts).rev() {
            self.read_on(log, start, write)?;
        }
        Ok(())
    }

    /// Passes everything that was added since the last call to `write`.
    ///
    /// # Errors
    /// Errors of reading the files, and of `write`.
    pub fn read_new(&mut self, write: Write<'_>) -> io::Result<()> {
        loop {
            // First listed, then read: what a file gets before its rotation is complete by then.
            let mut newer = self.open_all()?;
            if let Some(current) = &self.current {
                let id = current.log.id;
                if let Some(at) = newer.iter().position(|log| log.id == id) {
                    newer.truncate(at);
                }
            }
            if let Some(Current { log, offset }) = self.current.take() {
                // A file that became shorter was emptied.
                let is_shorter = file::Stamp::of(&log.file)?.size < offset;
                self.read_on(log, if is_shorter { 0 } else { offset }, write)?;
            }
            if newer.is_empty() {
                return Ok(());
            }
            for log in newer.into_iter().rev() {
                self.read_on(log, 0, write)?;
            }
        }
    }

    /// Reads a file from `offset` to its end, and remembers it as the current one.
    fn read_on(&mut self, log: OpenLog, mut offset: u64, write: Write<'_>) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            let length = log.file.fill_at(&mut piece, offset)?;
            if length == 0 {
                break;
            }
            write(&piece[..length])?;
            offset += length as u64;
        }
        self.current = Some(Current { log, offset });
        Ok(())
    }

    /// Opens all log files, the newest first. In the other order, a rotation meanwhile could hide one.
    fn open_all(&self) -> io::Result<Vec<OpenLog>> {
        let mut all: Vec<OpenLog> = Vec::new();
        for name in log_file::names() {
            let (file, stamp) = match file::open_regular(&self.dir.join(name)) {
                Ok(Some(opened)) => opened,
                Ok(None) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            // A rotation meanwhile has given the file another name.
            if all.iter().all(|log| log.id != stamp.id) {
                all.push(OpenLog { file, id: stamp.id, size: stamp.size });
            }
        }
        Ok(all)
    }
}

/// Returns the start of the last `count` lines of a file, and their number if there are fewer.
fn start_of_last(log: &OpenLog, count: u64) -> io::Result<(u64, u64)> {
    if count == 0 {
        return Ok((log.size, 0));
    }
    let mut lines = 0;
    let mut end = log.size;
    let mut piece = vec![0; PIECE];
    while end > 0 {
        let start = end.saturating_sub(PIECE as u64);
        let wanted = usize::try_from(end - start).unwrap_or(PIECE);
        let length = log.file.fill_at(&mut piece[..wanted], start)?;
        for at in memchr::memrchr_iter(b'\n', &piece[..length]) {
            let after = start + at as u64 + 1;
            // The newline at the end of the file ends the last line.
            if after == log.size {
                continue;
            }
            lines += 1;
            if lines == count {
                return Ok((after, count));
            }
        }
        end = start;
    }
    // The first line of the file has no newline before it.
    let is_empty = log.size == 0;
    Ok((0, if is_empty { 0 } else { (lines + 1).min(count) }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        use std::io::Write as _;
        let file = File::options().create(true).append(true).open(dir.join(name));
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn last(reader: &mut LogReader, count: u64) -> String {
        let mut text = Vec::new();
        let mut write = |piece: &[u8]| {
            text.extend_from_slice(piece);
            Ok(())
        };
        reader.read_last(count, &mut write).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn new(reader: &mut LogReader) -> String {
        let mut text = Vec::new();
        let mut write = |piece: &[u8]| {
            text.extend_from_slice(piece);
            Ok(())
        };
        reader.read_new(&mut write).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn rotate(dir: &Path) {
        drop(fs::rename(dir.join("agent.log.1"), dir.join("agent.log.2")));
        fs::rename(dir.join("agent.log"), dir.join("agent.log.1")).unwrap();
    }

    #[test]
    fn last_lines_reach_into_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!LogReader::new(dir.path()).has_files());
        write(dir.path(), "agent.log.2", "1\n2\n");
        write(dir.path(), "agent.log.1", "3\n4\n");
        write(dir.path(), "agent.log", "5\n6\n");
        let mut expected = String::new();
        for count in 1..=6 {
            expected = format!("{}\n{expected}", 7 - count);
            assert_eq!(last(&mut LogReader::new(dir.path()), count), expected);
        }
        assert_eq!(last(&mut LogReader::new(dir.path()), 100), expected);
        assert_eq!(last(&mut LogReader::new(dir.path()), 0), "");
    }

    #[test]
    fn long_lines_are_counted_across_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(2 * PIECE);
        write(dir.path(), "agent.log", &format!("first\n{long}\n{long}\nlast\n"));
        assert_eq!(last(&mut LogReader::new(dir.path()), 2), format!("{long}\nlast\n"));
        assert!(last(&mut LogReader::new(dir.path()), 4).starts_with("first\n"));
    }

    #[test_requires::requires(not_wine)]
    #[test]
    fn new_lines_are_read_across_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, "agent.log", "a\n");
        let mut reader = LogReader::new(dir);
        assert_eq!(last(&mut reader, 10), "a\n");
        assert_eq!(new(&mut reader), "");
        write(dir, "agent.log", "b\n");
        rotate(dir);
        assert_eq!(new(&mut reader), "b\n");
        write(dir, "agent.log", "c\n");
        rotate(dir);
        write(dir, "agent.log", "d\n");
        assert_eq!(new(&mut reader), "c\nd\n");
        // More rotations than files are kept: the rest is lost, and reading continues.
        for line in ["e\n", "f\n", "g\n", "h\n"] {
            rotate(dir);
            write(dir, "agent.log", line);
        }
        assert_eq!(new(&mut reader), "f\ng\nh\n");
    }

    #[test]
    fn emptied_and_deleted_files_are_read_from_their_start() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, "agent.log", "long line\n");
        let mut reader = LogReader::new(dir);
        assert_eq!(new(&mut reader), "long line\n");
        File::create(dir.join("agent.log")).unwrap();
        write(dir, "agent.log", "a\n");
        assert_eq!(new(&mut reader), "a\n");
        fs::remove_file(dir.join("agent.log")).unwrap();
        assert_eq!(new(&mut reader), "");
        write(dir, "agent.log", "b\n");
        assert_eq!(new(&mut reader), "b\n");
    }
}
