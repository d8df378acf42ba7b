//! Backups of a receiver under load.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use siem_protocol::Encoding;
use siem_server::{
    FileStore, FileStoreOptions, Limits, ServeOptions, SystemClock,
    backup::{BackupOptions, backup, restore},
    fleet::FleetProblem,
    ledger::Range,
};

use crate::common::{BatchText, Server, files};

const MACHINES: usize = 4;

fn batch(machine: usize, first: u64) -> BatchText {
    BatchText::new(first, first + 9).with(|header| {
        header.machine_id = format!("m-{machine}");
        header.epoch = format!("e-{machine}");
    })
}

fn options() -> FileStoreOptions {
    // Journals are replaced and deleted all the time.
    let mut options = FileStoreOptions::default();
    options.journal_bytes = 64 << 10;
    options
}

/// Senders that append to the receiver until they are stopped.
struct Load {
    acknowledged: Arc<[AtomicU64; MACHINES]>,
    ends: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(server: &Arc<Server>) -> Self {
        let acknowledged = Arc::new(std::array::from_fn(|_| AtomicU64::new(0)));
        let ends = Arc::new(AtomicBool::new(false));
        let tasks = (0..MACHINES).map(|machine| {
            let (server, acknowledged, ends) =
                (server.clone(), Arc::clone(&acknowledged), Arc::clone(&ends));
            tokio::spawn(async move {
                let mut next = 1;
                while !ends.load(Ordering::Relaxed) {
                    let text = batch(machine, next).text();
                    let response = server.request(&text, Encoding::Zstd).send().await.unwrap();
                    assert_eq!(response.status(), 200);
                    acknowledged[machine].store(next + 9, Ordering::SeqCst);
                    next += 10;
                }
            })
        });
        Self { tasks: tasks.collect(), acknowledged, ends }
    }

    fn acknowledged(&self) -> Vec<u64> {
        self.acknowledged.iter().map(|it| it.load(Ordering::SeqCst)).collect()
    }

    async fn end(self) {
        self.ends.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_under_load_has_every_entry_acknowledged_before() {
    let data = tempfile::tempdir().unwrap();
    let store = FileStore::open_with(data.path(), options()).unwrap();
    let server = Server::over(data, Arc::new(store), Limits::default(), ServeOptions::default());
    let server = Arc::new(server.await);
    let load = Load::start(&server);
    let mut least = 1;
    for _ in 0..3 {
        crate::common::eventually("more was stored", async || {
            load.acknowledged().iter().all(|it| *it > least)
        })
        .await;
        let before = load.acknowledged();
        let target = tempfile::tempdir().unwrap();
        let (from, to) = (server.data.path().to_owned(), target.path().to_owned());
        let backing_up = tokio::task::spawn_blocking(move || {
            backup(&from, &to.join("backup"), BackupOptions::default(), &SystemClock).unwrap();
            restore(&to.join("backup"), &to.join("data")).unwrap();
        });
        backing_up.await.unwrap();
        let after = load.acknowledged();
        assert!(after.iter().zip(&before).all(|(after, before)| after > before), "it was paused");
        verify(&target.path().join("data"), &before).await;
        least = *after.iter().max().unwrap() + 100;
    }
    load.end().await;
}

/// Opens a restored directory: each entry is there once, and each epoch continues.
async fn verify(data: &std::path::Path, before: &[u64]) {
    let copy = tempfile::tempdir().unwrap();
    fs::rename(data, copy.path().join("data")).unwrap();
    let data = copy.path().join("data");
    let store = FileStore::open_with(&data, options()).unwrap();
    let copy =
        Server::over(copy, Arc::new(store), Limits::default(), ServeOptions::default()).await;
    let stats = copy.stats().await;
    assert_eq!(stats.machines.len(), MACHINES);
    for (machine, before) in before.iter().enumerate() {
        let of = stats.machines.iter().find(|it| it.identity.machine_id == format!("m-{machine}"));
        let epoch = &of.unwrap().epochs[0];
        assert!(epoch.entries >= *before, "{} of {before}", epoch.entries);
        assert_eq!(epoch.next_seq, epoch.entries + 1);
        assert!(epoch.gaps.is_empty() && epoch.breaks.is_empty() && epoch.holes.is_empty());
        let next = batch(machine, epoch.next_seq);
        assert_eq!(copy.take(&next).await.accepted, 10, "the chain continues");
    }
    // The files of the epochs are written before it responds.
    copy.stats().await;
    for file in files(&data.join("machines"), "ndjson") {
        let text = fs::read_to_string(&file).unwrap();
        let numbers: Vec<u64> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64().unwrap()
            })
            .collect();
        let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
        assert_eq!(numbers, expected, "{}", file.display());
    }
    for ending in ["surplus", "damaged"] {
        assert_eq!(files(&data, ending), Vec::<std::path::PathBuf>::new());
    }
}

/// A receiver that was restored lacks what it had acknowledged since the backup. An agent that continues
/// the epoch shows it with a gap; one that begins another epoch says how far the one before was delivered.
#[tokio::test]
async fn entries_lost_by_a_restoration_are_missing() {
    let server = Server::start().await;
    let of = |first, last| BatchText::new(first, last);
    server.take(&of(1, 4)).await;
    let target = tempfile::tempdir().unwrap();
    let (backed_up, data) = (target.path().join("backup"), target.path().join("data"));
    backup(server.data.path(), &backed_up, BackupOptions::default(), &SystemClock).unwrap();
    server.take(&of(5, 9)).await;
    server.end().await;
    restore(&backed_up, &data).unwrap();

    let line = r#"{"seq":2,"kind":"event","source":"agent","event":"epoch_started","severity":"warning","at":"2026-11-21T20:00:00.000Z","data":{"epoch":"e-2","previous_epoch":"e-1","reason":"conflict","entries":1,"previous_last_seq":10}}"#;
    let start = of(1, 2).line(2, line).chained().with(|header| {
        header.epoch = "e-2".into();
        header.previous_epoch = Some("e-1".into());
    });
    let mut found = Vec::new();
    for _ in 0..2 {
        // The second time it was restarted, and the batch is a duplicate.
        let store = FileStore::open_with(&data, options()).unwrap();
        let (limits, serve) = (Limits::default(), ServeOptions::default());
        let none = tempfile::tempdir().unwrap();
        let server = Server::over(none, Arc::new(store), limits, serve).await;
        server.take(&start).await;
        let stats = server.stats().await;
        assert_eq!((stats.totals.missing, stats.totals.healthy), (5, 0));
        assert_eq!(stats.rows[0].problems, [FleetProblem::Gap]);
        let epochs = &stats.machines[0].epochs;
        assert_eq!(epochs[1].gap_before, Some(Range { first: 5, last: 9 }));
        assert!(epochs.iter().all(|epoch| epoch.gaps.is_empty()));
        found.push((epochs[1].duplicates, stats.rows[0].missing));
        server.end().await;
    }
    assert_eq!(found, [(0, 5), (2, 5)]);
}
