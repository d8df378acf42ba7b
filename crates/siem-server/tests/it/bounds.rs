//! Connections and bodies that would cost the receiver more than their share.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use siem_protocol::{Encoding, names::header};
use siem_server::{FileStore, Limits, ServeOptions};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::common::{BatchText, Server, TOKEN, VECTOR};

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

async fn with_options(options: ServeOptions) -> Server {
    let data = tempfile::tempdir().unwrap();
    let store = Arc::new(FileStore::open(data.path()).unwrap());
    Server::over(data, store, Limits::default(), options).await
}

/// Sends the start of a body of 1 MiB with a wrong signature.
async fn stalled(server: &Server, machine: usize, start: usize) -> TcpStream {
    started(server, machine, start, 1 << 20).await
}

/// Sends the start of a body of `length` bytes with a wrong signature.
async fn started(server: &Server, machine: usize, start: usize, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "POST /ingest HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n{}: machine-{machine}\r\n\
         {}: 00\r\nContent-Length: {length}\r\n\r\n",
        header::MACHINE_ID,
        header::SIGNATURE,
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b'x'; start]).await.unwrap();
    stream
}

/// Returns the status of the response.
async fn status(mut stream: TcpStream) -> String {
    let mut answer = [0; 12];
    let reading = tokio::time::timeout(Duration::from_secs(30), stream.read_exact(&mut answer));
    reading.await.expect("a response within the deadline").unwrap();
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

#[tokio::test]
async fn announced_bodies_reserve_no_memory() {
    let mut limits = Limits::default();
    limits.body_timeout = NEVER;
    let server = Server::with_limits(limits).await;
    let mut streams = Vec::new();
    for machine in 0..100 {
        streams.push(started(&server, machine, 1, 64 << 20).await);
    }
    assert_eq!(server.take(&BatchText::new(1, 4)).await.accepted, 4);
}

/// The turns of an address are all taken by bodies that do not continue.
#[tokio::test]
async fn stalled_bodies_lose_their_turn_when_others_wait() {
    let mut limits = Limits::default();
    (limits.body_timeout, limits.stall) = (NEVER, Duration::from_millis(50));
    let server = Server::with_limits(limits).await;
    let mut streams = Vec::new();
    for machine in 0..200 {
        streams.push(stalled(&server, machine, 64 << 10).await);
    }
    let large = BatchText::new(1, 200);
    assert!(large.text().len() > 8 << 10);
    let response = server.request(&large.text(), Encoding::Identity).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(status(streams.swap_remove(0)).await, "408");
}

/// Bodies of which a byte arrives now and then are as slow as those that stop.
#[tokio::test]
async fn trickling_body_loses_its_turn_when_others_wait() {
    let mut limits = Limits::default();
    (limits.body_timeout, limits.stall) = (NEVER, Duration::from_millis(100));
    let server = Server::with_limits(limits).await;
    let mut streams = Vec::new();
    for machine in 0..200 {
        streams.push(stalled(&server, machine, 64 << 10).await);
    }
    let mut trickling = streams.swap_remove(0);
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut answer = [0; 12];
    loop {
        assert!(Instant::now() < deadline, "the body kept its turn");
        let reading = trickling.read_exact(&mut answer);
        if let Ok(read) = tokio::time::timeout(Duration::from_millis(5), reading).await {
            read.unwrap();
            break;
        }
        trickling.write_all(b"x").await.unwrap();
    }
    assert_eq!(answer, *b"HTTP/1.1 408");
}

#[tokio::test]
async fn slow_body_is_read_while_no_other_waits() {
    let mut limits = Limits::default();
    limits.stall = Duration::from_millis(10);
    let server = Server::with_limits(limits).await;
    let mut slow = started(&server, 1, 8 << 10, (8 << 10) + 20).await;
    for _ in 0..20 {
        let mut byte = [0; 1];
        let reading = tokio::time::timeout(Duration::from_millis(20), slow.read(&mut byte));
        assert!(reading.await.is_err(), "the body was refused");
        slow.write_all(b"x").await.unwrap();
    }
    assert_eq!(status(slow).await, "403", "it is whole, and its signature is wrong");
}

#[tokio::test]
async fn one_machine_does_not_take_the_turns_of_others() {
    let mut limits = Limits::default();
    (limits.body_timeout, limits.stall) = (NEVER, NEVER);
    let server = Server::with_limits(limits).await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(stalled(&server, 1, 64 << 10).await);
    }
    let large = BatchText::new(1, 200).text();
    let response = server.request(&large, Encoding::Identity).send().await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn overloaded_senders_return_at_different_times() {
    let mut limits = Limits::default();
    (limits.body_timeout, limits.stall) = (NEVER, NEVER);
    limits.patience = Duration::from_millis(20);
    let server = Server::with_limits(limits).await;
    let mut streams = Vec::new();
    for machine in 0..200 {
        streams.push(stalled(&server, machine, 64 << 10).await);
    }
    let large = BatchText::new(1, 200).text();
    let mut times = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let response = server.request(&large, Encoding::Identity).send().await.unwrap();
        assert_eq!(response.status(), 503);
        let after = response.headers()["retry-after"].to_str().unwrap();
        times.insert(after.parse::<u64>().unwrap());
    }
    assert!(times.len() >= 4 && times.first() >= Some(&1), "{times:?}");
}

#[tokio::test]
async fn silent_connections_make_room_for_requests() {
    let mut options = ServeOptions::default();
    (options.connections, options.header_timeout) = (16, NEVER);
    let server = with_options(options).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    assert_eq!(server.take(&BatchText::new(1, 4)).await.accepted, 4);
    assert_eq!(silent[0].read(&mut [0; 1]).await.unwrap_or_default(), 0, "the first one ended");
}

/// A client with the token of the fleet, on all connections.
#[tokio::test]
async fn small_bodies_that_stop_make_room_for_requests() {
    let (mut limits, mut options) = (Limits::default(), ServeOptions::default());
    (limits.body_timeout, limits.stall) = (NEVER, Duration::from_millis(50));
    (limits.discard, options.connections) = (Duration::from_millis(50), 16);
    let data = tempfile::tempdir().unwrap();
    let store = Arc::new(FileStore::open(data.path()).unwrap());
    let server = Server::over(data, store, limits, options).await;
    let mut streams = Vec::new();
    for machine in 0..40 {
        streams.push(started(&server, machine, 1, 100).await);
    }
    let batch = BatchText::new(1, 4);
    let sending = server.take(&batch);
    let receipt = tokio::time::timeout(Duration::from_secs(30), sending).await.unwrap();
    assert_eq!(receipt.accepted, 4);
    assert_eq!(status(streams.swap_remove(0)).await, "408");
}

#[tokio::test]
async fn headers_are_limited_to_the_documented_size() {
    let server = with_options(ServeOptions::default()).await;
    for (size, expected) in [(60 << 10, "200"), (66 << 10, "431"), (100 << 10, "431")] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: {}\r\n\r\n", "b".repeat(size));
        // The receiver may close before everything is sent.
        drop(stream.write_all(head.as_bytes()).await);
        assert_eq!(status(stream).await, expected, "{size}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn fifo_in_place_of_the_configuration_is_refused() {
    let server = Server::start().await;
    let path = server.data.path().join("config.json");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert_eq!(server.config().await.status(), 500);
    let response = server.request(VECTOR, Encoding::Zstd).send().await.unwrap();
    assert_eq!(response.status(), 200);
    server.end().await;
}
