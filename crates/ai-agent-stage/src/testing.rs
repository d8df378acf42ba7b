//! Harnesses for the tests of stages: no runtime, no file, no network.
//!
//! A harness builds the stage from its type and its options in TOML, as the agent does, with the
//! services of a context: [`context`], or single ones replaced:
//! `ContextParts { is_once: true, ..context() }`. The stage is a public field of its harness.

use std::{
    collections::BTreeMap,
    error::Error,
    mem,
    path::Path,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use serde_json::json;
use siem_protocol::{BatchHeader, Digest, Identity};

use crate::{
    BadRow, Batch, BatchBody, BuildError, Change, Chunk, Clock, Context, ContextParts, Delivery,
    Enricher, Event, FileKey, Filter, GenerationId, Intake, LogOpener, Origin, Piece, Progress,
    Record, Sink, Source, Survey, Timestamp, Verdict, build_enricher, build_filter, build_sink,
    build_source,
};

/// Returns the parts of a context with a made-up identity, a made-up home directory and a
/// [`TestClock`].
#[must_use]
pub fn context() -> ContextParts {
    let unknown = || "unknown".to_owned();
    let identity = Identity {
        machine_id: unknown(),
        hostname: unknown(),
        user: unknown(),
        os: unknown(),
        arch: unknown(),
        agent_version: unknown(),
    };
    let home = if cfg!(windows) { r"C:\Users\you" } else { "/home/you" };
    ContextParts {
        identity,
        home: home.into(),
        clock: Arc::new(TestClock::default()),
        is_once: false,
        log_opener: None,
        host: None,
    }
}

/// A clock that only the test moves. Clones share their time.
#[derive(Clone, Debug)]
pub struct TestClock(Arc<AtomicU64>);

impl Default for TestClock {
    /// Starts on 2026-11-21 at 20:00 UTC.
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(1_795_291_200_000)))
    }
}

