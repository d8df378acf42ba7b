//! The log file of the agent: never larger than so much, and nobody waits for it.
//!
//! One process writes it, the one that holds the state directory. A line that can't be written is
//! lost, since the log must not stop what it tells of.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use super::secure_file;

/// How large a file may be.
const LARGEST: u64 = 10 << 20;
/// How many there are with the one that is written.
const FILES: u32 = 3;
/// How long it is left alone after it could not be written.
const PAUSE: Duration = Duration::from_secs(10);
/// How often it is looked whether the file still lies in its place.
const LOOK: Duration = Duration::from_secs(10);

/// `agent.log` in a directory, and those before it: `agent.log.1`, `agent.log.2`.
#[derive(Debug)]
pub struct LogFile {
    dir: PathBuf,
    largest: u64,
    open: Option<Open>,
    /// When it is tried again, or looked at, by the time that the agent is up.
    due: Duration,
}

#[derive(Debug)]
struct Open {
    file: File,
    size: u64,
}

impl LogFile {
    /// The log file in `dir`, which is made with the first line.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), largest: LARGEST, open: None, due: Duration::ZERO }
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// Adds a line, with its end.
    ///
    /// # Errors
    /// What the system says, once each time that it begins to; until it is tried again lines are
    /// dropped without a word.
    pub fn write(&mut self, line: &[u8], uptime: Duration) -> io::Result<()> {
        if uptime >= self.due {
            self.due = uptime + LOOK;
            let is_there = self.path().try_exists().unwrap_or(true);
            self.open.take_if(|_| !is_there);
            if self.open.is_none() {
                self.open = Some(self.begin().inspect_err(|_| self.due = uptime + PAUSE)?);
            }
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.size > 0 && open.size + line.len() as u64 > self.largest {
            self.open = None;
            self.rotate().inspect_err(|_| self.due = uptime + PAUSE)?;
            self.open = Some(self.begin().inspect_err(|_| self.due = uptime + PAUSE)?);
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        match open.file.write_all(line) {
            Ok(()) => {
                open.size += line.len() as u64;
                Ok(())
            }
            Err(error) => {
                // What follows must not stand behind half a line.
                drop(open.file.set_len(open.size));
                self.open = None;
                self.due = uptime + PAUSE;
                Err(error)
            }
        }
    }

    fn begin(&self) -> io::Result<Open> {
        secure_file::create_dir(&self.dir)?;
        let file = secure_file::options().append(true).open(self.path())?;
        let size = file.metadata()?.len();
        Ok(Open { file, size })
    }

    /// Gives each file the name of the one before it; the oldest goes. Whenever the process dies,
    /// each of them is whole.
    fn rotate(&self) -> io::Result<()> {
        let name = |number: u32| match number {
            0 => self.path(),
            number => self.dir.join(format!("agent.log.{number}")),
        };
        for number in (1..FILES).rev() {
            match fs::rename(name(number - 1), name(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(dir: &Path) -> LogFile {
        LogFile { largest: 100, ..LogFile::new(dir) }
    }

    fn read(dir: &Path, name: &str) -> Option<String> {
        fs::read_to_string(dir.join(name)).ok()
    }

    /// Every line is in one of three files, whole, or was in one that went; no file is too large.
    #[test]
    fn it_is_rotated_and_no_line_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        let mut log = small(&logs);
        for number in 0..100 {
            log.write(format!("line {number:04}\n").as_bytes(), Duration::ZERO).unwrap();
        }
        let names = ["agent.log.2", "agent.log.1", "agent.log"];
        let texts = names.map(|name| read(&logs, name).unwrap());
        assert!(texts.iter().all(|text| text.len() <= 100), "{texts:?}");
        let lines: Vec<_> = texts.iter().flat_map(|text| text.lines()).collect();
        let expected: Vec<_> =
            (100 - lines.len()..100).map(|number| format!("line {number:04}")).collect();
        assert_eq!(lines, expected);
        assert_eq!(fs::read_dir(&logs).unwrap().count(), 3);
    }

    #[test]
    fn the_next_process_goes_on_where_the_last_one_ended() {
        let dir = tempfile::tempdir().unwrap();
        small(dir.path()).write(&[b'a'; 60], Duration::ZERO).unwrap();
        small(dir.path()).write(&[b'b'; 60], Duration::ZERO).unwrap();
        assert_eq!(read(dir.path(), "agent.log.1").unwrap(), "a".repeat(60));
        assert_eq!(read(dir.path(), "agent.log").unwrap(), "b".repeat(60));
    }

    /// A directory that is none stands in for a disk that is full: it is said once, and tried again.
    #[test]
    fn what_cannot_be_written_is_tried_again_and_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        fs::write(&logs, "").unwrap();
        let mut log = small(&logs);
        assert!(log.write(b"a\n", Duration::ZERO).is_err());
        log.write(b"b\n", Duration::from_secs(1)).unwrap();
        fs::remove_file(&logs).unwrap();
        log.write(b"c\n", Duration::from_secs(2)).unwrap();
        log.write(b"d\n", PAUSE).unwrap();
        assert_eq!(read(&logs, "agent.log").unwrap(), "d\n");
    }

    #[test_requires::requires(not_wine)]
    #[test]
    fn one_that_somebody_deleted_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = small(dir.path());
        log.write(b"a\n", Duration::ZERO).unwrap();
        fs::remove_file(log.path()).unwrap();
        log.write(b"b\n", LOOK).unwrap();
        assert_eq!(read(dir.path(), "agent.log").unwrap(), "b\n");
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_can_read_it() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        let mut log = small(&logs);
        log.write(b"a\n", Duration::ZERO).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&logs), mode(&log.path())), (0o700, 0o600));
    }
}
