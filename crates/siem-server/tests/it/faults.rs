//! Faults of agents, networks and disks.

use std::{sync::Arc, time::Duration};

use crate::common::{Outbox, SECRET, Server, TOKEN, TestDevice, VECTOR, encoded, files};
use siem_protocol::{Encoding, sign, statement::TrustLevel};
use siem_server::{
    FileStore, Limits, ServeOptions,
    ledger::{Comparison, Difference},
    stats::{CloneKind, EpochStats, Stats},
};
#[cfg(target_os = "linux")]
use test_requires::requires;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

/// Entries of every kind, every seventh a heartbeat.
fn outbox(entries: u64) -> Outbox {
    let mut outbox = Outbox::new("epoch-1");
    for entry in 0..entries {
        match entry % 7 {
            1 => outbox.part("h", entry, 1),
            3 => outbox.event(),
            6 => outbox.heartbeat(),
            _ => outbox.record("g", entry * 100, entry),
        };
    }
    outbox
}

fn epoch(stats: &Stats) -> &EpochStats {
    &stats.machines[0].epochs[0]
}

fn claims(stats: &Stats) -> &Comparison {
    epoch(stats).claims.as_ref().unwrap()
}

/// Returns the stored lines by number.
fn stored(data: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(&files(data, "ndjson")[0]).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let seq = |line: &String| line[7..line.find(',').unwrap()].parse::<u64>().unwrap();
    lines.sort_by_key(seq);
    lines
}

#[tokio::test]
async fn concurrent_batches_of_one_agent_store_each_line_once() {
    let outbox = outbox(105);
    let server = Arc::new(Server::start().await);
    for first in (1..100).step_by(7) {
        // An agent that timed out sends again while the first request is still in progress.
        let tries = [(first, first + 6), (first, first + 3), (first, first + 6)];
        let tasks = tries.map(|(first, last)| {
            let (server, text) = (server.clone(), outbox.batch(first, last));
            tokio::spawn(async move { server.take(&text).await.accepted })
        });
        let mut accepted = 0;
        for task in tasks {
            accepted += task.await.unwrap();
        }
        assert_eq!(accepted, 7);
    }
    let stats = server.stats().await;
    assert_eq!((epoch(&stats).entries, stats.unexplained), (105, 0));
    assert_eq!((claims(&stats).below, claims(&stats).difference), (105, Difference::None));
    let data = Arc::into_inner(server).unwrap().end().await;
    assert_eq!(stored(data.path()), outbox.lines());
}

#[tokio::test]
async fn reordered_late_and_replayed_batches_give_the_same_store() {
    let outbox = outbox(140);
    let device = TestDevice::new(1);
    for seed in 1..6_u64 {
        let server = Server::with_devices(TrustLevel::FirstUse, Limits::default()).await;
        server.confirm(&device).await;
        let mut batches: Vec<_> = (0..20).map(|at| (at * 7 + 1, at * 7 + 7)).collect();
        batches.extend([(1, 7), (60, 90), (134, 140)]);
        batches.sort_by_key(|(first, last)| (first * 31 + last * 17) * (seed * 2 + 1) % 101);
        for (first, last) in batches {
            server.take(&outbox.batch(first, last).seal(&device)).await;
            assert_eq!(server.stats().await.unexplained, 0);
        }
        let stats = server.stats().await;
        assert_eq!((epoch(&stats).entries, epoch(&stats).duplicates), (140, 45));
        assert_eq!((epoch(&stats).gaps.len(), epoch(&stats).breaks.len()), (0, 0));
        assert_eq!(claims(&stats).difference, Difference::None);
        let data = server.end().await;
        assert_eq!(stored(data.path()), outbox.lines(), "{seed}");
    }
}

#[tokio::test]
async fn cloned_agent_is_detected_by_hostname_and_epochs() {
    let server = Server::start().await;
    let kinds = async || -> Vec<CloneKind> {
        server.stats().await.machines[0].clones.iter().map(|clone| clone.kind).collect()
    };
    let one = outbox(20);
    server.take(&one.batch(1, 5)).await;
    let copied = one.batch(6, 8).with(|header| header.hostname = "copy".into());
    server.take(&copied).await;
    assert_eq!(kinds().await, [CloneKind::TwoHostnames]);
    let mut other = Outbox::new("epoch-2");
    other.event().event();
    server.take(&other.batch(1, 1)).await;
    assert_eq!(kinds().await.len(), 1);
    server.take(&one.batch(9, 9).with(|header| header.hostname = "copy".into())).await;
    server.take(&other.batch(2, 2)).await;
    let alternating = kinds().await.into_iter().filter(|it| *it == CloneKind::AlternatingEpochs);
    assert_eq!(alternating.count(), 2);
}

/// A file system of a few megabytes, unmounted at the end.
#[cfg(target_os = "linux")]
struct Disk(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl Disk {
    fn mount(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(directory.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Self(directory)
    }
}

#[cfg(target_os = "linux")]
impl Drop for Disk {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg(self.0.path()).status());
    }
}

