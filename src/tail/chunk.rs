//! What the tail hands over.

use std::{
    fmt,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use siem_protocol::{Digest, entry::PathText};

use crate::event::Event;

/// Names a file while the agent runs, over renames and rewrites: filters with memory key it by
/// this. Never reused in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey(pub u64);

impl FileKey {
    /// A key that no file has had, of whatever source.
    #[must_use]
    pub fn fresh() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// Names one life of a file, for ever: 16 bytes in hex.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct GenerationId(pub String);

/// Makes the ids of generations.
pub type NewGeneration = Box<dyn FnMut() -> GenerationId + Send>;

impl GenerationId {
    /// An id that no other life of a file has, made of the time and of random bytes: what begins
    /// later comes later in the store, where rows that are written together lie together then.
    #[must_use]
    pub fn fresh() -> Self {
        let (seconds, nanos) = uuid::Timestamp::now(uuid::NoContext).to_unix();
        let millis = seconds * 1000 + u64::from(nanos) / 1_000_000;
        // The system is not asked for them: there may be one for each of 50,000 files.
        let mut random = [0; 10];
        fastrand::fill(&mut random);
        let id = uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
        Self(id.simple().to_string())
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The file that lines come from: the same for all lines of a generation under one path.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The file while the agent runs.
    pub file: FileKey,
    /// How often the file was rewritten in this run; a trim does not count. A uuid seen in an
    /// earlier era is a repetition only with the same bytes.
    pub era: u32,
    /// Absolute, below the root as configured.
    pub path: PathBuf,
    /// The path as it stands in an entry.
    pub path_text: PathText,
    /// This life of the file.
    pub generation: GenerationId,
}

/// A line, a part of one too large to be held, or what a source made of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A whole line.
    Line {
        /// Where it begins in the file.
        offset: u64,
        /// Its bytes without the ending (`\n` or `\r\n`), as they lie in the read buffer.
        bytes: &'a [u8],
        /// How many bytes of the file it takes, ending and all.
        size: u64,
        /// Whether it never got its newline.
        incomplete: bool,
    },
    /// A part of a line over `max_record_bytes`.
    Part {
        /// Where the LINE begins in the file.
        offset: u64,
        /// The part's number, from 1.
        part: u32,
        /// The part's bytes; the last part's without the line's ending.
        bytes: &'a [u8],
        /// How many bytes of the file the part takes, ending and all.
        size: u64,
        /// Of the last part: length (without the ending) and hash of the whole line.
        whole: Option<(u64, Digest)>,
        /// Whether the line never got its newline; said by its last part.
        incomplete: bool,
    },
    /// The lines of one event of the audit log: one record. Others may stand between them.
    Event {
        /// Where the first one begins in the file.
        offset: u64,
        /// Their bytes without the endings, with a newline between each two.
        lines: &'a [u8],
        /// How many bytes of the file they take, endings and all.
        size: u64,
    },
    /// Lines that the source was told to leave out.
    LeftOut {
        /// How many.
        lines: u64,
        /// How many bytes of the file they take, endings and all.
        size: u64,
        /// The source's word for why.
        reason: &'static str,
    },
}

/// Lines that were read, with the checkpoint that covers exactly them.
///
/// The two are one value, so that no line can be stored without the checkpoint moving past it,
/// and no checkpoint without its lines.
#[derive(Debug)]
pub struct Chunk<'a> {
    /// The file.
    pub origin: &'a Origin,
    /// The pieces, in the file's order. Empty when only the checkpoint or events changed.
    pub pieces: &'a [Piece<'a>],
    /// The generation's row as it stands after the pieces, encoded by the tail; `None` removes
    /// the row, once the file is gone and everything in it was read.
    pub checkpoint: Option<&'a [u8]>,
    /// Bytes that were in the file after the pieces and can't be read any more, as far as known.
    pub unread: u64,
    /// What happened to the file; reported before the pieces.
    pub events: Vec<Event>,
}

/// Where chunks go: the group that the pipeline is filling.
pub trait Intake {
    /// Takes a chunk into the group.
    fn take(&mut self, chunk: Chunk<'_>);

    /// Takes an event that belongs to no file.
    fn report(&mut self, event: Event);

    /// Forgets what filters remember of a file: it is gone.
    fn forget(&mut self, file: FileKey);

    /// Whether the group takes another chunk. When it does not, the source returns, so that the
    /// group can be stored.
    fn has_room(&self) -> bool;

    /// A sweep, which may take long, has seen so many files.
    fn saw(&self, _files: u64) {}

    /// The stored row of a generation.
    fn checkpoint(&self, generation: &GenerationId) -> Option<Vec<u8>>;
}
