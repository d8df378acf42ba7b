//! Input of a pipeline: pieces of files, and the rows with the read position of each file.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use siem_protocol::{
    entry::PathText,
    nul_runs::{Folded, LineDigests, NulRun},
};

use crate::{Event, Timestamp};

/// Identifies a file while the agent runs, across renames and rewrites. Filters with memory use it
/// as their key. Never reused within one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey(pub u64);

impl FileKey {
    /// Returns a key that no file of any source has had in this run.
    #[must_use]
    pub fn fresh() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// Identifies one generation of a file permanently: the bytes between two rewrites. 16 bytes in hex.
/// Rows of the outbox that belong to no file use a fixed name in place of it.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct GenerationId(pub String);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The file that lines come from. All lines of one generation under one path share it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Origin {
    /// Key of the file while the agent runs.
    pub file: FileKey,
    /// Number of rewrites in this run; trims are not counted. A uuid seen in an earlier era is a
    /// duplicate only if the bytes are the same.
    pub era: u32,
    /// Absolute path, below the root as configured.
    pub path: PathBuf,
    /// The path as an entry contains it.
    pub path_text: PathText,
    /// Generation of the file.
    pub generation: GenerationId,
    /// True for lines that were handed over before and are read again, because bytes in or near them
    /// were altered. A filter that drops repetitions keeps them.
    pub is_altered: bool,
}

impl Origin {
    /// Creates the origin of a file that has not been rewritten in this run.
    #[must_use]
    pub fn new(file: FileKey, path: impl Into<PathBuf>, generation: GenerationId) -> Self {
        let path = path.into();
        let path_text = PathText::new(&path);
        Self { file, era: 0, path_text, path, generation, is_altered: false }
    }
}

/// A piece of a file: a line, a part of a line that is too large to be held, several lines that
/// are one record, or lines that the source skips.
///
/// Exhaustive on purpose: a pipeline that ignored a new kind of piece would lose records.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// A whole line.
    Line {
        /// Offset of the line in the file.
        offset: u64,
        /// Bytes without the ending (`\n` or `\r\n`), and without the runs of NUL in `folded`.
        bytes: &'a [u8],
        /// Number of bytes of the file that the line occupies, ending included.
        size: u64,
        /// True if the line never got its newline.
        incomplete: bool,
        /// Long runs of NUL that were removed from the line, and hashes of the line with them.
        folded: Option<Folded<'a>>,
    },
    /// A part of a line longer than `max_record_bytes`, or of a line with many runs of NUL.
    Part {
        /// Offset of the LINE in the file.
        offset: u64,
        /// Number of the part, from 1.
        part: u32,
        /// Bytes of the part without its runs of NUL; in the last part without the line's ending.
        bytes: &'a [u8],
        /// Long runs of NUL in the part.
        nul_runs: &'a [NulRun],
        /// Number of bytes of the file that the part occupies, ending included.
        size: u64,
        /// In the last part: length (without the ending) and hashes of the whole line.
        whole: Option<LineDigests>,
        /// True if the line never got its newline; set in the last part.
        incomplete: bool,
    },
    /// Several lines that are one record. Other lines may be between them.
    Lines {
        /// Offset of the first line in the file.
        offset: u64,
        /// Bytes without the endings, joined by newlines.
        lines: &'a [u8],
        /// Number of bytes of the file that the lines occupy, endings included.
        size: u64,
        /// Renders the facts of the record as a JSON object, which the entry carries beside the
        /// lines. Called with the lines as the filters left them, joined by newlines, so that the
        /// facts never show what a filter removed.
        facts: fn(&[u8]) -> String,
    },
    /// Lines that the source does not hand over, as configured.
    Skipped {
        /// Number of lines.
        lines: u64,
        /// Number of bytes of the file that they occupy, endings included.
        size: u64,
        /// Reason in snake_case; totals are counted by it.
        reason: &'static str,
    },
}

impl<'a> Piece<'a> {
    /// Creates a complete line without runs of NUL. `size` includes its ending.
    #[must_use]
    #[inline]
    pub fn line(offset: u64, bytes: &'a [u8], size: u64) -> Self {
        Self::Line { offset, bytes, size, incomplete: false, folded: None }
    }
}

/// Pieces of one file, together with the checkpoint that covers exactly them.
///
/// Both are one value, so that no piece can be stored without its checkpoint, and no checkpoint
/// without its pieces.
#[derive(Debug)]
#[non_exhaustive]
pub struct Chunk<'a> {
    /// The file.
    pub origin: &'a Origin,
    /// Pieces in the order of the file. Empty if only the checkpoint or the events changed.
    pub pieces: &'a [Piece<'a>],
    /// Row of the generation after the pieces, encoded by the source; `None` deletes the row, once
    /// the file was deleted and everything in it was read.
    pub checkpoint: Option<&'a [u8]>,
    /// Bytes after the pieces that were lost with the file, as far as known.
    pub unread: u64,
    /// Events about the file, stored before the pieces.
    pub events: Vec<Event>,
    /// Changes to the hashes by which altered bytes of the file are found, stored with the
    /// checkpoint.
    pub blocks: Vec<BlockUpdate>,
}

