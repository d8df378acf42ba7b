//! An intake for tests: keeps lines, events and rows as an outbox does, by groups.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use siem_protocol::Digest;

use super::{Chunk, FileKey, GenerationId, Intake, Piece};
use crate::{
    event::Event,
    platform::{Clock, SystemClock, Timestamp},
};

/// A line or part as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReceivedPiece {
    pub(crate) path: PathBuf,
    pub(crate) generation: GenerationId,
    pub(crate) file: FileKey,
    pub(crate) era: u32,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) size: u64,
    pub(crate) part: Option<u32>,
    pub(crate) whole: Option<(u64, Digest)>,
    pub(crate) incomplete: bool,
}

/// What a group holds until it is stored.
#[derive(Clone, Debug, Default)]
struct Group {
    rows: BTreeMap<GenerationId, Option<Vec<u8>>>,
    got: Vec<ReceivedPiece>,
    events: Vec<Event>,
    chunks: usize,
    left_out: u64,
}

/// An outbox in memory: what was committed, and the group that is being filled.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) rows: BTreeMap<GenerationId, Vec<u8>>,
    pub(crate) got: Vec<ReceivedPiece>,
    pub(crate) events: Vec<Event>,
    pub(crate) forgotten: Vec<FileKey>,
    /// Bytes of lines that a source left out.
    pub(crate) left_out: u64,
    /// How many chunks a group takes.
    pub(crate) room: usize,
    /// Whether no row can be had. Nothing is stored then.
    pub(crate) fails_reads: bool,
    /// How many files the sweep that came the furthest has seen.
    pub(crate) seen: std::cell::Cell<u64>,
    group: Group,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            got: Vec::new(),
            events: Vec::new(),
            forgotten: Vec::new(),
            left_out: 0,
            room: 8,
            fails_reads: false,
            seen: std::cell::Cell::new(0),
            group: Group::default(),
        }
    }
}

impl Store {
    /// Stores the group.
    pub(crate) fn commit(&mut self) {
        let group = std::mem::take(&mut self.group);
        self.got.extend(group.got);
        self.left_out += group.left_out;
        self.events.extend(group.events);
        for (generation, row) in group.rows {
            match row {
                Some(row) => self.rows.insert(generation, row),
                None => self.rows.remove(&generation),
            };
        }
    }

    /// Loses the group.
    pub(crate) fn roll_back(&mut self) {
        self.group = Group::default();
    }

    /// The rows as they are restored from.
    pub(crate) fn stored_rows(&self) -> impl Iterator<Item = (GenerationId, Vec<u8>)> + use<> {
        self.rows.clone().into_iter()
    }

    /// The names of the events that were stored.
    pub(crate) fn event_names(&self) -> Vec<&'static str> {
        self.events.iter().map(|event| event.name).collect()
    }

    /// The stored lines as text.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.got.iter().map(|got| String::from_utf8_lossy(&got.bytes).into_owned()).collect()
    }
}

impl Intake for Store {
    fn take(&mut self, chunk: Chunk<'_>) {
        let group = &mut self.group;
        group.chunks += 1;
        group.events.extend(chunk.events);
        let generation = &chunk.origin.generation;
        group.rows.insert(generation.clone(), chunk.checkpoint.map(<[u8]>::to_vec));
        for piece in chunk.pieces {
            let (offset, bytes, size, incomplete, part, whole) = match *piece {
                Piece::Line { offset, bytes, size, incomplete } => {
                    (offset, bytes, size, incomplete, None, None)
                }
                Piece::Part { offset, part, bytes, size, whole, incomplete } => {
                    (offset, bytes, size, incomplete, Some(part), whole)
                }
                Piece::Lines { offset, lines, size, .. } => {
                    (offset, lines, size, false, None, None)
                }
                Piece::Skipped { size, .. } => {
                    group.left_out += size;
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
                size,
                part,
                whole,
                incomplete,
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

    fn saw(&self, files: u64) {
        self.seen.set(self.seen.get().max(files));
    }

    fn checkpoint(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        if self.fails_reads { None } else { self.rows.get(generation).cloned() }
    }
}

/// The system's clock, moved.
#[derive(Debug, Default)]
pub(crate) struct ShiftedClock {
    /// By how much the wall clock is ahead, in milliseconds.
    wall: AtomicI64,
    /// By how much more time has gone by.
    passed: AtomicU64,
}

impl ShiftedClock {
    /// A clock that can be moved.
    pub(crate) fn shared() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Moves it on.
    pub(crate) fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap();
        self.wall.fetch_add(millis.cast_signed(), Ordering::Relaxed);
        self.passed.fetch_add(millis, Ordering::Relaxed);
    }

    /// Lets it jump by so many seconds, forward or back.
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
