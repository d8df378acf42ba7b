mod backfill;
mod enrichers;
mod reconfigure;

use std::path::Path;

use serde_json::json;
use siem_protocol::{Digest, Entry};

use super::*;
use crate::{
    config::ShippingSettings,
    event::Event,
    frame::Codec,
    pipeline::{
        config_status::SharedConfigStatus,
        filter_chain::FilterChain,
        outbox::{SinkRegistration, io_error_tests::FaultyFile},
    },
    platform::SystemClock,
    stages::{
        Record,
        filter::{self, Filter, Verdict},
        source::Survey,
    },
    tail::{BadRow, Chunk, GenerationId, Intake, Piece},
};

/// A source of files that never change. Each line is a chunk of its own.
struct FixedFiles {
    files: Vec<(Origin, Vec<&'static str>)>,
    /// Files that the next read reports as deleted.
    deleted: Vec<FileKey>,
    /// Number of lines of each file that have been handed over.
    read: Vec<usize>,
    /// The same when the last group was sealed.
    sealed: Vec<usize>,
    /// Number of lines of each file that are stored, after the first restore.
    stored: Option<Vec<usize>>,
}

impl FixedFiles {
    fn new(files: &[(&str, &[&'static str])]) -> Self {
        let origin = |name: &str| {
            let path = Path::new("/p").join(name);
            Origin::new(FileKey::fresh(), path, GenerationId(name.to_owned()))
        };
        let files: Vec<_> =
            files.iter().map(|(name, lines)| (origin(name), lines.to_vec())).collect();
        let none = vec![0; files.len()];
        Self { deleted: Vec::new(), read: none.clone(), sealed: none, stored: None, files }
    }
}

impl Source for FixedFiles {
    fn label(&self) -> &'static str {
        "claude-sessions"
    }

    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        self.read.fill(0);
        for (generation, row) in rows {
            let at = self.files.iter().position(|(origin, _)| origin.generation == generation);
            self.read[at.unwrap()] = String::from_utf8(row).unwrap().parse().unwrap();
        }
        // A source that missed a notification would read a deleted file again.
        let stored = self.stored.get_or_insert_with(|| self.read.clone());
        for (at, (_, lines)) in self.files.iter().enumerate() {
            // A source is not notified of held files.
            if !lines.contains(&"boom") {
                assert_eq!(stored[at], self.read[at], "the source knows what is stored");
            }
        }
        *stored = self.read.clone();
        Ok(())
    }

    fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        self.deleted.drain(..).for_each(|file| intake.forget(file));
        for ((origin, lines), read) in self.files.iter().zip(&mut self.read) {
            while *read < lines.len() {
                if !intake.has_room() {
                    return Progress::More;
                }
                let bytes = lines[*read].as_bytes();
                let (offset, size) = (*read as u64, bytes.len() as u64 + 1);
                let pieces = [Piece::line(offset, bytes, size)];
                *read += 1;
                let row = read.to_string();
                intake.take(Chunk::new(origin, &pieces, Some(row.as_bytes())));
            }
        }
        Progress::Idle { next: Duration::from_secs(1) }
    }

    fn sealed(&mut self) {
        self.sealed.clone_from(&self.read);
    }

    fn committed(&mut self) {
        self.stored = Some(self.sealed.clone());
    }

    fn survey(&self) -> Survey {
        Survey::default()
    }
}

/// Panics on the line `boom`.
struct PanicsOnBoom;

impl Filter for PanicsOnBoom {
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        assert!(record.line() != b"boom", "the filter fails");
        Verdict::Keep
    }
}

fn ingest(source: FixedFiles, folder: &Path) -> Ingest {
    let path = folder.join("outbox.redb");
    let outbox = Outbox::open(
        &path,
        &[SinkRegistration { name: "siem".into(), ..SinkRegistration::default() }],
        || "e".into(),
    )
    .unwrap();
    ingest_into(outbox, source)
}

fn ingest_into(outbox: Outbox, source: FixedFiles) -> Ingest {
    let dedupe = filter::build("dedupe", &"".parse().unwrap()).unwrap();
    let filters = FilterChain::new(vec![
        ("fragile".into(), Box::new(PanicsOnBoom)),
        ("dedupe".into(), dedupe),
    ]);
    let shipping = ShippingSettings::default();
    let outbox = Arc::new(outbox);
    Ingest {
        sources: vec![("files".into(), Box::new(source))],
        stages: RecordStages::new(filters, Vec::new()),
        builder: GroupBuilder::new(outbox.end(), Digest::ZERO, shipping, Codec::Plain),
        writer: Writer::new(Arc::clone(&outbox), Codec::Plain),
        outbox,
        backpressure: Backpressure::new(1 << 30),
        inbox: Arc::default(),
        clock: Arc::new(SystemClock),
        heartbeat: Duration::from_secs(300),
        config_status: SharedConfigStatus::default(),
        trust: Box::new(Default::default),
        update: Box::new(Default::default),
        jitter: Box::new(|| 0.5),
        on_progress: Box::new(|_| ()),
        state: IngestState::default(),
    }
}

