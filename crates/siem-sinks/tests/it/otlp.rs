//! The sink `otlp` against a scripted receiver and against the collector rotel.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use siem_protocol::delivery::{Acknowledged, Delivery, EntryResult, Rest};
use siem_sinks::{
    SiemSink as _,
    compression::Compression,
    event::TimeOf,
    http::ClientSettings,
    otlp::{Otlp, Settings},
};
use test_requires::requires;

use crate::support::{
    assembly::assemble,
    entries::Entries,
    http_server::{Fault, Reply},
    odd_lines::{long_text, odd_lines},
    otlp_server::{OtlpServer, content, rejected},
    rotel::{Rotel, wait_for},
};

fn settings(endpoint: &str) -> Settings {
    Settings {
        endpoint: endpoint.parse().unwrap(),
        headers: [("api-key".parse().unwrap(), "k3y".parse().unwrap())].into_iter().collect(),
        compression: Compression::Gzip,
        time: TimeOf::Read,
        max_event_bytes: 1_000_000,
        max_request_bytes: 4_000_000,
        timeout: Duration::from_secs(30),
    }
}

fn sink(settings: Settings) -> Otlp {
    let client = ClientSettings { connect_timeout: Duration::from_secs(5), ..Default::default() };
    Otlp::new(client.client().unwrap(), settings, Arc::new(|| UNIX_EPOCH))
}

fn sink_to(server: &OtlpServer) -> Otlp {
    sink(settings(&server.http().url()))
}

/// A sink whose requests have room for 3 of the small entries.
fn sink_of_small_requests(server: &OtlpServer) -> Otlp {
    sink(Settings { max_request_bytes: 2000, ..settings(&server.http().url()) })
}

/// Result of delivering everything.
#[derive(Debug, Default, PartialEq, Eq)]
struct Delivered {
    deliveries: usize,
    /// Indexes of refused entries.
    refused: Vec<usize>,
    /// Number of refused entries that the receiver did not name.
    unidentified: u64,
}

