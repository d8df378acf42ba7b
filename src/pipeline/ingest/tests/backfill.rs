//! A backlog waits in its files while much waits for delivery.

use std::{
    fs::{self, File},
    path::PathBuf,
    time::UNIX_EPOCH,
};

use siem_protocol::ChainPoint;

use super::*;
use crate::tail::{Tail, TailOptions, fresh_generation, testing::ShiftedClock};

/// Reads real files.
struct Files(Tail);

impl Source for Files {
    fn label(&self) -> &'static str {
        "claude-sessions"
    }

    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        self.0.restore(rows)
    }

    fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        self.0.read(intake)
    }

    fn is_backfill(&self) -> bool {
        self.0.is_backfill()
    }

    fn sealed(&mut self) {
        self.0.sealed();
    }

    fn committed(&mut self) {
        self.0.committed();
    }

    fn survey(&self) -> Survey {
        self.0.survey()
    }
}

struct Scene {
    ingest: Ingest,
    clock: Arc<ShiftedClock>,
    root: PathBuf,
    _folder: tempfile::TempDir,
}

impl Scene {
    /// Creates old files of 512 KiB each.
    fn new(old_files: usize, until: Until) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        for n in 0..old_files {
            let file = root.join(format!("old-{n}.jsonl"));
            let line = format!("{{\"file\":{n},\"text\":\"{}\"}}\n", "x".repeat(1000));
            fs::write(&file, line.repeat(512)).unwrap();
            let file = File::options().append(true).open(file).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
        }
        let clock = ShiftedClock::shared();
        let options =
            TailOptions { roots: vec![root.clone()], watch: false, ..TailOptions::default() };
        let new_id = Box::new(fresh_generation);
        let tail = Tail::new(options, clock.clone(), new_id, Arc::new(|| ()));
        let mut ingest = ingest(FixedFiles::new(&[]), folder.path());
        ingest.sources = vec![("files".into(), Box::new(Files(tail)))];
        ingest.stages = RecordStages::new(FilterChain::new(Vec::new()), Vec::new());
        ingest.clock = clock.clone();
        let inbox = Arc::clone(&ingest.inbox);
        ingest.outbox.on_acknowledged(Box::new(move || inbox.delivered()));
        ingest.begin();
        ingest.state.backfill.is_limited = until == Until::Stopped;
        Self { ingest, clock, root, _folder: folder }
    }

    /// Reads until nothing may be read; returns the number of stored bytes.
    fn read(&mut self) -> u64 {
        while !matches!(self.ingest.step(), StepOutcome::Read(Progress::Idle { .. })) {}
        self.ingest.outbox.stored_bytes()
    }

    fn acknowledge_all(&self) {
        let end = self.ingest.outbox.end();
        let point = ChainPoint { seq: end.seq - 1, hash: end.chain };
        self.ingest.outbox.advance("siem", "e", point, 0);
    }
}

/// A backlog filled the outbox, and a new record waited behind all of it.
#[test]
fn backlog_waits_in_its_files_until_entries_are_acknowledged() {
    const MB: u64 = 1 << 20;
    let mut scene = Scene::new(20, Until::Stopped);
    let stored = scene.read();
    assert!((MB..2 * MB).contains(&stored), "{stored}");
    assert_eq!(scene.ingest.outbox.watch().borrow().due_seq, scene.ingest.outbox.end().seq - 1);

    // A new record does not wait with the backlog.
    fs::write(scene.root.join("new.jsonl"), "{\"new\":true}\n").unwrap();
    scene.clock.advance(Duration::from_secs(400));
    let with_new = scene.read();
    let (records, _) = super::stored(&scene.ingest.outbox);
    assert_eq!(records.last().unwrap(), "{\"new\":true}");
    assert!(with_new < stored + MB / 4, "{with_new}");

    // An acknowledgement wakes the thread, once.
    scene.ingest.inbox.wait(Duration::ZERO, Duration::ZERO);
    scene.acknowledge_all();
    let started = std::time::Instant::now();
    scene.ingest.inbox.wait(Duration::from_secs(60), Duration::ZERO);
    assert!(started.elapsed() < Duration::from_secs(30), "not woken");
    let entries = scene.ingest.outbox.end().seq;
    scene.read();
    assert!(scene.ingest.outbox.end().seq > entries);

    for _ in 0..40 {
        scene.acknowledge_all();
        scene.clock.advance(Duration::from_millis(500));
        scene.read();
    }
    assert_eq!(scene.ingest.sources[0].1.survey().bytes_unread, 0);
}

#[test]
fn catching_up_does_not_wait_for_delivery() {
    let mut scene = Scene::new(8, Until::CaughtUp);
    assert!(scene.read() > 4 << 20);
}