#[cfg(target_os = "linux")]
#[requires(mount)]
#[tokio::test]
async fn full_disk_is_507_stores_whole_batches_and_recovers() {
    let disk = Disk::mount("3m");
    // Two files fill the disk, so that space can be freed twice.
    let ballast = [1, 2].map(|number| disk.0.path().join(format!("ballast-{number}")));
    for path in &ballast {
        std::fs::write(path, vec![b'x'; 600 << 10]).unwrap();
    }
    let mut outbox = Outbox::new("epoch-1");
    let long = "g".repeat(2000);
    for entry in 0..2000 {
        match entry % 10 {
            9 => outbox.heartbeat(),
            _ => outbox.record(&long, entry * 100, entry),
        };
    }
    let path = disk.0.path().join("data");
    let data = tempfile::tempdir().unwrap();
    let store = Arc::new(FileStore::open(&path).unwrap());
    let server = Server::over(data, store, Limits::default(), ServeOptions::default()).await;
    let mut next = 1;
    for round in 0..3 {
        // Different lengths fill the disk at different places.
        let full = loop {
            let text = outbox.batch(next, next + 9 + round).text();
            let response = server.request(&text, Encoding::Zstd).send().await.unwrap();
            if response.status() != 200 {
                break response;
            }
            next += 10 + round;
        };
        let problem = crate::common::problem(full).await;
        assert_eq!((problem.status, problem.kind.as_str()), (507, "urn:ai-agent:problem:full"));
        let stats = server.stats().await;
        assert_eq!((epoch(&stats).next_seq, epoch(&stats).entries), (next, next - 1));
        assert_eq!((epoch(&stats).gaps.len(), stats.unexplained), (0, 0));
        if let Some(path) = ballast.get(usize::try_from(round).unwrap()) {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert!(next > 300, "{next}");
    let before = server.stats().await;
    // A kill now leaves a journal that was full several times.
    let killed = tempfile::tempdir().unwrap();
    copy(&path, killed.path());
    drop(FileStore::open(killed.path()).unwrap());
    let count = usize::try_from(next - 1).unwrap();
    assert_eq!(stored(killed.path()), outbox.lines()[..count]);
    drop(server.end().await);
    // Acknowledged entries are there once after a restart, which needs space too.
    let space = std::process::Command::new("mount")
        .args(["-o", "remount,size=8m"])
        .arg(disk.0.path())
        .status();
    assert!(space.unwrap().success());
    let store = eventually_open(&path).await;
    let server = Server::over(
        tempfile::tempdir().unwrap(),
        store,
        Limits::default(),
        ServeOptions::default(),
    )
    .await;
    assert_eq!(server.stats().await, before);
    server.take(&outbox.batch(next - 3, next + 5)).await;
    drop(server.end().await);
    drop(eventually_open(&path).await);
    let count = usize::try_from(next + 5).unwrap();
    assert_eq!(stored(&path), outbox.lines()[..count]);
}

#[cfg(target_os = "linux")]
fn copy(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&path, &to);
        } else {
            std::fs::copy(path, to).unwrap();
        }
    }
}

/// The store is closed after the last connection.
#[cfg(target_os = "linux")]
async fn eventually_open(path: &std::path::Path) -> Arc<FileStore> {
    let mut opened = None;
    crate::common::eventually("the store can be opened", async || {
        opened = FileStore::open(path).ok();
        opened.is_some()
    })
    .await;
    Arc::new(opened.unwrap())
}

fn head(length: &str) -> String {
    let signature = sign(SECRET.as_bytes(), VECTOR.as_bytes());
    format!(
        "POST /ingest HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\
         X-Siem-Signature: {signature}\r\n{length}\r\n\r\n"
    )
}

/// Sends `bytes`, closes the sending side if requested, and reads until the receiver closes.
async fn exchange(server: &Server, bytes: &[u8], end: bool) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let talk = async {
        let sending = async {
            // The receiver may close before everything is sent.
            drop(writer.write_all(bytes).await);
            if end {
                drop(writer.shutdown().await);
            }
        };
        let reading = async { drop(reader.read_to_end(&mut answer).await) };
        tokio::join!(sending, reading);
    };
    let closed = tokio::time::timeout(Duration::from_secs(30), talk).await;
    assert!(closed.is_ok(), "the receiver did not close");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn body_shorter_than_its_length_times_out_and_stores_nothing() {
    let mut limits = Limits::default();
    (limits.body_timeout, limits.discard) = (Duration::from_millis(50), Duration::from_millis(50));
    let server = Server::with_limits(limits).await;
    let length = format!("Content-Length: {}", VECTOR.len() + 1);
    let request = head(&length) + VECTOR;
    // Once the client closes, once it stays silent.
    for end in [true, false] {
        let answer = exchange(&server, request.as_bytes(), end).await;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    assert_eq!(server.stats().await, Stats::default());
}

#[tokio::test]
async fn body_longer_than_its_length_is_cut_and_the_rest_ignored() {
    let server = Server::start().await;
    let length = format!("Content-Length: {}", VECTOR.len());
    let request = head(&length) + VECTOR + "{\"seq\":5,\"kind\":\"event\"}\n\r\n\r\n";
    let answer = exchange(&server, request.as_bytes(), false).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("HTTP/1.1 400"), "{answer}");
    assert_eq!(epoch(&server.stats().await).next_seq, 5);
}