/// Returns the stored records and the names of the stored events.
fn stored(outbox: &Outbox) -> (Vec<String>, Vec<String>) {
    let frames = outbox.frames(1, |_| std::ops::ControlFlow::Continue(())).unwrap();
    let raw: Vec<u8> = frames.iter().flat_map(|frame| frame.decode().unwrap()).collect();
    let (mut records, mut events) = (Vec::new(), Vec::new());
    for line in raw.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let entry = Entry::parse(line).unwrap();
        match entry.content().unwrap() {
            Some(content) => records.push(String::from_utf8(content.into_owned()).unwrap()),
            None => events.push(entry.event.unwrap().into_owned()),
        }
    }
    (records, events)
}

/// A filter that panicked ended the only ingest thread: the agent kept running without reading
/// anything.
#[test]
fn panicking_filter_holds_only_the_file_it_failed_on() {
    let folder = tempfile::tempdir().unwrap();
    let files = FixedFiles::new(&[
        ("a", ["a1", "a2"].as_slice()),
        ("b", ["b1", "boom", "b3"].as_slice()),
        ("c", ["c1"].as_slice()),
    ]);
    let ingest = ingest(files, folder.path());
    let outbox = Arc::clone(&ingest.outbox);
    ingest.run(Until::CaughtUp);
    let (records, events) = stored(&outbox);
    assert_eq!(records, ["a1", "a2", "c1"]);
    assert_eq!(events, ["agent_started", "stage_failed", "heartbeat", "agent_stopped"]);
    // The checkpoint stays where it was: the next start tries the file again.
    let row = |name: &str| outbox.checkpoint("files", &GenerationId(name.into())).unwrap();
    assert_eq!((row("a").as_deref(), row("b")), (Some(b"2".as_slice()), None));
}

#[test]
fn reading_continues_from_stored_rows_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let first = ingest(FixedFiles::new(&[("a", ["a1"].as_slice())]), folder.path());
    drop({
        let outbox = Arc::clone(&first.outbox);
        first.run(Until::CaughtUp);
        outbox
    });
    let second = ingest(FixedFiles::new(&[("a", ["a1", "a2"].as_slice())]), folder.path());
    let outbox = Arc::clone(&second.outbox);
    second.run(Until::CaughtUp);
    assert_eq!(stored(&outbox).0, ["a1", "a2"]);
    assert_eq!(outbox.end().totals.shipped.lines, 2);
}

