//! `GET /stats`: rows, filters and pages.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::common::{BatchText, Server, TOKEN, TestDevice, problem};
use serde_json::Value;
use siem_protocol::{Chain, Digest, statement::TrustLevel};
use siem_server::{
    EpochKey, FileStore, Limits, ServeOptions, Storage, StoredLine,
    batch::Batch,
    fleet::{FleetProblem, StatsQuery},
    ledger::{Ledger, Range},
    stats::Stats,
    store::{Answer, StoredBatch},
};

async fn get(server: &Server, query: &str) -> Stats {
    let url = server.url(&format!("/stats?{query}"));
    let request = reqwest::Client::new().get(url).bearer_auth(TOKEN);
    let body = request.send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap();
    serde_json::from_slice(&body).unwrap()
}

/// A batch of `machine` and `user` with one heartbeat.
fn heartbeat(machine: &str, user: &str, data: &Value) -> BatchText {
    let line = format!(
        r#"{{"seq":1,"kind":"event","source":"agent","event":"heartbeat","severity":"info","at":"2026-11-21T19:00:00.000Z","data":{data}}}"#
    );
    let after = Digest::ZERO.chain(Digest::of(line.as_bytes()));
    BatchText::new(1, 1).line(1, &line).with(|header| {
        header.machine_id = machine.into();
        header.user = user.into();
        header.epoch = format!("e-{machine}-{user}");
        header.chain = Some(Chain { before: Digest::ZERO, after });
    })
}

fn data(backlog: u64) -> Value {
    serde_json::json!({
        "epoch": "x", "totals": {}, "outbox_bytes": backlog, "transport": "tls",
        "config": { "applied": { "hash": "", "revision": "r-7", "at": "" } },
    })
}

#[tokio::test]
async fn rows_show_the_last_heartbeat_and_survive_a_restart() {
    let server = Server::start().await;
    server.take(&heartbeat("m-1", "anna", &data(5))).await;
    let row = server.stats().await.rows.remove(0);
    assert_eq!(
        (row.machine.as_str(), row.user.as_str(), row.host.as_str()),
        ("m-1", "anna", "laptop")
    );
    assert_eq!((row.epoch.as_str(), row.epochs, row.entries), ("e-m-1-anna", 1, 1));
    let heartbeat = row.heartbeat.clone().unwrap();
    assert_eq!((heartbeat.revision.as_deref(), heartbeat.backlog_bytes), (Some("r-7"), 5));
    // Sent an hour after it was made.
    assert_eq!(heartbeat.lag_seconds, 3602);
    assert_eq!(row.problems, [FleetProblem::Behind]);
    let data = server.end().await;
    let store = Arc::new(FileStore::open(data.path()).unwrap());
    let server = Server::over(data, store, Limits::default(), Default::default()).await;
    assert_eq!(server.stats().await.rows, [row]);
}

#[tokio::test]
async fn pages_and_filters_are_parts_of_the_whole() {
    let server = Server::start().await;
    for machine in ["m-1", "m-2", "m-3"] {
        for user in ["anna", "bob"] {
            let backlog = if user == "bob" { 1 << 40 } else { 0 };
            server.take(&heartbeat(machine, user, &data(backlog))).await;
        }
    }
    let whole = server.stats().await;
    assert_eq!((whole.totals.rows, whole.totals.machines, whole.next), (6, 3, None));
    let (mut rows, mut query) = (Vec::new(), "limit=4".to_owned());
    loop {
        let page = get(&server, &query).await;
        assert_eq!((page.totals.rows, page.matching.rows), (6, 6));
        let epochs = page.machines.iter().flat_map(|machine| &machine.epochs);
        assert!(epochs.clone().all(|epoch| epoch.current));
        assert_eq!(epochs.count(), page.rows.len());
        rows.extend(page.rows);
        let Some(next) = page.next else { break };
        query = format!("limit=4&cursor={next}");
    }
    assert_eq!(rows, whole.rows);
    let of = |query: &'static str| async { get(&server, query).await.rows };
    assert_eq!(of("machine=m-2").await, whole.rows[2..4]);
    assert_eq!(of("machine=m-2&user=bob").await, whole.rows[3..4]);
    assert_eq!(of("problem=behind").await.len(), 6, "all heartbeats are an hour old");
    assert_eq!(of("problem=gap").await, []);
}

