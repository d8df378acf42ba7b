//! Output of commands: to standard output, or to a file that only the user can read.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use super::failure::Failure;
use crate::{platform::secure_file, text::counted};

/// Version of the JSON objects that docs/scripts.md describes; a change when a member is removed or
/// changes its meaning.
pub(super) const JSON_VERSION: u32 = 1;

/// Writes a line to standard output. A closed pipe is not an error.
pub(super) fn print(text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(error)),
        _ => Ok(()),
    }
}

/// Writes a note to standard error, beside the answer of a command.
pub(super) fn note(text: &str) {
    // With a closed standard error, the answer is enough.
    drop(writeln!(io::stderr(), "note: {text}"));
}

/// Writes text to standard output and flushes it. A closed pipe is an error, so that a command that
/// repeats ends.
pub(super) fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::failed)
}

/// Destination of lines.
pub(super) enum LineOutput {
    Stdout,
    /// A new file, which is deleted if the command fails.
    File {
        path: PathBuf,
        file: BufWriter<File>,
        count: u64,
    },
}

impl LineOutput {
    /// Creates the file at `path`, which must not exist yet; `-` is standard output.
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let opened = secure_file::create_new(path);
        let file = opened.map_err(|error| cannot_write(path, &error))?;
        Ok(Self::File { path: path.to_owned(), file: BufWriter::new(file), count: 0 })
    }

    pub(super) fn write(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(line.as_bytes()).and_then(|()| stdout.write_all(b"\n"))
            }
            Self::File { file, count, .. } => {
                *count += 1;
                file.write_all(line.as_bytes()).and_then(|()| file.write_all(b"\n"))
            }
        }
    }

    /// Syncs the file if the command succeeded, and deletes it otherwise: an incomplete export must
    /// not be taken for a complete one.
    pub(super) fn finish(self, result: Result<(), Failure>) -> Result<(), Failure> {
        let Self::File { path, mut file, count } = self else { return result };
        let finished = result.and_then(|()| {
            let synced = file.flush().and_then(|()| file.get_ref().sync_all());
            synced.map_err(|error| cannot_write(&path, &error))
        });
        if finished.is_err() {
            drop(fs::remove_file(&path));
            return finished;
        }
        let entries = counted(count, "entry", "entries");
        print(format_args!("wrote {entries} to `{}`, which only you can read", path.display()))
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot write `{}`: {error}", path.display()))
}
