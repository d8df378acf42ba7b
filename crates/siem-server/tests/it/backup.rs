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