impl TestClock {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }

    fn uptime(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// A filter under test.
#[non_exhaustive]
pub struct FilterTest {
    /// The filter itself.
    pub filter: Box<dyn Filter>,
}

/// Result of a filter for one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// The line is kept unchanged.
    Kept,
    /// The line is dropped, for this reason.
    Dropped(&'static str),
    /// The line is kept with this text.
    Edited(String),
}

impl FilterTest {
    /// Builds the filter of type `name`.
    ///
    /// # Errors
    /// [`BuildError`] if no such filter is registered or an option is wrong.
    pub fn new(name: &str, options: &str) -> Result<Self, BuildError> {
        Ok(Self { filter: build_filter(name, &options.parse()?)? })
    }

    /// Filters a line, which may be invalid UTF-8.
    ///
    /// # Panics
    /// As [`record`](Self::record).
    pub fn line(&mut self, line: impl AsRef<[u8]>) -> Filtered {
        self.record(&Record::from_line(line.as_ref()))
    }

    /// Filters a record: a line of a certain file, for filters that remember files, or the first
    /// part of a line.
    ///
    /// # Panics
    /// If the filter returns ranges that do not fit the line. The agent logs an error and keeps the
    /// line unchanged.
    pub fn record(&mut self, record: &Record<'_>) -> Filtered {
        let line = match self.filter.check(record) {
            Verdict::Keep => return Filtered::Kept,
            Verdict::Mask(matches) if matches.is_empty() => return Filtered::Kept,
            Verdict::Drop(reason) => return Filtered::Dropped(reason),
            Verdict::Edit(changes, _) => Change::apply_all(record.line(), &changes),
            Verdict::Mask(matches) => {
                Change::apply_all(record.line(), matches.iter().map(|found| &found.change))
            }
        };
        let line = line.expect("the ranges of a verdict are in order and fit the line");
        Filtered::Edited(String::from_utf8_lossy(&line).into_owned())
    }
}

/// An enricher under test.
#[non_exhaustive]
pub struct EnricherTest {
    /// The enricher itself.
    pub enricher: Box<dyn Enricher>,
}

impl EnricherTest {
    /// Builds the enricher of type `name`.
    ///
    /// # Errors
    /// [`BuildError`] if no such enricher is registered or an option is wrong.
    pub fn new(name: &str, options: &str, context: impl Into<Context>) -> Result<Self, BuildError> {
        let enricher = build_enricher(name, &options.parse()?, &context.into())?;
        Ok(Self { enricher })
    }

    /// Returns the JSON object that the enricher adds to the entry of a line.
    pub fn line(&mut self, line: impl AsRef<[u8]>) -> Option<String> {
        let record = Record::from_line(line.as_ref());
        self.enricher.enrich(&record).map(|object| object.get().to_owned())
    }
}

/// A source under test. The chunks that the source hands over are kept in place of an outbox.
pub struct SourceTest {
    /// The source itself.
    pub source: Box<dyn Source>,
    /// Stored rows by name. A second harness that gets the rows of another, and then
    /// [`restore`](Self::restore), continues like a source with other options.
    pub rows: BTreeMap<String, Vec<u8>>,
    /// Rows of the group that is not stored yet; `None` deletes a row.
    group: BTreeMap<String, Option<Vec<u8>>>,
}

/// Input that a source handed over in one call of [`SourceTest::read`].
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Input {
    /// Records: lines, parts of lines, and records of several lines.
    pub records: Vec<String>,
    /// Reasons of skipped lines, and how many lines each.
    pub skipped: Vec<(&'static str, u64)>,
    /// Events.
    pub events: Vec<Event>,
}

impl SourceTest {
    /// Builds the source of type `name`, with nothing stored.
    ///
    /// # Errors
    /// [`BuildError`] if no such source is registered or an option is wrong.
    pub fn new(name: &str, options: &str, context: impl Into<Context>) -> Result<Self, BuildError> {
        let waker = Arc::new(|| ());
        let source = build_source(name, &options.parse()?, &context.into(), waker)?;
        Ok(Self { source, rows: BTreeMap::new(), group: BTreeMap::new() })
    }

    /// Makes the source read once.
    pub fn read(&mut self) -> (Input, Progress) {
        let mut intake =
            TestIntake { input: Input::default(), stored: &self.rows, group: &mut self.group };
        let progress = self.source.read(&mut intake);
        (intake.input, progress)
    }

    /// Stores everything read so far.
    pub fn commit(&mut self) {
        self.source.sealed();
        for (name, row) in mem::take(&mut self.group) {
            match row {
                Some(row) => self.rows.insert(name, row),
                None => self.rows.remove(&name),
            };
        }
        self.source.committed();
    }

    /// Restores the source from the stored rows, as after a restart or a group that could not be
    /// stored.
    ///
    /// # Errors
    /// [`BadRow`] if the source does not understand its own rows.
    pub fn restore(&mut self) -> Result<(), BadRow> {
        self.group.clear();
        let rows = self.rows.iter();
        let mut rows = rows.map(|(name, row)| (GenerationId(name.clone()), row.clone()));
        self.source.restore(&mut rows)
    }
}

/// A log file in memory, for sources that use [`Context::follow_log`]: the context of the test has a
/// clone as [`ContextParts::log_opener`]. Clones share their lines.
#[derive(Clone, Debug, Default)]
pub struct TestLog(Arc<Mutex<Vec<String>>>);

impl TestLog {
    /// Appends a line.
    pub fn append(&self, line: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
    }
}

impl LogOpener for TestLog {
    fn open(&self, path: &Path, _max_line_bytes: u64, _waker: crate::Waker) -> Box<dyn Source> {
        let origin = Origin::new(FileKey::fresh(), path, GenerationId("log".to_owned()));
        Box::new(TestLogFollower { lines: Arc::clone(&self.0), read: 0, origin })
    }
}

/// Follows a [`TestLog`]. Its row is the path and the number of lines read.
struct TestLogFollower {
    lines: Arc<Mutex<Vec<String>>>,
    read: usize,
    origin: Origin,
}

impl Source for TestLogFollower {
    fn label(&self) -> &'static str {
        "test-log"
    }

    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        self.read = 0;
        for (generation, row) in rows {
            let row: serde_json::Value = serde_json::from_slice(&row)
                .map_err(|error| BadRow::new(generation.clone(), error))?;
            let lines = row["lines"].as_u64();
            let lines = lines.ok_or_else(|| BadRow::new(generation, "`lines` is missing"))?;
            self.read = usize::try_from(lines).unwrap_or(usize::MAX);
        }
        Ok(())
    }

    fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let size = |line: &String| line.len() as u64 + 1;
        let mut offset = lines.iter().take(self.read).map(size).sum();
        for line in lines.iter().skip(self.read) {
            let (bytes, size) = (line.as_bytes(), size(line));
            let piece = Piece::line(offset, bytes, size);
            offset += size;
            self.read += 1;
            let row = json!({ "path": self.origin.path, "lines": self.read }).to_string();
            intake.take(Chunk::new(&self.origin, &[piece], Some(row.as_bytes())));
        }
        Progress::Idle { next: Duration::from_secs(1) }
    }

    fn committed(&mut self) {}

    fn survey(&self) -> Survey {
        Survey { files: 1, ..Survey::default() }
    }
}

