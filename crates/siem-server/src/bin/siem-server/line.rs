//! `siem-server line`.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use siem_protocol::{
    Entry, EntryError, LineDigests,
    nul_runs::{LineHasher, NulRunsError, Segment, segments},
};

use siem_server::{life::AccessAction, store::open_lines};

use crate::{Data, DataError, failure::Failure, output};

/// Write a line of a file as it was in the file
///
/// Joins the parts of the line, restores the runs of NUL that the agent removed, and verifies length
/// and hashes. If the line was altered after it was read, this is the line as it was first read.
#[derive(Args)]
pub(crate) struct Line {
    #[command(flatten)]
    data: Data,
    /// Generation of the file, as in the entries
    generation: String,
    /// Offset of the line in the file, as in the entries
    offset: u64,
    /// New file to write to, in which runs of NUL become holes; standard output by default
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Reason, for the access log
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

#[derive(Debug, thiserror::Error)]
enum LineError {
    #[error("cannot read `{path}`")]
    Read { path: PathBuf, source: io::Error },
    #[error("no entry has a line of generation `{generation}` at offset {offset}")]
    Absent { generation: String, offset: u64 },
    #[error(
        "all entries with a line of generation `{generation}` at offset {offset} were sent after the \
         line was altered"
    )]
    OnlyAltered { generation: String, offset: u64 },
    #[error("part {0} of the line is missing")]
    PartMissing(u32),
    #[error("the last part of the line is missing")]
    LastMissing,
    #[error("a filter edited the line: the original cannot be restored")]
    Edited,
    #[error("cannot read an entry of the line")]
    Entry(#[from] EntryError),
    #[error("entry {seq} has invalid runs of NUL")]
    Runs { seq: u64, source: NulRunsError },
    #[error("the restored line differs from its {0}")]
    Differs(&'static str),
    #[error("cannot write the line")]
    Write(#[source] io::Error),
}

impl Line {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        let directory = &self.data.directory;
        if let Err(source) = fs::read_dir(directory) {
            return Err(Failure::usage(DataError { path: directory.clone(), source }));
        }
        self.data.continue_as_owner()?;
        // What cannot be logged is not read.
        let what = format!("line at {} of generation {}", self.offset, self.generation);
        crate::access_log::log(directory, AccessAction::Read, &what, &self.reason)?;
        let found = self.find(&directory.join("machines")).map_err(Failure::failed)?;
        if found.has_altered {
            output::note(
                "warning: the line was sent again after bytes in or near it were altered; these \
                 entries are ignored",
            );
        }
        let mut output = Output::open(self.output.as_deref()).map_err(Failure::failed)?;
        self.restore(&found, &mut output).map_err(|error| match error {
            // A closed pipe is not a failure.
            LineError::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Failure::failed(error)
            }
            error => Failure::failed(error),
        })
    }

    /// Finds the entries with the line.
    fn find(&self, machines: &Path) -> Result<FoundEntries, LineError> {
        let mut found = FoundEntries::default();
        for path in ndjson_files(machines)? {
            let read_error = |source| LineError::Read { path: path.clone(), source };
            let (file, mut at) = open_lines(&path).map_err(read_error)?;
            let (mut reader, mut line) = (BufReader::with_capacity(1 << 20, file), Vec::new());
            loop {
                line.clear();
                let length = reader.read_until(b'\n', &mut line).map_err(read_error)?;
                if length == 0 {
                    break;
                }
                match self.part_of(&line) {
                    Some(LinePart { is_altered: true, .. }) => found.has_altered = true,
                    Some(LinePart { number, is_altered: false }) => {
                        let place = || Place { path: path.clone(), at, length };
                        found.places.entry(number).or_insert_with(place);
                    }
                    None => {}
                }
                at += length as u64;
            }
        }
        Ok(found)
    }

    /// Returns the part that an entry contains, if it is one of the line.
    fn part_of(&self, line: &[u8]) -> Option<LinePart> {
        // Most lines are of other files, and need not be parsed.
        memchr::memmem::find(line, self.generation.as_bytes())?;
        let entry = Entry::parse(line.strip_suffix(b"\n").unwrap_or(line)).ok()?;
        let is_same = entry.generation.as_deref() == Some(self.generation.as_str())
            && entry.offset == Some(self.offset);
        let (number, is_altered) = (entry.part.unwrap_or(0), entry.altered);
        is_same.then_some(LinePart { number, is_altered })
    }

    fn restore(&self, found: &FoundEntries, output: &mut Output) -> Result<(), LineError> {
        let places = &found.places;
        let mut hasher = LineHasher::default();
        let first = if places.contains_key(&0) { 0 } else { 1 };
        if places.is_empty() {
            let (generation, offset) = (self.generation.clone(), self.offset);
            return Err(match found.has_altered {
                true => LineError::OnlyAltered { generation, offset },
                false => LineError::Absent { generation, offset },
            });
        }
        for number in first.. {
            let Some(place) = places.get(&number) else {
                let is_end = places.range(number..).next().is_none();
                return Err(if is_end {
                    LineError::LastMissing
                } else {
                    LineError::PartMissing(number)
                });
            };
            let line = place.read()?;
            let entry = Entry::parse(&line)?;
            copy(&entry, &mut hasher, output)?;
            if number == 0 || entry.last {
                output.finish(hasher.length()).map_err(LineError::Write)?;
                return verify(&entry, &hasher.finish());
            }
        }
        Ok(())
    }
}

