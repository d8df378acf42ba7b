//! Stages of all four kinds, written and tested with nothing but the public API.
#![allow(clippy::unwrap_used, reason = "a test ends there")]

use std::{
    future::pending,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ai_agent_stage::{
    BadRow, Batch, BuildError, Chunk, Context, Delivery, DeliveryFuture, Enricher, EnricherOptions,
    FileKey, GenerationId, Intake, Origin, Piece, Plugin, Progress, Record, Sink, SinkOptions,
    Source, SourceOptions, Survey, Waker, inventory, registered,
    schemars::JsonSchema,
    serde::Deserialize,
    serde_json::value::{RawValue, to_raw_value},
    testing::{EnricherTest, SinkTest, SourceTest, context},
};

/// Generates the attributes of options, which must name the crates of the API.
macro_rules! options {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* }) => {
        $(#[$doc])*
        #[derive(Deserialize, JsonSchema)]
        #[serde(crate = "ai_agent_stage::serde", deny_unknown_fields)]
        #[schemars(crate = "ai_agent_stage::schemars")]
        struct $name { $($field: $type),* }
    };
}

options!(LengthOptions {});

inventory::submit! { Plugin::enricher::<LengthOptions>("length", "Adds the length.", "") }

/// Adds the length of each line.
struct Length(Option<Box<RawValue>>);

impl EnricherOptions for LengthOptions {
    type Enricher = Length;

    fn build(self, _: &Context) -> Result<Length, BuildError> {
        Ok(Length(None))
    }
}

impl Enricher for Length {
    fn enrich(&mut self, record: &Record<'_>) -> Option<&RawValue> {
        self.0 = to_raw_value(&record.line().len()).ok();
        self.0.as_deref()
    }
}

options!(CounterOptions { count: u64 });

inventory::submit! { Plugin::source::<CounterOptions>("counter", "Counts.", "count = 3") }

/// Hands over the numbers up to `count`; its row is the last one.
struct Counter {
    count: u64,
    read: u64,
    origin: Origin,
}

impl SourceOptions for CounterOptions {
    type Source = Counter;

    fn build(self, _: &Context, _: Waker) -> Result<Counter, BuildError> {
        if self.count == 0 {
            return Err(BuildError::invalid("count", "is 0, expected 1 or more"));
        }
        let origin = Origin::new(FileKey::fresh(), "/numbers", GenerationId("numbers".into()));
        Ok(Counter { count: self.count, read: 0, origin })
    }
}

impl Source for Counter {
    fn label(&self) -> &'static str {
        "counter"
    }

    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        self.read = 0;
        for (generation, row) in rows {
            let number = String::from_utf8_lossy(&row).parse();
            self.read = number.map_err(|error| BadRow::new(generation, error))?;
        }
        Ok(())
    }

    fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        while self.read < self.count && intake.has_room() {
            self.read += 1;
            let line = self.read.to_string();
            let (offset, size) = (self.read, line.len() as u64 + 1);
            let piece = Piece::line(offset, line.as_bytes(), size);
            intake.take(Chunk::new(&self.origin, &[piece], Some(line.as_bytes())));
        }
        Progress::Idle { next: Duration::from_secs(1) }
    }

    fn committed(&mut self) {}

    fn survey(&self) -> Survey {
        Survey::default()
    }
}

options!(MemoryOptions { hangs: bool });

inventory::submit! { Plugin::sink::<MemoryOptions>("memory", "Keeps.", "hangs = false") }

/// Stores batches in memory.
struct Memory {
    hangs: bool,
}

static KEPT: Mutex<Vec<(Option<u64>, Vec<u8>)>> = Mutex::new(Vec::new());

impl SinkOptions for MemoryOptions {
    type Sink = Memory;

    fn build(self, _: &Context) -> Result<Memory, BuildError> {
        Ok(Memory { hangs: self.hangs })
    }
}

impl Sink for Memory {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            if self.hangs {
                pending::<()>().await;
            }
            let lines = match batch.body.lines() {
                Ok(lines) => lines,
                Err(error) => return Delivery::Hold { after: None, reason: error.to_string() },
            };
            let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push((batch.header.first_seq, lines));
            Delivery::Acknowledged
        })
    }
}

#[test]
fn enricher_adds_its_object() {
    let mut enricher = EnricherTest::new("length", "", context()).unwrap();
    assert_eq!(enricher.line("abc").as_deref(), Some("3"));
}

#[test]
fn source_continues_from_stored_rows_only() {
    let mut source = SourceTest::new("counter", "count = 3", context()).unwrap();
    source.restore().unwrap();
    assert_eq!(source.read().0.records, ["1", "2", "3"]);
    source.restore().unwrap();
    assert_eq!(source.read().0.records, ["1", "2", "3"], "nothing was stored");
    source.commit();
    source.restore().unwrap();
    assert!(source.read().0.records.is_empty());
    let refused = SourceTest::new("counter", "count = 0", context()).err().unwrap().to_string();
    assert_eq!(refused, "`count` is 0, expected 1 or more");
}

#[test]
fn sink_gets_numbered_batches_and_survives_cancellation() {
    let mut sink = SinkTest::new("memory", "hangs = false", context()).unwrap();
    assert_eq!(sink.deliver(&["{\"n\":1}", "{\"n\":2}"]), Delivery::Acknowledged);
    assert_eq!(sink.deliver(&["{\"n\":3}"]), Delivery::Acknowledged);
    let kept = KEPT.lock().unwrap().clone();
    assert_eq!(kept[0], (Some(1), b"{\"n\":1}\n{\"n\":2}\n".to_vec()));
    assert_eq!(kept[1], (Some(3), b"{\"n\":3}\n".to_vec()));
    let mut hanging = SinkTest::new("memory", "hangs = true", context()).unwrap();
    hanging.cancel(&["{}"], 3);
}

#[test]
fn registry_knows_all_stages() {
    let names: Vec<_> = registered().iter().map(|stage| stage.name).collect();
    assert_eq!(names, ["counter", "length", "memory"]);
    let unknown = SinkTest::new("memori", "", context()).err().unwrap().to_string();
    assert_eq!(unknown, "there is no sink of type `memori`, did you mean `memory`?");
}