struct TestIntake<'a> {
    input: Input,
    stored: &'a BTreeMap<String, Vec<u8>>,
    group: &'a mut BTreeMap<String, Option<Vec<u8>>>,
}

impl Intake for TestIntake<'_> {
    fn take(&mut self, chunk: Chunk<'_>) {
        self.input.events.extend(chunk.events);
        for piece in chunk.pieces {
            match piece {
                Piece::Line { bytes, .. }
                | Piece::Part { bytes, .. }
                | Piece::Lines { lines: bytes, .. } => {
                    self.input.records.push(String::from_utf8_lossy(bytes).into_owned());
                }
                Piece::Skipped { lines, reason, .. } => self.input.skipped.push((reason, *lines)),
            }
        }
        let row = chunk.checkpoint.map(<[u8]>::to_vec);
        self.group.insert(chunk.origin.generation.0.clone(), row);
    }

    fn store_row(&mut self, name: &str, row: &[u8], events: Vec<Event>) {
        self.input.events.extend(events);
        self.group.insert(name.to_owned(), Some(row.to_vec()));
    }

    fn report(&mut self, event: Event) {
        self.input.events.push(event);
    }

    fn forget(&mut self, _file: FileKey) {}

    fn has_room(&self) -> bool {
        true
    }

    fn saw(&self, _files: u64) {}

    fn checkpoint(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        match self.group.get(&generation.0) {
            Some(row) => row.clone(),
            None => self.stored.get(&generation.0).cloned(),
        }
    }
}

/// A sink under test. Deliveries run without a runtime: the harness polls the future by hand.
pub struct SinkTest {
    /// The sink itself.
    pub sink: Box<dyn Sink>,
    next_seq: u64,
}

/// Number of polls without a result after which a delivery counts as waiting indefinitely.
const MAX_POLLS: u32 = 10_000;

impl SinkTest {
    /// Builds the sink of type `name`.
    ///
    /// # Errors
    /// [`BuildError`] if no such sink is registered or an option is wrong.
    pub fn new(name: &str, options: &str, context: impl Into<Context>) -> Result<Self, BuildError> {
        let sink = build_sink(name, &options.parse()?, &context.into())?;
        Ok(Self { sink, next_seq: 1 })
    }

    /// Delivers a batch with these entries. After [`Delivery::Acknowledged`] the next batch has the
    /// following numbers.
    ///
    /// # Panics
    /// If the future is never ready: it waits for a runtime, which this harness does not have.
    pub fn deliver(&mut self, entries: &[&str]) -> Delivery {
        let batch = self.batch(entries);
        let mut delivery = pin!(self.sink.deliver(&batch));
        let mut context = std::task::Context::from_waker(Waker::noop());
        for _ in 0..MAX_POLLS {
            if let Poll::Ready(result) = delivery.as_mut().poll(&mut context) {
                if result == Delivery::Acknowledged {
                    self.next_seq += entries.len() as u64;
                }
                return result;
            }
            std::thread::yield_now();
        }
        panic!("the delivery was not ready after {MAX_POLLS} polls: does it wait for a runtime?");
    }

    /// Starts to deliver a batch with these entries and cancels it after `polls` polls, as when the
    /// agent stops.
    pub fn cancel(&mut self, entries: &[&str], polls: u32) {
        let batch = self.batch(entries);
        let mut delivery = pin!(self.sink.deliver(&batch));
        let mut context = std::task::Context::from_waker(Waker::noop());
        for _ in 0..polls {
            if delivery.as_mut().poll(&mut context).is_ready() {
                return;
            }
        }
    }

    fn batch(&self, entries: &[&str]) -> Batch {
        let count = entries.len() as u64;
        let identity = context().identity;
        let now = TestClock::default().now().to_string();
        let mut header = BatchHeader::new(&identity, "test".to_owned(), Digest::ZERO, now);
        header.count = count;
        header.first_seq = Some(self.next_seq);
        header.last_seq = Some(self.next_seq + count.saturating_sub(1));
        let lines = entries.iter().flat_map(|entry| [entry.as_bytes(), b"\n"]).flatten().copied();
        Batch::new(header, TestBody(lines.collect()))
    }
}

#[derive(Debug)]
struct TestBody(Vec<u8>);

impl BatchBody for TestBody {
    fn raw_bytes(&self) -> usize {
        self.0.len()
    }

    fn lines(&self) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        Ok(self.0.clone())
    }
}