#[tokio::test]
async fn problems_of_devices_and_epochs_are_shown() {
    let server = Server::with_devices(TrustLevel::FirstUse, Limits::default()).await;
    let (known, other) = (TestDevice::new(1), TestDevice::new(2));
    server.confirm(&known).await;
    server.enroll(&other).await;
    server.take(&BatchText::new(1, 1).seal(&known)).await;
    server.take(&BatchText::new(3, 3).seal(&known)).await;
    let second = BatchText::new(1, 1).with(|header| header.epoch = "e-2".into());
    server.take(&second.seal(&other)).await;
    let rows = server.stats().await.rows;
    let mut problems: Vec<_> = rows.iter().map(|row| row.problems.clone()).collect();
    problems.sort();
    assert_eq!(problems, [vec![FleetProblem::Gap], vec![FleetProblem::Unconfirmed]]);
    let unconfirmed = get(&server, "problem=unconfirmed").await;
    assert_eq!(unconfirmed.rows[0].epoch, "e-2");
    assert_eq!(unconfirmed.machines[0].unconfirmed[0].epochs[0].epoch, "e-2");
    assert_eq!(unconfirmed.totals.problems[&FleetProblem::Gap], 1);
}

#[tokio::test]
async fn wrong_parameter_is_400_with_the_names() {
    let server = Server::start().await;
    for (query, word) in
        [("problem=lost", "dead_letter"), ("quiet=1", "machine"), ("cursor=x", "cursor")]
    {
        let url = server.url(&format!("/stats?{query}"));
        let response = reqwest::Client::new().get(url).bearer_auth(TOKEN).send().await.unwrap();
        let problem = problem(response).await;
        assert_eq!(problem.status, 400);
        assert!(problem.detail.unwrap().contains(word), "{query}");
    }
}

/// A store that counts how many requests for statistics it answers at a time.
struct Counting {
    store: FileStore,
    running: AtomicUsize,
    most: Arc<AtomicUsize>,
}

impl Storage for Counting {
    fn store(&self, batch: Batch) -> Answer<'_, StoredBatch> {
        self.store.store(batch)
    }

    fn read(&self, epoch: EpochKey, range: Range, max_bytes: u64) -> Answer<'_, Vec<StoredLine>> {
        self.store.read(epoch, range, max_bytes)
    }

    fn ledger(&self, epoch: EpochKey) -> Answer<'_, Option<Ledger>> {
        self.store.ledger(epoch)
    }

    fn scan(&self, after: Option<EpochKey>, limit: usize) -> Answer<'_, Vec<EpochKey>> {
        self.store.scan(after, limit)
    }

    fn stats(&self, query: StatsQuery) -> Answer<'_, Stats> {
        Box::pin(async {
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(running, Ordering::SeqCst);
            let stats = self.store.stats(query).await;
            self.running.fetch_sub(1, Ordering::SeqCst);
            stats
        })
    }
}

/// Batches waited for the statistics of all that asked at the same time: 30 readers of a fleet of 2,000 made
/// each batch wait for seconds.
#[tokio::test]
async fn statistics_are_counted_for_one_request_at_a_time() {
    let data = tempfile::tempdir().unwrap();
    let most = Arc::<AtomicUsize>::default();
    let store = FileStore::open(data.path()).unwrap();
    let store = Counting { store, running: AtomicUsize::default(), most: most.clone() };
    let options = ServeOptions::default();
    let server = Server::over(data, Arc::new(store), Limits::default(), options).await;
    let client = reqwest::Client::new();
    let requests: Vec<_> = (0..20)
        .map(|_| tokio::spawn(client.get(server.url("/stats")).bearer_auth(TOKEN).send()))
        .collect();
    for request in requests {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
}
