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

/// Maximum number of bytes before the end of the log that are read at once. The files of the agent have
/// fewer; others may consist of a hole of any size.
const MAX_READ: u64 = log_file::FILES * log_file::LARGEST + (2 << 20);

/// Position in the log files of a directory.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    current: Option<Current>,
    /// True if lines were left out.
    is_cut: bool,
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
        Self { dir: dir.to_owned(), current: None, is_cut: false }
    }

    /// Returns true if there is a log file, or was one that is being read.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.current.is_some() || self.open_all().is_ok_and(|all| !all.is_empty())
    }

    /// Returns true if lines were left out since the last call, because a file is larger than those of
    /// the agent.
    #[must_use]
    pub fn take_cut(&mut self) -> bool {
        std::mem::take(&mut self.is_cut)
    }

    /// Passes the last `count` lines to `write`, oldest first. [`read_new`](Self::read_new) continues
    /// after them.
    ///
    /// # Errors
    /// Errors of reading the files, and of `write`.
    pub fn read_last(&mut self, count: u64, write: Write<'_>) -> io::Result<()> {
        let mut all = self.open_all()?;
        let (mut wanted, mut room) = (count, MAX_READ);
        let mut starts = Vec::new();
        for log in &all {
            let last = start_of_last(log, wanted, room)?;
            starts.push(last.start);
            wanted -= last.lines;
            room = room.saturating_sub(log.size);
            self.is_cut |= last.is_cut;
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

    /// Reads a file from `offset` to its present end, and remembers it as the current one.
    fn read_on(&mut self, mut log: OpenLog, mut offset: u64, write: Write<'_>) -> io::Result<()> {
        log.size = file::Stamp::of(&log.file)?.size;
        if log.size.saturating_sub(offset) > MAX_READ {
            offset = start_of_last(&log, u64::MAX, MAX_READ)?.start;
            self.is_cut = true;
        }
        let mut piece = vec![0; PIECE];
        while offset < log.size {
            let wanted = usize::try_from(log.size - offset).map_or(PIECE, |left| left.min(PIECE));
            let length = log.file.fill_at(&mut piece[..wanted], offset)?;
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

/// The last lines of a file.
struct LastLines {
    /// Offset at which they start.
    start: u64,
    /// Their number.
    lines: u64,
    /// True if there may be more, too far away from the end.
    is_cut: bool,
}

/// Finds the last `count` lines of a file, or fewer: those that start within `room` bytes before its end.
fn start_of_last(log: &OpenLog, count: u64, room: u64) -> io::Result<LastLines> {
    let floor = log.size.saturating_sub(room);
    let mut last = LastLines { start: log.size, lines: 0, is_cut: false };
    let mut end = log.size;
    let mut piece = vec![0; PIECE];
    while end > floor && last.lines < count {
        let start = end.saturating_sub(PIECE as u64).max(floor);
        let wanted = usize::try_from(end - start).unwrap_or(PIECE);
        let length = log.file.fill_at(&mut piece[..wanted], start)?;
        for at in memchr::memrchr_iter(b'\n', &piece[..length]) {
            let after = start + at as u64 + 1;
            // The newline at the end of the file ends the last line.
            if after < log.size && last.lines < count {
                (last.start, last.lines) = (after, last.lines + 1);
            }
        }
        end = start;
    }
    if last.lines < count {
        last.is_cut = floor > 0;
        // The first line of the file has no newline before it.
        if floor == 0 && log.size > 0 {
            (last.start, last.lines) = (0, last.lines + 1);
        }
    }
    Ok(last)
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

    /// A log of 100 GB that consists of a hole was read as a whole: the command did not end, and a
    /// support bundle held all of it in memory.
    #[cfg(unix)]
    #[test]
    fn log_with_a_huge_hole_is_read_from_near_its_end() {
        const HOLE: u64 = 1 << 42;

        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let extend = |name: &str, size| {
            let file = File::options().append(true).create(true).open(dir.join(name)).unwrap();
            file.set_len(size).unwrap();
        };
        write(dir, "agent.log.2", "too far away\n");
        write(dir, "agent.log.1", "before\n");
        extend("agent.log.1", HOLE);
        write(dir, "agent.log.1", "end of a line\na\nb\n");
        write(dir, "agent.log", "c\n");
        let mut reader = LogReader::new(dir);
        assert_eq!((last(&mut reader, 3), reader.take_cut()), ("a\nb\nc\n".to_owned(), false));
        for count in [4, u64::MAX] {
            let mut reader = LogReader::new(dir);
            assert_eq!(
                (last(&mut reader, count), reader.take_cut()),
                ("a\nb\nc\n".to_owned(), true)
            );
        }
        // A hole alone is not a line.
        fs::remove_file(dir.join("agent.log.1")).unwrap();
        extend("agent.log.1", HOLE);
        let mut reader = LogReader::new(dir);
        assert_eq!((last(&mut reader, 3), reader.take_cut()), ("c\n".to_owned(), true));
        // It appears while the log is followed.
        let mut reader = LogReader::new(dir);
        assert_eq!(last(&mut reader, 1), "c\n");
        extend("agent.log", HOLE);
        assert_eq!((new(&mut reader), reader.take_cut()), (String::new(), true));
        write(dir, "agent.log", "\nd\n");
        assert_eq!(new(&mut reader), "\nd\n");
    }

    #[test]
    fn files_of_the_agent_are_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let line = format!("{}\n", "x".repeat(1023));
        let lines = log_file::LARGEST / 1024;
        for name in log_file::names() {
            write(dir.path(), &name, &line.repeat(usize::try_from(lines).unwrap()));
        }
        let mut reader = LogReader::new(dir.path());
        let text = last(&mut reader, u64::MAX);
        assert_eq!((text.len() as u64, reader.take_cut()), (3 * log_file::LARGEST, false));
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
