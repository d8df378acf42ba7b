//! Log file of the agent, limited in size and never blocking.
//!
//! Only the process that holds the lock of the state directory writes it. A line that cannot be
//! written is dropped, since logging must not stop the agent.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use super::secure_file;

/// Name of the file that is written.
const FILE: &str = "agent.log";
/// Maximum size of a file.
pub(super) const LARGEST: u64 = 10 << 20;
/// Number of files, including the one being written.
pub(super) const FILES: u64 = 3;
/// Time without further attempts after a failed write.
const PAUSE: Duration = Duration::from_secs(10);
/// Interval of the checks whether the file still exists at its path.
const LOOK: Duration = Duration::from_secs(10);

/// Names of the files, the newest first.
pub(super) fn names() -> impl Iterator<Item = String> {
    let name = |number| match number {
        0 => FILE.to_owned(),
        number => format!("{FILE}.{number}"),
    };
    (0..FILES).map(name)
}

/// `agent.log` in a directory, and the rotated files `agent.log.1` and `agent.log.2`.
#[derive(Debug)]
pub struct LogFile {
    dir: PathBuf,
    largest: u64,
    open: Option<Open>,
    /// Uptime at which to try again, or to check the path.
    due: Duration,
}

#[derive(Debug)]
struct Open {
    file: File,
    size: u64,
}

impl LogFile {
    /// Creates a log file in `dir`, on the first line.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), largest: LARGEST, open: None, due: Duration::ZERO }
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Appends a line, including its end.
    ///
    /// # Errors
    /// The error of the system for the first failed write; later lines are dropped silently until
    /// the next attempt.
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
                // The next line must not follow an incomplete one.
                drop(open.file.set_len(open.size));
                self.open = None;
                self.due = uptime + PAUSE;
                Err(error)
            }
        }
    }

    fn begin(&self) -> io::Result<Open> {
        secure_file::create_dir(&self.dir)?;
        secure_file::check_own_dir(&self.dir)?;
        let file = secure_file::open(secure_file::options().append(true), &self.path())?;
        let size = file.metadata()?.len();
        Ok(Open { file, size })
    }

    /// Rotates the files and deletes the oldest. Each file is complete whenever the process dies.
    fn rotate(&self) -> io::Result<()> {
        let paths: Vec<_> = names().map(|name| self.dir.join(name)).collect();
        for (from, to) in paths.iter().zip(&paths[1..]).rev() {
            match fs::rename(from, to) {
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

    /// Every line is complete in one of three files, or was in a deleted one.
    #[test]
    fn rotation_tears_no_line_and_limits_the_size() {
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
    fn next_process_appends_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        small(dir.path()).write(&[b'a'; 60], Duration::ZERO).unwrap();
        small(dir.path()).write(&[b'b'; 60], Duration::ZERO).unwrap();
        assert_eq!(read(dir.path(), "agent.log.1").unwrap(), "a".repeat(60));
        assert_eq!(read(dir.path(), "agent.log").unwrap(), "b".repeat(60));
    }

    /// A directory in place of the file simulates a full disk.
    #[test]
    fn failed_write_is_reported_once_and_tried_again() {
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
    fn deleted_file_is_created_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = small(dir.path());
        log.write(b"a\n", Duration::ZERO).unwrap();
        fs::remove_file(log.path()).unwrap();
        log.write(b"b\n", LOOK).unwrap();
        assert_eq!(read(dir.path(), "agent.log").unwrap(), "b\n");
    }

    #[cfg(unix)]
    #[test]
    fn symlink_in_place_of_the_log_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("precious");
        fs::write(&target, "precious").unwrap();
        let logs = dir.path().join("logs");
        secure_file::create_dir(&logs).unwrap();
        std::os::unix::fs::symlink(&target, logs.join("agent.log")).unwrap();
        assert!(small(&logs).write(b"a\n", Duration::ZERO).is_err());
        let linked = dir.path().join("linked");
        std::os::unix::fs::symlink(&logs, &linked).unwrap();
        fs::remove_file(logs.join("agent.log")).unwrap();
        assert!(small(&linked).write(b"a\n", Duration::ZERO).is_err());
        assert_eq!(fs::read_dir(&logs).unwrap().count(), 0);
        assert_eq!(fs::read(&target).unwrap(), b"precious");
    }

    #[cfg(unix)]
    #[test]
    fn file_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        let mut log = small(&logs);
        log.write(b"a\n", Duration::ZERO).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&logs), mode(&log.path())), (0o700, 0o600));
    }
}
