//! Where the lines of a command go: to standard output, or into a file of the user's alone.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use super::{Failure, print};
use crate::{platform::secure_file, text::counted};

/// Where lines go.
pub(super) enum Lines {
    /// To standard output.
    Printed,
    /// Into a file, which is whole or not there.
    File { path: PathBuf, file: BufWriter<File>, count: u64 },
}

impl Lines {
    pub(super) fn printed() -> Self {
        Self::Printed
    }

    /// Into the file at `path`, which must not be there yet; `-` is standard output.
    pub(super) fn to(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Ok(Self::Printed);
        }
        let opened = secure_file::create_new(path);
        let file = opened.map_err(|error| wrong(path, &error))?;
        Ok(Self::File { path: path.to_owned(), file: BufWriter::new(file), count: 0 })
    }

    pub(super) fn write(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::Printed => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(line.as_bytes()).and_then(|()| stdout.write_all(b"\n"))
            }
            Self::File { file, count, .. } => {
                *count += 1;
                file.write_all(line.as_bytes()).and_then(|()| file.write_all(b"\n"))
            }
        }
    }

    /// That was all, if `done` says so: half a file would look like a whole one.
    pub(super) fn finish(self, done: Result<(), Failure>) -> Result<(), Failure> {
        let Self::File { path, mut file, count } = self else { return done };
        let finished = done.and_then(|()| {
            let synced = file.flush().and_then(|()| file.get_ref().sync_all());
            synced.map_err(|error| wrong(&path, &error))
        });
        if finished.is_err() {
            drop(fs::remove_file(&path));
            return finished;
        }
        let count = counted(count, "entry is", "entries are");
        print(format_args!("{count} in `{}`, which only you can read", path.display()))
    }
}

fn wrong(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot write `{}`: {error}", path.display()))
}
