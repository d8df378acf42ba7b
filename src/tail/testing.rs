//! Intake for tests: stores lines, events and rows in groups, as an outbox does.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use siem_protocol::nul_runs::{Folded, LineDigests, NulRun, Segment, segments};

use super::{BlockUpdate, Chunk, FileKey, GenerationId, Intake, Piece, updated_blocks};
use crate::{
    event::Event,
    platform::{Clock, SystemClock, Timestamp},
};

/// Line or part that was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReceivedPiece {
    pub(crate) path: PathBuf,
    pub(crate) generation: GenerationId,
    pub(crate) file: FileKey,
    pub(crate) era: u32,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) nul_runs: Vec<NulRun>,
    pub(crate) size: u64,
    pub(crate) part: Option<u32>,
    /// Digests of a line in parts, or of one with runs of NUL.
    pub(crate) whole: Option<LineDigests>,
    pub(crate) incomplete: bool,
    pub(crate) altered: bool,
}

impl ReceivedPiece {
    /// Bytes with the runs of NUL.
    pub(crate) fn content(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in segments(&self.bytes, &self.nul_runs).unwrap() {
            match segment {
                Segment::Data(data) => bytes.extend_from_slice(data),
                Segment::Nuls(count) => bytes.resize(bytes.len() + count as usize, 0),
            }
        }
        bytes
    }
}

/// Content of a group that is not stored yet.
#[derive(Clone, Debug, Default)]
struct PendingGroup {
    blocks: Vec<(GenerationId, BlockUpdate)>,
    verification: Option<Vec<u8>>,
    rows: BTreeMap<GenerationId, Option<Vec<u8>>>,
    got: Vec<ReceivedPiece>,
    events: Vec<Event>,
    chunks: usize,
    skipped_bytes: u64,
}

/// Outbox in memory: committed content, and the current group.
#[derive(Clone, Debug)]
pub(crate) struct MemoryStore {
    pub(crate) rows: BTreeMap<GenerationId, Vec<u8>>,
    /// Hashes of blocks, and under an empty id the position of the verification.
    pub(crate) blocks: BTreeMap<GenerationId, Vec<u8>>,
    pub(crate) got: Vec<ReceivedPiece>,
    pub(crate) events: Vec<Event>,
    pub(crate) forgotten: Vec<FileKey>,
    /// Bytes of lines that a source skipped.
    pub(crate) skipped_bytes: u64,
    /// Number of chunks per group.
    pub(crate) room: usize,
    /// True if a backlog waits in its files.
    pub(crate) is_paced: bool,
    /// True if reading a row fails. Nothing is stored then.
    pub(crate) fails_reads: bool,
    /// Largest number of files that a sweep has reported.
    pub(crate) swept_files: std::cell::Cell<u64>,
    /// Number of rows that were read.
    pub(crate) reads: Arc<AtomicU64>,
    group: PendingGroup,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            blocks: BTreeMap::new(),
            got: Vec::new(),
            events: Vec::new(),
            forgotten: Vec::new(),
            skipped_bytes: 0,
            room: 8,
            is_paced: false,
            fails_reads: false,
            swept_files: std::cell::Cell::new(0),
            reads: Arc::default(),
            group: PendingGroup::default(),
        }
    }
}

impl MemoryStore {
    /// Stores the group.
    pub(crate) fn commit(&mut self) {
        let group = std::mem::take(&mut self.group);
        self.got.extend(group.got);
        self.skipped_bytes += group.skipped_bytes;
        self.events.extend(group.events);
        for (generation, update) in group.blocks {
            let stored = self.blocks.get(&generation).map(Vec::as_slice);
            let row = updated_blocks(stored, &[update]);
            self.blocks.insert(generation, row);
        }
        if let Some(position) = group.verification {
            self.blocks.insert(GenerationId(String::new()), position);
        }
        for (generation, row) in group.rows {
            match row {
                Some(row) => self.rows.insert(generation, row),
                None => {
                    self.blocks.remove(&generation);
                    self.rows.remove(&generation)
                }
            };
        }
    }

    /// Discards the group.
    pub(crate) fn roll_back(&mut self) {
        self.group = PendingGroup::default();
    }