#[tokio::test]
async fn absurd_content_length_is_refused_before_allocation() {
    let server = Server::start().await;
    let two = format!("Content-Length: {}\r\nContent-Length: 7", VECTOR.len());
    for length in [
        "Content-Length: 99999999999999999999999999",
        "Content-Length: 18446744073709551615",
        "Content-Length: 9223372036854775807",
        "Content-Length: 67108865",
        "Content-Length: -1",
        "Content-Length: 1e3",
        "Content-Length: 0x10",
        two.as_str(),
    ] {
        let answer = exchange(&server, (head(length) + VECTOR).as_bytes(), true).await;
        let status = answer.get(9..12).unwrap_or_default();
        // hyper answers 431 to an invalid length.
        assert!(["400", "413", "431"].contains(&status), "{length}: {answer}");
    }
    assert_eq!(server.stats().await, Stats::default());
    let response = server.request(VECTOR, Encoding::Identity).send().await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn million_headers_are_431_and_other_requests_succeed() {
    let server = Server::start().await;
    let request = "GET /stats HTTP/1.1\r\n".to_owned() + &"X-A: b\r\n".repeat(1_000_000) + "\r\n";
    let answer = exchange(&server, request.as_bytes(), false).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(server.stats().await, Stats::default());
}

/// Sends `start`, then a byte now and then until the receiver closes.
async fn dribble(server: &Server, start: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(start.as_bytes()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut answer = Vec::new();
    loop {
        assert!(Instant::now() < deadline, "the receiver did not close");
        let mut bytes = [0; 1024];
        let next = tokio::time::timeout(Duration::from_millis(5), stream.read(&mut bytes)).await;
        match next {
            Ok(Ok(0) | Err(_)) => return String::from_utf8_lossy(&answer).into_owned(),
            Ok(Ok(length)) => answer.extend_from_slice(&bytes[..length]),
            // The response to a byte shows at the next read.
            Err(_) => drop(stream.write_all(b"x").await),
        }
    }
}

#[tokio::test]
async fn client_sending_headers_slowly_is_disconnected() {
    let data = tempfile::tempdir().unwrap();
    let store = Arc::new(FileStore::open(data.path()).unwrap());
    let mut options = ServeOptions::default();
    options.header_timeout = Duration::from_millis(60);
    let server = Server::over(data, store, Limits::default(), options).await;
    for start in ["", "P", "POST /ingest HTTP/1.1\r\nX-A: "] {
        let answer = dribble(&server, start).await;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    // An idle connection is closed too after its response.
    let answer = exchange(&server, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", false).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Without a token, a client could keep the memory of a connection forever.
#[tokio::test]
async fn client_never_reading_responses_is_disconnected() {
    let data = tempfile::tempdir().unwrap();
    let store = Arc::new(FileStore::open(data.path()).unwrap());
    let mut options = ServeOptions::default();
    options.write_timeout = Duration::from_millis(100);
    let server = Server::over(data, store, Limits::default(), options).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let requests = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    let closed = async { while stream.write_all(requests.as_bytes()).await.is_ok() {} };
    let closed = tokio::time::timeout(Duration::from_secs(30), closed).await;
    assert!(closed.is_ok(), "the receiver did not close");
}

#[tokio::test]
async fn client_sending_its_body_slowly_is_answered_and_closed() {
    let mut limits = Limits::default();
    (limits.body_timeout, limits.discard) = (Duration::from_millis(60), Duration::from_millis(60));
    let server = Server::with_limits(limits).await;
    for length in ["Content-Length: 100000", "Transfer-Encoding: chunked"] {
        // Every byte is part of a chunk that announces more.
        let start = head(length) + if length.starts_with('T') { "fffff\r\n" } else { "" };
        let answer = dribble(&server, &start).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{length}: {answer}");
    }
    assert_eq!(server.stats().await, Stats::default());
}

#[tokio::test]
async fn compression_bombs_are_refused_and_their_memory_freed() {
    let mut limits = Limits::default();
    limits.memory = 96 << 20;
    let server = Arc::new(Server::with_limits(limits).await);
    for (encoding, times) in [(Encoding::Zstd, 40), (Encoding::Gzip, 40)] {
        // Consecutive frames and members: more than 300 MiB from a few hundred kilobytes.
        let bomb = encoded(&vec![b' '; 8 << 20], encoding).repeat(times);
        assert!(bomb.len() < 2 << 20, "{}", bomb.len());
        let signature = sign(SECRET.as_bytes(), &bomb);
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let request = server.signed(bomb.clone(), encoding.as_str(), &signature);
                tokio::spawn(async move { request.send().await.unwrap().status() })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), 413);
        }
    }
    let response = server.request(VECTOR, Encoding::Zstd).send().await.unwrap();
    assert_eq!(response.status(), 200);
}
