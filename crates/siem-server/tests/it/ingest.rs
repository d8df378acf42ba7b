//! `POST /ingest` over HTTP: every check, every status.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use crate::common::{
    BatchText, SECRET, Server, TOKEN, TestDevice, VECTOR, chain, encoded, files, line, problem,
};
use siem_protocol::{
    Chain, ChainPoint, Digest, Encoding, names::header, sign, statement::TrustLevel,
};
use siem_server::{
    EpochKey, Limits, ServeOptions, Storage, StoreError, StoredLine,
    batch::Batch,
    fleet::StatsQuery,
    ledger::{BreakKind, Ledger, Range},
    stats::Stats,
    store::{Answer, StoredBatch},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const ENCODINGS: [Encoding; 3] = [Encoding::Zstd, Encoding::Gzip, Encoding::Identity];

#[tokio::test]
async fn vectors_are_stored_byte_for_byte_in_every_encoding() {
    let signature = "fca65c3e90751d9bb9209e441fa4cfb984531f9060206f57d634ad98212804e8";
    assert_eq!(sign(SECRET.as_bytes(), VECTOR.as_bytes()), signature);
    for encoding in ENCODINGS {
        let server = Server::start().await;
        let response = server.request(VECTOR, encoding).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.text().await.unwrap(), r#"{"last_seq":4,"accepted":3,"duplicates":0}"#);
        let stats = server.stats().await;
        let epoch = &stats.machines[0].epochs[0];
        assert_eq!((epoch.entries, epoch.next_seq), (3, 5));
        assert_eq!(epoch.holes, [Range { first: 3, last: 3 }]);
        assert_eq!((epoch.gaps.len(), epoch.breaks.len()), (0, 0));
        let data = server.end().await;
        let stored = std::fs::read_to_string(&files(data.path(), "ndjson")[0]).unwrap();
        assert_eq!(stored, VECTOR.split_once('\n').unwrap().1);
    }
}

#[tokio::test]
async fn several_frames_or_gzip_members_form_one_body() {
    for encoding in [Encoding::Zstd, Encoding::Gzip] {
        let server = Server::start().await;
        let (head, tail) = VECTOR.as_bytes().split_at(500);
        let body = [encoded(head, encoding), encoded(tail, encoding)].concat();
        let signature = sign(SECRET.as_bytes(), &body);
        let response = server.signed(body, encoding.as_str(), &signature).send().await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test]
async fn wrong_or_missing_token_is_401() {
    let server = Server::start().await;
    for value in
        [None, Some(""), Some("Bearer "), Some("Bearer x"), Some("Basic dTpw"), Some(TOKEN)]
    {
        let body = VECTOR.as_bytes().to_vec();
        let mut request = reqwest::Client::new()
            .post(server.url("/ingest"))
            .header("content-encoding", "identity")
            .header(header::SIGNATURE, sign(SECRET.as_bytes(), &body))
            .body(body);
        if let Some(value) = value {
            request = request.header("authorization", value);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        assert_eq!(problem(response).await.status, 401, "{value:?}");
    }
    assert_eq!(server.stats().await, Stats::default());
}

#[tokio::test]
async fn second_token_and_secret_are_accepted() {
    let server = Server::start().await;
    let body = VECTOR.as_bytes().to_vec();
    let signature = sign(b"second secret", &body);
    let request = reqwest::Client::new()
        .post(server.url("/ingest"))
        .header("authorization", "bearer second token")
        .header(header::SIGNATURE, signature)
        .body(body);
    assert_eq!(request.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn wrong_or_missing_signature_is_403() {
    let server = Server::start().await;
    let body = encoded(VECTOR.as_bytes(), Encoding::Zstd);
    let right = sign(SECRET.as_bytes(), &body);
    let other_secret = sign(b"another", &body);
    let plain = sign(SECRET.as_bytes(), VECTOR.as_bytes());
    for wrong in ["", "x", &right[1..], &other_secret, &plain] {
        let response = server.signed(body.clone(), "zstd", wrong).send().await.unwrap();
        assert_eq!(problem(response).await.status, 403, "{wrong}");
    }
    let request = reqwest::Client::new().post(server.url("/ingest")).bearer_auth(TOKEN).body(body);
    assert_eq!(problem(request.send().await.unwrap()).await.status, 403);
}

#[tokio::test]
async fn unsupported_encoding_or_content_type_is_415() {
    let server = Server::start().await;
    for encoding in ["br", "deflate", "zstd, gzip", ""] {
        let body = VECTOR.as_bytes().to_vec();
        let signature = sign(SECRET.as_bytes(), &body);
        let response = server.signed(body, encoding, &signature).send().await.unwrap();
        assert_eq!(response.headers()["accept-encoding"], "zstd, gzip, identity");
        assert_eq!(problem(response).await.status, 415, "{encoding}");
    }
    let mut request = server.request(VECTOR, Encoding::Zstd).build().unwrap();
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    let response = reqwest::Client::new().execute(request).await.unwrap();
    assert_eq!(problem(response).await.status, 415);
}

/// A body refused for its token was not read: the client, still writing, got a broken pipe in place
/// of the response, and took a wrong token for a network error.
#[tokio::test]
async fn client_writing_a_whole_oversized_body_gets_the_response() {
    let server = Server::start().await;
    for (token, length, status) in [("wrong", 8 << 20, "401"), (TOKEN, 20 << 20, "413")] {
        let head = format!(
            "POST /ingest HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
             Content-Encoding: zstd\r\nX-Siem-Signature: {}\r\nContent-Length: {length}\r\n\r\n",
            "0".repeat(64)
        );
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..length >> 20 {
            stream.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
        }
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(std::str::from_utf8(&answer).unwrap(), format!("HTTP/1.1 {status}"));
    }
}

#[tokio::test]
async fn oversized_body_is_413_by_length_while_read_and_decoded() {
    let mut limits = Limits::default();
    (limits.compressed, limits.decoded) = (1 << 10, 64 << 10);
    let server = Server::with_limits(limits).await;
    let signed = |body: Vec<u8>, encoding: &'static str| {
        let signature = sign(SECRET.as_bytes(), &body);
        server.signed(body, encoding, &signature)
    };
    // The announced length is enough to refuse it.
    let head = format!(
        "POST /ingest HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Encoding: zstd\r\n\
         X-Siem-Signature: {}\r\nContent-Length: 1025\r\n\r\n",
        "0".repeat(64)
    );
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    // No length is announced.
    let head = head.replace("Content-Length: 1025", "Transfer-Encoding: chunked");
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(format!("800\r\n{}\r\n", "x".repeat(0x800)).as_bytes()).await.unwrap();
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    // An unencoded body may be as long as a decoded one.
    let response = signed(vec![b'x'; (64 << 10) + 1], "identity").send().await.unwrap();
    assert_eq!(problem(response).await.status, 413);
    let response = signed(vec![b'x'; 64 << 10], "identity").send().await.unwrap();
    assert_eq!(problem(response).await.status, 400);
    // Compression bombs.
    for (encoding, name) in [(Encoding::Zstd, "zstd"), (Encoding::Gzip, "gzip")] {
        let bomb = encoded(&vec![b' '; (64 << 10) + 1], encoding);
        let response = signed(bomb, name).send().await.unwrap();
        assert_eq!(problem(response).await.status, 413, "{name}");
    }
}

#[tokio::test]
async fn malformed_batch_is_400_with_the_reason() {
    let server = Server::start().await;
    let signed = |body: &[u8], encoding: &'static str| {
        server.signed(body.to_vec(), encoding, &sign(SECRET.as_bytes(), body))
    };
    let cut = &encoded(VECTOR.as_bytes(), Encoding::Zstd)[..100];
    let odd = BatchText::new(1, 3).line(2, "{\"kind\":\"event\"}").text();
    let count = BatchText::new(1, 3).with(|header| header.count = 4).text();
    let jump = BatchText::new(1, 3).line(3, &line(4)).text();
    let cases = [
        (signed(cut, "zstd"), "zstd"),
        (signed(b"no gzip", "gzip"), "gzip"),
        (signed(b"", "identity"), "line 1"),
        (signed(line(1).as_bytes(), "identity"), "line 1"),
        (signed(odd.as_bytes(), "identity"), "line 3"),
        (signed(count.as_bytes(), "identity"), "`count`"),
        (signed(jump.as_bytes(), "identity"), "line 4"),
        (
            server.request(VECTOR, Encoding::Zstd).header(header::HOSTNAME, "other"),
            header::HOSTNAME,
        ),
        (
            server.request(VECTOR, Encoding::Zstd).header(header::MACHINE_ID, "%6d-2"),
            header::MACHINE_ID,
        ),
        (
            server.request(VECTOR, Encoding::Zstd).header(header::BATCH_ID, "e-1-3"),
            header::BATCH_ID,
        ),
    ];
    for (request, word) in cases {
        let problem = problem(request.send().await.unwrap()).await;
        assert_eq!(problem.status, 400, "{word}");
        assert!(problem.detail.as_ref().unwrap().contains(word), "{word}: {problem:?}");
    }
    assert_eq!(server.stats().await, Stats::default());
    let right = server
        .request(VECTOR, Encoding::Zstd)
        .header(header::HOSTNAME, "l%61ptop")
        .header(header::BATCH_ID, "01930000-0000-7000-8000-000000000001-1-4");
    assert_eq!(right.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn entry_without_valid_json_is_422_and_stores_no_entry() {
    let server = Server::start().await;
    let text = BatchText::new(1, 3).line(2, r#"{"seq":2,"kind":"event","data":nul}"#).text();
    let response = server.request(&text, Encoding::Zstd).send().await.unwrap();
    let problem = problem(response).await;
    assert_eq!(problem.status, 422);
    assert!(problem.detail.unwrap().starts_with("line 3, entry 2"));
    assert_eq!(server.stats().await, Stats::default());
}

#[tokio::test]
async fn chain_conflict_is_409_with_the_expected_number() {
    let server = Server::start().await;
    server.take(&BatchText::new(1, 5)).await;
    let restored = BatchText::new(4, 6).line(4, r#"{"seq":4,"kind":"event","other":1}"#).text();
    let response = server.request(&restored, Encoding::Zstd).send().await.unwrap();
    let problem = problem(response).await;
    assert_eq!((problem.status, problem.expected_seq), (409, Some(6)));
    let stats = server.stats().await;
    assert_eq!((stats.machines[0].entries, stats.machines[0].epochs[0].conflicts), (5, 1));
}

#[tokio::test]
async fn stats_report_duplicates_gaps_holes_breaks_and_bases() {
    let device = TestDevice::new(1);
    let server = Server::with_devices(TrustLevel::FirstUse, Limits::default()).await;
    server.confirm(&device).await;
    server.take(&BatchText::new(1, 4).dead(&[2]).seal(&device)).await;
    let again = server.take(&BatchText::new(3, 6).seal(&device)).await;
    assert_eq!((again.last_seq, again.accepted, again.duplicates), (Some(6), 2, 2));
    server.take(&BatchText::new(9, 10).seal(&device)).await;
    let stats = server.stats().await.machines.remove(0);
    assert_eq!(stats.identity.hostname, "laptop");
    assert_eq!(stats.epochs[0].gaps, [Range { first: 7, last: 8 }]);
    assert_eq!(stats.epochs[0].holes, [Range { first: 2, last: 2 }]);
    server.take(&BatchText::new(7, 8).seal(&device)).await;
    let redelivery = BatchText::redelivery(&[2, 3, 11]).seal_at(&device, Some((10, chain(10))));
    let redelivery = server.take(&redelivery).await;
    assert_eq!(redelivery.accepted_seqs, Some(vec![2, 3]));
    assert_eq!((redelivery.last_seq, redelivery.accepted), (None, 1));
    let broken = Chain { before: Digest::of(b"x"), after: Digest::of(b"y") };
    let broken = BatchText::new(11, 11).with(|header| header.chain = Some(broken));
    server.take(&broken.chained().seal(&device)).await;
    let epoch = server.stats().await.machines.remove(0).epochs.remove(0);
    assert_eq!((epoch.entries, epoch.duplicates), (11, 3));
    assert_eq!((epoch.gaps, epoch.holes), (vec![], vec![]));
    let breaks: Vec<_> = epoch.breaks.iter().map(|it| (it.seq, it.kind)).collect();
    assert_eq!(breaks, [(11, BreakKind::Before)]);
    let base = ChainPoint { seq: 7, hash: chain(7) };
    let later = BatchText::new(8, 9).with(|header| {
        header.epoch = "e-2".into();
        header.base = Some(base);
        header.previous_epoch = Some("e-1".into());
    });
    server.take(&later.seal(&device)).await;
    let epoch = server.stats().await.machines.remove(0).epochs.remove(1);
    assert_eq!((epoch.begins_at, epoch.gaps), (Some(base), vec![]));
    assert_eq!(epoch.previous_epoch.as_deref(), Some("e-1"));
}

/// A storage that always fails with one error.
struct Failing(fn() -> StoreError);

impl Storage for Failing {
    fn store(&self, _: Batch) -> Answer<'_, StoredBatch> {
        Box::pin(async { Err(self.0()) })
    }

    fn read(&self, _: EpochKey, _: Range, _: u64) -> Answer<'_, Vec<StoredLine>> {
        Box::pin(async { Err(self.0()) })
    }

    fn ledger(&self, _: EpochKey) -> Answer<'_, Option<Ledger>> {
        Box::pin(async { Err(self.0()) })
    }

    fn scan(&self, _: Option<EpochKey>, _: usize) -> Answer<'_, Vec<EpochKey>> {
        Box::pin(async { Err(self.0()) })
    }

    fn stats(&self, _: StatsQuery) -> Answer<'_, Stats> {
        Box::pin(async { Err(self.0()) })
    }
}

#[tokio::test]
async fn failing_storage_is_507_or_503_with_retry_after() {
    let full = || StoreError::from_io(std::io::ErrorKind::StorageFull.into());
    let ill = || StoreError::from_io(std::io::ErrorKind::PermissionDenied.into());
    let busy = || StoreError::Busy { retry_after: Duration::from_secs(7) };
    type Case = (fn() -> StoreError, u16, Option<RangeInclusive<u64>>);
    // Senders that find the store busy are spread over some seconds.
    let cases: [Case; 3] = [(full, 507, None), (ill, 503, Some(5..=5)), (busy, 503, Some(7..=20))];
    for (error, status, retry_after) in cases {
        let data = tempfile::tempdir().unwrap();
        let (limits, options) = (Limits::default(), ServeOptions::default());
        let server = Server::over(data, Arc::new(Failing(error)), limits, options).await;
        let response = server.request(VECTOR, Encoding::Zstd).send().await.unwrap();
        let after = response.headers().get("retry-after").map(|it| it.to_str().unwrap());
        let after = after.map(|after| after.parse::<u64>().unwrap());
        assert_eq!(after.is_some(), retry_after.is_some());
        assert!(after.is_none_or(|after| retry_after.unwrap().contains(&after)), "{after:?}");
        assert_eq!(problem(response).await.status, status);
    }
}

/// Sends the start of a request without its body.
async fn stalled(server: &Server, length: usize) -> TcpStream {
    let head = format!(
        "POST /ingest HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\
         X-Siem-Signature: {}\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n",
        "0".repeat(64)
    );
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // `100 Continue` is sent once memory for the body is reserved.
    let mut go_ahead = [0; 25];
    stream.read_exact(&mut go_ahead).await.unwrap();
    assert!(go_ahead.starts_with(b"HTTP/1.1 100 Continue"));
    stream
}

#[tokio::test]
async fn body_without_free_memory_is_503_with_retry_after() {
    let mut limits = Limits::default();
    limits.memory = 400 << 10;
    limits.patience = Duration::from_millis(20);
    let server = Server::with_limits(limits).await;
    // Only what arrived takes memory.
    let mut holding = stalled(&server, 100 << 10).await;
    holding.write_all(&[0; 64 << 10]).await.unwrap();
    let large = BatchText::new(1, 200).text();
    let mut response = server.request(&large, Encoding::Identity).send().await.unwrap();
    crate::common::eventually("the first body arrived", async || {
        response = server.request(&large, Encoding::Identity).send().await.unwrap();
        response.status() == 503
    })
    .await;
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(problem(response).await.status, 503);
    drop(holding);
    crate::common::eventually("memory is free again", async || {
        server.request(&large, Encoding::Identity).send().await.unwrap().status() == 200
    })
    .await;
}

#[tokio::test]
async fn highly_compressible_body_is_accepted() {
    let server = Server::start().await;
    let long = format!(r#"{{"seq":2,"kind":"event","pad":"{}"}}"#, " ".repeat(4 << 20));
    let after = chain(1).chain(Digest::of(long.as_bytes()));
    let text = BatchText::new(1, 2).line(2, &long);
    let text = text.with(|header| header.chain = Some(Chain { before: Digest::ZERO, after }));
    assert!(encoded(text.text().as_bytes(), Encoding::Zstd).len() * 16 < 1 << 20);
    assert_eq!(server.take(&text).await.accepted, 2);
}

#[tokio::test]
async fn body_taking_too_long_is_408() {
    let mut limits = Limits::default();
    limits.body_timeout = Duration::from_millis(30);
    let server = Server::with_limits(limits).await;
    let mut stream = stalled(&server, 10).await;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn endless_headers_close_the_connection() {
    let data = tempfile::tempdir().unwrap();
    let store = Arc::new(siem_server::FileStore::open(data.path()).unwrap());
    let mut options = ServeOptions::default();
    options.header_timeout = Duration::from_millis(50);
    let server = Server::over(data, store, Limits::default(), options).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"POST /ingest HTTP/1.1\r\nX-A: b\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{answer:?}");
}

#[tokio::test]
async fn too_many_headers_are_431() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let many = "X-A: b\r\n".repeat(500);
    stream.write_all(format!("GET /stats HTTP/1.1\r\n{many}\r\n").as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!("GET /stats HTTP/1.1\r\nX-A: {}", "b".repeat(1 << 20));
    // The server may close while this is written.
    drop(stream.write_all(head.as_bytes()).await);
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{answer:?}");
    assert_eq!(server.stats().await, Stats::default());
}

#[tokio::test]
async fn many_concurrent_agents_are_all_stored() {
    let server = Arc::new(Server::start().await);
    let agents = (0..64).map(|agent| {
        let server = server.clone();
        tokio::spawn(async move {
            for first in (1..40).step_by(4) {
                let text = BatchText::new(first, first + 3);
                let text = text.with(|header| header.machine_id = format!("machine-{agent}"));
                assert_eq!(server.take(&text).await.accepted, 4);
            }
        })
    });
    for agent in agents.collect::<Vec<_>>() {
        agent.await.unwrap();
    }
    let stats = server.stats().await;
    assert_eq!(stats.machines.len(), 64);
    for machine in &stats.machines {
        assert_eq!((machine.entries, machine.epochs[0].next_seq), (40, 41));
    }
    let server = Arc::into_inner(server).unwrap();
    let data = server.end().await;
    let expected: String = (1..=40).map(|seq| line(seq) + "\n").collect();
    for file in files(data.path(), "ndjson") {
        assert_eq!(std::fs::read_to_string(file).unwrap(), expected);
    }
}