/// One group is read while another is stored: if the store fails, both come again, once.
#[test]
fn failed_group_rolls_back_what_was_read_meanwhile() {
    let large = |n: usize| {
        let line = format!(r#"{{"uuid":"u-{n}","x":"{}"}}"#, "x".repeat(400_000));
        &*line.leak()
    };
    let lines: Vec<&'static str> = (0..60).map(large).collect();
    for fails_at in 1..12 {
        let (file, folder) = (FaultyFile::default(), tempfile::tempdir().unwrap());
        let outbox = file.outbox(folder.path());
        let mut ingest = ingest_into(outbox, FixedFiles::new(&[("a", lines.as_slice())]));
        let outbox = Arc::clone(&ingest.outbox);
        ingest.begin();
        let (mut turns, mut failures) = (0, 0);
        loop {
            turns += 1;
            assert!(turns < 1000, "reading ends");
            if turns == fails_at {
                ingest.inbox.report(Event::info("test", json!({ "turn": turns })));
                file.fail_syncs(true);
            }
            match ingest.step() {
                StepOutcome::NotStored { .. } => {
                    failures += 1;
                    file.fail_syncs(false);
                }
                StepOutcome::Read(Progress::Idle { .. }) => break,
                turn => assert_eq!(turn, StepOutcome::Read(Progress::More)),
            }
        }
        assert!(failures > 0 && turns >= fails_at, "{failures} failures in {turns} turns");
        ingest.end();
        let (records, events) = stored(&outbox);
        assert_eq!(records, lines, "after a failure in turn {fails_at}");
        let expected = ["agent_started", "test", "heartbeat", "agent_stopped"];
        assert_eq!(events, expected, "after a failure in turn {fails_at}");
    }
}

/// Reported events were lost with a store that could no longer be written.
#[test]
fn unstored_events_are_left_for_the_next_pipeline() {
    let folder = tempfile::tempdir().unwrap();
    let mut ingest = ingest(FixedFiles::new(&[]), folder.path());
    let inbox = Arc::clone(&ingest.inbox);
    let left = |inbox: &Inbox| {
        let names: Vec<_> = inbox.take_unstored_events().iter().map(|event| event.name).collect();
        names
    };
    ingest.begin();
    inbox.report(Event::info("one", json!({})));
    assert!(matches!(ingest.step(), StepOutcome::Read(_)));
    assert_eq!(left(&inbox), [""; 0], "a stored event is left over");
    inbox.report(Event::info("two", json!({})));
    ingest.outbox.close();
    assert!(matches!(ingest.step(), StepOutcome::NotStored { .. }));
    inbox.report(Event::info("three", json!({})));
    ingest.end();
    assert_eq!(left(&inbox), ["two", "three"]);
}

/// The store of a running agent was deleted: all it wrote from then on was lost with it.
#[cfg(unix)]
#[test]
fn deleted_store_is_noticed_by_maintenance() {
    let folder = tempfile::tempdir().unwrap();
    let mut ingest = ingest(FixedFiles::new(&[("a", ["a1"].as_slice())]), folder.path());
    ingest.begin();
    ingest.step();
    ingest.state.maintenance_due = Duration::ZERO;
    ingest.step();
    let damage = ingest.outbox.watch_damage();
    assert!(!*damage.borrow(), "it lies where it was");
    std::fs::remove_file(folder.path().join("outbox.redb")).unwrap();
    ingest.state.maintenance_due = Duration::ZERO;
    ingest.step();
    assert!(*damage.borrow());
}

/// A command that removed a sink made the open group stale: it was read again, and the log
/// contained an error about entries that could not be stored.
#[test]
fn job_between_groups_does_not_make_a_group_stale() {
    let folder = tempfile::tempdir().unwrap();
    let mut ingest = ingest(FixedFiles::new(&[("a", ["a1"].as_slice())]), folder.path());
    let inbox = Arc::clone(&ingest.inbox);
    ingest.begin();
    ingest.inbox.report(Event::info("one", json!({})));
    let done = inbox.run_between_groups(|outbox| {
        let mut builder =
            GroupBuilder::new(outbox.end(), Digest::ZERO, ShippingSettings::default(), Codec::Zstd);
        builder.add_event(&Event::info("other", json!({})), &mut [], Timestamp(1));
        outbox.commit(&builder.finish(Timestamp(1))).unwrap();
    });
    assert!(matches!(ingest.step(), StepOutcome::Read(_)));
    assert!(done.blocking_recv().is_ok());
    inbox.report(Event::info("two", json!({})));
    assert!(matches!(ingest.step(), StepOutcome::Read(_)));
    let outbox = Arc::clone(&ingest.outbox);
    ingest.end();
    let (records, events) = stored(&outbox);
    assert_eq!(records, ["a1"]);
    assert_eq!(events, ["agent_started", "other", "one", "two", "heartbeat", "agent_stopped"]);
    assert!(outbox.verify().is_ok());
}

/// The status was not answered while nothing could be stored.
#[test]
fn status_names_the_store_failure_while_it_lasts() {
    let folder = tempfile::tempdir().unwrap();
    let ingest = ingest(FixedFiles::new(&[("a", ["a1"].as_slice())]), folder.path());
    let inbox = Arc::clone(&ingest.inbox);
    ingest.outbox.close();
    let thread = std::thread::spawn(move || ingest.run(Until::Stopped));
    loop {
        let reading = inbox.request_status().blocking_recv().unwrap();
        assert_eq!(reading.sources[0].0, "files");
        if let Some(StoreFailure { cause: reason, .. }) = reading.store_failure {
            assert!(reason.contains("cannot open the outbox"), "{reason}");
            break;
        }
        std::thread::yield_now();
    }
    let (status, job) = (inbox.request_status(), inbox.run_between_groups(|_| ()));
    inbox.stop();
    thread.join().unwrap();
    // A request that comes too late fails and does not wait.
    drop(status.blocking_recv());
    assert!(job.blocking_recv().is_err());
    assert!(inbox.request_status().blocking_recv().is_err());
    assert!(inbox.run_between_groups(|_| ()).blocking_recv().is_err());
}