/// A change to the stored hashes of a file's blocks. Blocks have 64 KiB and are numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockUpdate {
    /// Hashes of blocks that were read as a whole.
    Append {
        /// Number of the first block.
        first: u64,
        /// Hashes in the order of the file, each with the number of consecutive blocks that have
        /// it.
        hashes: Vec<(u64, u64)>,
    },
    /// The hash of a block whose bytes were altered.
    Replace {
        /// Number of the first block of 64 KiB in it.
        first: u64,
        /// Number of times that its size was doubled.
        level: u8,
        /// The hash.
        hash: u64,
    },
}

impl<'a> Chunk<'a> {
    /// Creates a chunk without events and lost bytes; `checkpoint` is the row of the file after
    /// `pieces`, or `None` if the file is finished.
    #[must_use]
    #[inline]
    pub fn new(origin: &'a Origin, pieces: &'a [Piece<'a>], checkpoint: Option<&'a [u8]>) -> Self {
        let (events, blocks) = (Vec::new(), Vec::new());
        Self { origin, pieces, checkpoint, unread: 0, events, blocks }
    }
}

/// Receives the input of a source: the group that the pipeline is building.
///
/// A group is stored in one transaction. A source that wraps an intake must forward every method.
pub trait Intake {
    /// Adds a chunk to the group.
    fn take(&mut self, chunk: Chunk<'_>);

    /// Adds a row that belongs to no file, under a name fixed by the source, and the events that
    /// changed it. Row and events are stored together; [`Source::restore`](crate::Source::restore)
    /// returns the row under the same name.
    fn store_row(&mut self, name: &str, row: &[u8], events: Vec<Event>);

    /// Adds an event that belongs to no file.
    fn report(&mut self, event: Event);

    /// Makes filters forget a file that was deleted.
    fn forget(&mut self, file: FileKey);

    /// Returns true if the group has room for another chunk. If not, the source returns, so that
    /// the group can be stored.
    fn has_room(&self) -> bool;

    /// Returns true if the group has room for another chunk of a backlog. A backlog waits in its
    /// files while much waits for delivery, so that new records are not delayed by it. By default it
    /// is read like everything else.
    fn has_room_for_backfill(&self) -> bool {
        self.has_room()
    }

    /// Reports the number of files that a long sweep has visited so far.
    fn saw(&self, files: u64);

    /// Returns the stored row of a generation.
    fn checkpoint(&self, generation: &GenerationId) -> Option<Vec<u8>>;

    /// Stores the position of the verification of files, which [`blocks`](Self::blocks) returns for
    /// an empty id. By default nothing is stored.
    fn store_verification(&mut self, _position: &[u8]) {}

    /// Returns the stored hashes of a generation's blocks. By default there are none.
    fn blocks(&self, _generation: &GenerationId) -> Option<Vec<u8>> {
        None
    }
}

/// State of a source after [`Source::read`](crate::Source::read).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More may be unread: the intake has no room, or the source has read enough for one group.
    /// The caller stores the group and calls again.
    More,
    /// Everything has been read.
    Idle {
        /// Time until the next call, if the waker is not called earlier.
        next: Duration,
    },
}

/// Statistics of a source, shown in `status` and sent with heartbeats.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Survey {
    /// Number of known files.
    pub files: usize,
    /// Number of files with bytes that were not handed over, incomplete last lines included.
    pub files_unread: usize,
    /// Number of those bytes, as of the last inspection of each file.
    pub bytes_unread: u64,
    /// Number of files of which only the start of an incomplete last line was not handed over.
    pub files_incomplete: usize,
    /// Number of bytes of those lines.
    pub bytes_incomplete: u64,
    /// Number of files that were truncated a moment ago; they are read once their size is stable.
    pub files_settling: usize,
    /// Number of open files.
    pub files_open: usize,
    /// Number of open files that were deleted and are still being read.
    pub files_pinned: usize,
    /// Disk space that those files occupy, in bytes.
    pub bytes_pinned: u64,
    /// Files and directories that cannot be read at present, each with the error of the operating
    /// system.
    pub unreadable: BTreeMap<PathBuf, String>,
    /// True if the source verifies that files still have the bytes that were read.
    pub is_verifying: bool,
    /// Time at which all files were last verified.
    pub verified_at: Option<Timestamp>,
    /// True if the operating system reports every change; if not, only sweeps find changes.
    pub is_watching: bool,
    /// Number of sweeps since the start.
    pub sweeps: u32,
    /// Duration of the last sweep.
    pub sweep_cost: Duration,
}

/// A stored row that the source cannot have written.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint of generation {generation} cannot be understood")]
pub struct BadRow {
    generation: GenerationId,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

impl BadRow {
    /// Creates the error for the row of `generation`.
    #[must_use]
    pub fn new(generation: GenerationId, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { generation, source: source.into() }
    }
}