    /// Stored rows, as passed to a restore.
    pub(crate) fn stored_rows(&self) -> impl Iterator<Item = (GenerationId, Vec<u8>)> + use<> {
        self.rows.clone().into_iter()
    }

    /// Names of the stored events.
    pub(crate) fn event_names(&self) -> Vec<&'static str> {
        self.events.iter().map(|event| event.name).collect()
    }

    /// Stored lines as text.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.got.iter().map(|got| String::from_utf8_lossy(&got.bytes).into_owned()).collect()
    }
}

impl Intake for MemoryStore {
    fn take(&mut self, chunk: Chunk<'_>) {
        let group = &mut self.group;
        group.chunks += 1;
        group.events.extend(chunk.events);
        let generation = &chunk.origin.generation;
        group.blocks.extend(chunk.blocks.into_iter().map(|update| (generation.clone(), update)));
        group.rows.insert(generation.clone(), chunk.checkpoint.map(<[u8]>::to_vec));
        for piece in chunk.pieces {
            let (offset, bytes, size, incomplete, part, whole, runs) = match *piece {
                Piece::Line { offset, bytes, size, incomplete, folded: None } => {
                    (offset, bytes, size, incomplete, None, None, &[][..])
                }
                Piece::Line { offset, bytes, size, incomplete, folded: Some(folded) } => {
                    let Folded { runs, digests } = folded;
                    (offset, bytes, size, incomplete, None, Some(digests), runs)
                }
                Piece::Part { offset, part, bytes, nul_runs, size, whole, incomplete } => {
                    (offset, bytes, size, incomplete, Some(part), whole, nul_runs)
                }
                Piece::Lines { offset, lines, size, .. } => {
                    (offset, lines, size, false, None, None, &[][..])
                }
                Piece::Skipped { size, .. } => {
                    group.skipped_bytes += size;
                    continue;
                }
            };
            group.got.push(ReceivedPiece {
                path: chunk.origin.path.clone(),
                generation: generation.clone(),
                file: chunk.origin.file,
                era: chunk.origin.era,
                offset,
                bytes: bytes.to_vec(),
                nul_runs: runs.to_vec(),
                size,
                part,
                whole,
                incomplete,
                altered: chunk.origin.is_altered,
            });
        }
    }

    fn store_row(&mut self, _name: &str, _row: &[u8], events: Vec<Event>) {
        self.group.events.extend(events);
    }

    fn report(&mut self, event: Event) {
        self.group.events.push(event);
    }

    fn forget(&mut self, file: FileKey) {
        self.forgotten.push(file);
    }

    fn has_room(&self) -> bool {
        self.group.chunks < self.room
    }

    fn has_room_for_backfill(&self) -> bool {
        self.has_room() && !self.is_paced
    }

    fn saw(&self, files: u64) {
        self.swept_files.set(self.swept_files.get().max(files));
    }

    fn checkpoint(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.fails_reads { None } else { self.rows.get(generation).cloned() }
    }

    fn store_verification(&mut self, position: &[u8]) {
        self.group.verification = Some(position.to_vec());
    }

    fn blocks(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.blocks.get(generation).cloned()
    }
}

/// The system's clock with an adjustable offset.
#[derive(Debug, Default)]
pub(crate) struct ShiftedClock {
    /// Offset of the wall clock in milliseconds.
    wall: AtomicI64,
    /// Additional uptime in milliseconds.
    passed: AtomicU64,
}

impl ShiftedClock {
    /// Creates a clock without an offset.
    pub(crate) fn shared() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Advances wall clock and uptime.
    pub(crate) fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap();
        self.wall.fetch_add(millis.cast_signed(), Ordering::Relaxed);
        self.passed.fetch_add(millis, Ordering::Relaxed);
    }

    /// Moves the wall clock by a number of seconds, forward or back.
    pub(crate) fn jump(&self, seconds: i64) {
        self.wall.fetch_add(seconds * 1000, Ordering::Relaxed);
    }
}

impl Clock for ShiftedClock {
    fn now(&self) -> Timestamp {
        Timestamp(SystemClock.now().0.saturating_add_signed(self.wall.load(Ordering::Relaxed)))
    }

    fn uptime(&self) -> Duration {
        SystemClock.uptime() + Duration::from_millis(self.passed.load(Ordering::Relaxed))
    }
}