/// Writes and hashes the content of an entry.
fn copy(entry: &Entry<'_>, hasher: &mut LineHasher, output: &mut Output) -> Result<(), LineError> {
    let seq = entry.seq;
    if !entry.cut.is_empty() || !entry.masked.is_empty() {
        return Err(LineError::Edited);
    }
    let data = entry.content()?.unwrap_or_default();
    let segments =
        segments(&data, &entry.nul_runs).map_err(|source| LineError::Runs { seq, source })?;
    for segment in segments {
        hasher.update(segment);
        output.write(segment).map_err(LineError::Write)?;
    }
    Ok(())
}

/// Compares a restored line with its last entry.
fn verify(entry: &Entry<'_>, line: &LineDigests) -> Result<(), LineError> {
    if entry.length != Some(line.length) {
        return Err(LineError::Differs("length"));
    }
    if entry.sha256.is_some() && entry.sha256 != line.sha256 {
        return Err(LineError::Differs("sha256"));
    }
    if entry.folded_sha256.is_some() && entry.folded_sha256 != line.folded_sha256 {
        return Err(LineError::Differs("folded_sha256"));
    }
    Ok(())
}

/// Files with entries, in the directories of all machines.
fn ndjson_files(machines: &Path) -> Result<Vec<PathBuf>, LineError> {
    let list = |directory: &Path| -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
    };
    let read_error = |path: &Path| {
        let path = path.to_owned();
        move |source| LineError::Read { path, source }
    };
    let mut files = Vec::new();
    for machine in list(machines).map_err(read_error(machines))? {
        files.extend(list(&machine).map_err(read_error(&machine))?);
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "ndjson"));
    files.sort();
    Ok(files)
}

/// Entries with a line.
#[derive(Default)]
struct FoundEntries {
    /// Where the parts are stored, by their number: 0 for a whole line.
    places: BTreeMap<u32, Place>,
    /// True if the line was sent again because bytes in or near it were altered.
    has_altered: bool,
}

/// Part of a line.
struct LinePart {
    /// 0 for a whole line.
    number: u32,
    /// True if it was sent again because bytes in or near the line were altered.
    is_altered: bool,
}

/// Position of an entry in a file.
struct Place {
    path: PathBuf,
    at: u64,
    /// Length in bytes.
    length: usize,
}

impl Place {
    fn read(&self) -> Result<Vec<u8>, LineError> {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.at))?;
            let mut line = vec![0; self.length];
            file.read_exact(&mut line)?;
            Ok(line)
        };
        read().map_err(|source| LineError::Read { path: self.path.clone(), source })
    }
}

/// Destination of a line.
enum Output {
    File(File),
    Stream(io::StdoutLock<'static>),
}

impl Output {
    fn open(path: Option<&Path>) -> Result<Self, LineError> {
        match path {
            Some(path) => File::create_new(path).map(Self::File).map_err(LineError::Write),
            None => Ok(Self::Stream(io::stdout().lock())),
        }
    }

    fn write(&mut self, segment: Segment<'_>) -> io::Result<()> {
        match (self, segment) {
            (Self::File(file), Segment::Data(bytes)) => file.write_all(bytes),
            (Self::Stream(stream), Segment::Data(bytes)) => stream.write_all(bytes),
            (Self::File(file), Segment::Nuls(count)) => {
                let count = i64::try_from(count).map_err(|_| io::ErrorKind::FileTooLarge)?;
                file.seek(SeekFrom::Current(count)).map(drop)
            }
            (Self::Stream(stream), Segment::Nuls(count)) => {
                io::copy(&mut io::repeat(0).take(count), stream).map(drop)
            }
        }
    }

    fn finish(&mut self, length: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.set_len(length),
            Self::Stream(stream) => stream.flush(),
        }
    }
}