/// Delivers entries as the agent does, with its policy in short: what is decided is not sent again, and
/// what is refused is halved.
async fn deliver_all(sink: &mut Otlp, entries: &Entries) -> Delivered {
    let (mut done, mut limit, mut delivered) = (0, usize::MAX, Delivered::default());
    while done < entries.len() {
        delivered.deliveries += 1;
        assert!(delivered.deliveries < 100, "no end: {delivered:?}");
        let end = limit.saturating_add(done).min(entries.len());
        let later: Vec<usize> = (end..entries.len()).collect();
        let part = entries.without(done, &later);
        match sink.deliver(part.batch()).await {
            Delivery::Acknowledged => (done, limit) = (end, usize::MAX),
            Delivery::Unidentified { refused, .. } => {
                delivered.unidentified += refused;
                (done, limit) = (end, usize::MAX);
            }
            Delivery::PerEntry { entries: results, rest } => {
                for result in results {
                    match result {
                        EntryResult::Accepted => {}
                        EntryResult::Unidentified { refused, .. } => {
                            delivered.unidentified += refused;
                        }
                        EntryResult::Refused { .. } => delivered.refused.push(done),
                        EntryResult::Undecided => break,
                        EntryResult::Misfiled { .. } => panic!("misfiled"),
                    }
                    done += 1;
                }
                let is_refused = matches!(rest, Rest::Refused { .. });
                limit = if is_refused { ((end - done) / 2).max(1) } else { usize::MAX };
            }
            Delivery::Refused { .. } if part.len() == 1 => {
                delivered.refused.push(done);
                (done, limit) = (done + 1, usize::MAX);
            }
            Delivery::Refused { .. } => limit = part.len() / 2,
            Delivery::Retry { .. } | Delivery::Slow { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    delivered
}

#[tokio::test]
async fn odd_lines_arrive_with_their_bytes() {
    for compression in [Compression::Gzip, Compression::None] {
        let server = OtlpServer::start();
        let mut entries = Entries::of(odd_lines());
        entries.record_in_parts(&[b"{\"a\":", b"\xff}"]);
        entries.event("heartbeat", r#"{"n":1}"#);
        let mut sink = sink(Settings { compression, ..settings(&server.http().url()) });
        assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
        let stored = assemble(server.events());
        assert!(stored.contents == entries.contents(), "the bytes differ");
        assert_eq!((stored.repetitions, stored.incomplete.len()), (0, 0));
        let requests = server.http().requests();
        let sent: usize = requests.iter().map(|request| request.raw_body.len()).sum();
        assert_eq!(sink.bytes_sent(), sent as u64);
        let encoding = if compression == Compression::Gzip { "gzip" } else { "" };
        for request in requests {
            assert_eq!((&*request.method, &*request.path), ("POST", "/v1/logs"));
            assert_eq!(request.header("content-type"), "application/x-protobuf");
            assert_eq!(request.header("content-encoding"), encoding);
            assert_eq!(request.header("api-key"), "k3y");
            assert!(request.body.len() <= 4_000_000);
        }
    }
}

#[tokio::test]
async fn large_batch_is_sent_in_several_requests() {
    let server = OtlpServer::start();
    let entries = Entries::of((0..8).map(|_| long_text(700_000)));
    let settings = Settings { max_event_bytes: 100_000, ..settings(&server.http().url()) };
    let settings = Settings { max_request_bytes: 1_000_000, ..settings };
    assert_eq!(sink(settings).deliver(entries.batch()).await, Delivery::Acknowledged);
    assert!(assemble(server.events()).contents == entries.contents());
    let sizes: Vec<_> = server.http().requests().iter().map(|it| it.body.len()).collect();
    assert!(sizes.len() >= 6 && sizes.iter().all(|size| *size <= 1_000_000), "{sizes:?}");
}

#[tokio::test]
async fn failed_request_leaves_the_results_of_earlier_ones() {
    let server = OtlpServer::start();
    let entries = Entries::small(9);
    let busy = Fault::Answer(Reply::new(503, "busy").header("Retry-After", "7"));
    server.http().fail("/v1/logs", [Fault::None, busy]);
    let delivery = sink_of_small_requests(&server).deliver(entries.batch()).await;
    let Delivery::PerEntry { entries: results, rest } = delivery else { panic!("{delivery:?}") };
    let accepted = assemble(server.events()).contents.len();
    assert!(accepted > 0 && accepted < 9, "{accepted}");
    let is_accepted = |result: &EntryResult| *result == EntryResult::Accepted;
    assert!(results[..accepted].iter().all(is_accepted));
    assert!(results[accepted..].iter().all(|result| *result == EntryResult::Undecided));
    let reason = "the receiver responded with 503 (busy)".to_owned();
    assert_eq!(rest, Rest::Retry { after: Some(Duration::from_secs(7)), reason });
    assert_eq!(server.http().request_count(), 2);
}

#[tokio::test]
async fn partial_success_is_reported_and_nothing_is_sent_twice() {
    let entries = Entries::small(9);
    // In a single request.
    let server = OtlpServer::start();
    server.http().fail("/v1/logs", [Fault::Answer(rejected(2, "too old"))]);
    let delivery = sink_to(&server).deliver(entries.batch()).await;
    assert_eq!(delivery, Delivery::Unidentified { refused: 2, answer: "too old".into() });

    // In the second of several.
    let server = OtlpServer::start();
    server.http().fail("/v1/logs", [Fault::None, Fault::Answer(rejected(1, "too old"))]);
    let mut sink = sink_of_small_requests(&server);
    let delivered = deliver_all(&mut sink, &entries).await;
    assert_eq!((delivered.unidentified, &*delivered.refused), (1, &[][..]));
    let stored = assemble(server.events());
    let per_request = entries.len() / server.http().request_count().max(1);
    let missing = entries.len() - stored.contents.len();
    assert!(missing >= per_request && missing < 4, "those of the second request: {missing}");
    assert_eq!(stored.repetitions, 0);
    let sent: usize = server.http().requests().iter().map(|request| records(&request.body)).sum();
    assert_eq!(sent, 9, "each log record is sent once");

    // With a message that is too long to be kept, and one that is too long to be read.
    for (length, is_read) in [(3 << 20, true), (65 << 20, false)] {
        let server = OtlpServer::start();
        let long = rejected(2, &"x".repeat(length));
        server.http().fail("/v1/logs", [Fault::Answer(long)]);
        match sink_to(&server).deliver(entries.batch()).await {
            Delivery::Unidentified { refused: 2, answer } => {
                assert!(is_read && answer.len() == 4096);
            }
            delivery => assert!(!is_read && matches!(delivery, Delivery::Hold { .. })),
        }
    }

    // Without refused log records it is a warning.
    let server = OtlpServer::start();
    server.http().fail("/v1/logs", [Fault::Answer(rejected(0, "a warning"))]);
    assert_eq!(sink_to(&server).deliver(entries.batch()).await, Delivery::Acknowledged);
}

fn records(body: &[u8]) -> usize {
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use prost::Message as _;

    let request = ExportLogsServiceRequest::decode(body).unwrap();
    request.resource_logs.iter().flat_map(|it| &it.scope_logs).map(|it| it.log_records.len()).sum()
}

#[tokio::test]
async fn poisoned_entries_are_found_by_halving() {
    for is_partial in [false, true] {
        let server = OtlpServer::by_rule(move |records| {
            let poisoned = |record| content(record) == br#"{"type":"user","n":37}"#;
            let is_refused = records.iter().any(poisoned);
            // A receiver that refuses every log record may also say so with 200.
            let all = i64::try_from(records.len()).unwrap();
            let reply = if is_partial { rejected(all, "no") } else { Reply::new(400, "no") };
            is_refused.then_some(reply)
        });
        let entries = Entries::small(100);
        let delivered = deliver_all(&mut sink_to(&server), &entries).await;
        assert_eq!((&*delivered.refused, delivered.unidentified), (&[37][..], 0));
        let mut expected = entries.contents();
        expected.remove(&entries.ids()[37]);
        let stored = assemble(server.events());
        assert!(stored.contents == expected);
        assert_eq!(stored.repetitions, 0);
        eprintln!("{} deliveries for 1 poisoned entry of 100", delivered.deliveries);
    }
}

#[tokio::test]
async fn request_too_large_is_sent_in_smaller_ones() {
    let server = OtlpServer::start();
    let too_large = Fault::Answer(Reply::new(413, "length limit exceeded"));
    server.http().fail("/v1/logs", [too_large.clone(), Fault::None, too_large.clone(), too_large]);
    let entries = Entries::of([long_text(3_000_000), long_text(100), long_text(900_000)]);
    let mut sink = sink_to(&server);
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    assert!(assemble(server.events()).contents == entries.contents());
    let requests = server.http().requests();
    assert!(requests[1].body.len() * 2 <= requests[0].body.len() + 1);
    // The smaller size is kept.
    let before = requests.len();
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    let most = server.http().requests()[before..].iter().map(|it| it.body.len()).max().unwrap();
    assert!(most * 4 <= requests[0].body.len() + 4, "{most}");
}

#[tokio::test]
async fn receiver_that_refuses_every_size_refuses_the_entry() {
    let server = OtlpServer::by_rule(|_| Some(Reply::new(413, "")));
    let entries = Entries::of([long_text(1_000_000)]);
    let delivery = sink_to(&server).deliver(entries.batch()).await;
    assert_eq!(delivery, Delivery::Refused { status: 413, answer: String::new() });
    assert!(server.http().request_count() < 12);
}

#[tokio::test]
async fn responses_determine_the_delivery() {
    let server = OtlpServer::start();
    let entries = Entries::small(3);
    let mut sink =
        sink(Settings { timeout: Duration::from_secs(2), ..settings(&server.http().url()) });
    let html = Reply::new(200, "<html>sign in</html>").header("Content-Type", "text/html");
    let json =
        Reply::new(200, r#"{"partialSuccess":null}"#).header("Content-Type", "application/json");
    let status = |status| Fault::Answer(Reply::new(status, "why"));
    for (fault, expected) in [
        (Fault::Answer(json), "Acknowledged"),
        (status(429), "Retry"),
        (status(502), "Retry"),
        (status(504), "Retry"),
        (Fault::Close, "Retry"),
        (Fault::ProcessAndClose, "Retry"),
        (Fault::ProcessAndTruncate, "Retry"),
        (Fault::Hang, "Slow"),
        (status(400), "Refused"),
        (status(401), "Hold"),
        (status(403), "Hold"),
        (status(404), "Hold"),
        (status(405), "Hold"),
        (status(415), "Hold"),
        (status(500), "Hold"),
        (status(302), "Hold"),
        (Fault::Answer(html), "Hold"),
    ] {
        let what = format!("{fault:?}");
        server.http().fail("/v1/logs", [fault]);
        let delivery = sink.deliver(entries.batch()).await;
        assert!(format!("{delivery:?}").starts_with(expected), "{what}: {delivery:?}");
    }
}

#[tokio::test]
async fn faults_lose_nothing_and_repeat_only_unanswered_requests() {
    let server = OtlpServer::start();
    let unanswered = [Fault::ProcessAndClose, Fault::ProcessAndClose, Fault::ProcessAndClose];
    let busy = || Fault::Answer(Reply::new(503, ""));
    let mut faults = Vec::new();
    for fault in unanswered {
        faults.extend([Fault::None, fault, busy(), Fault::Close, Fault::None]);
    }
    let count = faults.iter().filter(|fault| matches!(fault, Fault::ProcessAndClose)).count();
    server.http().fail("/v1/logs", faults);
    let entries = Entries::small(60);
    let mut sink = sink_of_small_requests(&server);
    let delivered = deliver_all(&mut sink, &entries).await;
    assert_eq!((delivered.unidentified, &*delivered.refused), (0, &[][..]));
    let stored = assemble(server.events());
    assert!(stored.contents == entries.contents());
    assert_eq!(server.http().faults_left(), 0);
    eprintln!(
        "{} entries, {} repeated after {count} lost responses",
        entries.len(),
        stored.repetitions
    );
    assert!(stored.repetitions >= count && stored.repetitions <= 3 * count);
}

#[tokio::test]
async fn acknowledgement_means_received() {
    let server = OtlpServer::start();
    let sink = sink(settings(&format!("{}/?key=s3cr3t", server.http().url())));
    assert_eq!(sink.acknowledged(), Acknowledged::Received);
    assert_eq!(sink.destination(), format!("{}/v1/logs", server.http().url()));
}

#[tokio::test]
async fn probe_stores_nothing_and_names_the_remedy() {
    let server = OtlpServer::start();
    let mut sink = sink_to(&server);
    let within = Duration::from_secs(20);
    assert_eq!(sink.probe(within).await, Ok("OTLP receiver".to_owned()));
    assert!(sink.probe_is_proof());
    let server_name = Fault::Answer(Reply::new(200, "").header("Server", "otelcol/1"));
    server.http().fail("/v1/logs", [server_name, Fault::Answer(Reply::new(422, "no records"))]);
    assert_eq!(sink.probe(within).await, Ok("OTLP receiver, otelcol/1".to_owned()));
    assert!(!sink.probe_is_proof(), "any server may respond with status 200 and nothing else");
    assert_eq!(sink.probe(within).await, Ok("OTLP receiver".to_owned()));
    for (status, word) in [(401, "`headers`"), (404, "`endpoint`"), (400, "400"), (503, "503")] {
        server.http().fail("/v1/logs", [Fault::Answer(Reply::new(status, ""))]);
        let error = sink.probe(within).await.unwrap_err();
        assert!(error.contains(word) && !error.contains("k3y"), "{error}");
    }
    server.http().fail("/v1/logs", [Fault::Answer(Reply::new(200, "<html>"))]);
    assert!(sink.probe(within).await.is_err());
    assert_eq!(server.events().len(), 0);
}

#[requires(servers)]
#[tokio::test]
async fn odd_lines_arrive_through_a_collector() {
    let backend = OtlpServer::start();
    let rotel = Rotel::start(&backend.http().url());
    let mut entries = Entries::of(odd_lines());
    entries.record_in_parts(&[b"{\"a\":", b"\xff}"]);
    entries.event("heartbeat", r#"{"n":1}"#);
    let mut sink = sink(settings(&rotel.url()));
    assert!(sink.probe(Duration::from_secs(20)).await.is_ok());
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    wait_for("all log records are forwarded", || {
        assemble(backend.events()).contents.len() == entries.len()
    });
    let stored = assemble(backend.events());
    assert!(stored.contents == entries.contents(), "the bytes differ");
    assert_eq!(stored.repetitions, 0);

    let mut wrong = self::sink(settings(&format!("{}/elsewhere", rotel.url())));
    let delivery = wrong.deliver(entries.batch()).await;
    assert!(matches!(delivery, Delivery::Hold { .. }), "{delivery:?}");
    let error = wrong.probe(Duration::from_secs(20)).await.unwrap_err();
    assert!(error.contains("`endpoint`"), "{error}");

    rotel.stop();

    // It refuses more than 20 MiB.
    let backend = OtlpServer::start();
    let rotel = Rotel::start(&backend.http().url());
    let large = Entries::of((0..24).map(|_| long_text(900_000)));
    let unlimited = Settings { max_request_bytes: 100_000_000, ..settings(&rotel.url()) };
    let mut unlimited = self::sink(Settings { compression: Compression::None, ..unlimited });
    let delivered = deliver_all(&mut unlimited, &large).await;
    assert_eq!(delivered.refused, [0_usize; 0]);
    rotel.stop();
    let contents = assemble(backend.events()).contents;
    assert!(large.contents().into_iter().all(|(id, content)| contents.get(&id) == Some(&content)));
}
