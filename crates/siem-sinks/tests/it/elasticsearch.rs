//! Elasticsearch and OpenSearch: a scripted server, and `osmem-server`.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::Value;
use siem_protocol::delivery::{Delivery, EntryResult, Rest};
use siem_sinks::{
    SiemSink as _,
    compression::Compression,
    elasticsearch::{Authorization, EVENT_BYTES, Elasticsearch, REQUEST_BYTES, Settings, Target},
    event::TimeOf,
    http::ClientSettings,
};
use test_requires::requires;

use crate::support::{
    assembly::{Assembled, ServerEvent, assemble, decode},
    bulk_server::{BulkServer, DATA_STREAM},
    entries::Entries,
    http_server::{Fault, Reply},
    odd_lines::{long_text, odd_lines},
    osmem::Osmem,
};

fn settings(url: &str) -> Settings {
    Settings {
        url: url.parse().unwrap(),
        authorization: Authorization::ApiKey("a2V5".into()),
        target: Target::data_stream(DATA_STREAM).unwrap(),
        pipeline: None,
        time: TimeOf::Record,
        max_event_bytes: EVENT_BYTES,
        max_request_bytes: REQUEST_BYTES,
        compression: Compression::Gzip,
        timeout: Duration::from_secs(30),
    }
}

fn sink(settings: Settings) -> Elasticsearch {
    let connect_timeout = Duration::from_secs(5);
    let client = ClientSettings { connect_timeout, ..ClientSettings::default() }.client().unwrap();
    Elasticsearch::new(client, settings, Arc::new(|| SystemTime::UNIX_EPOCH))
}

/// Returns what the documents of a server contain. Asserts that each has the fields of the sender.
fn assembled(documents: Vec<(String, Value)>) -> Assembled {
    assemble(documents.into_iter().map(|(id, document)| {
        let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        assert!(id.starts_with(&text("event.id")), "{id}");
        assert_eq!(text("host.name"), "laptop-7");
        assert_eq!(text("data_stream.dataset"), "claude_code.session");
        let number = |name: &str| document[name].as_u64().unwrap_or_default();
        let of = text("ai_agent.part.of");
        ServerEvent {
            id: text("event.id"),
            part: (!of.is_empty())
                .then(|| (of, number("ai_agent.part.index"), number("ai_agent.part.total"))),
            hash: text("event.hash"),
            content: decode(&text("event.original"), &text("ai_agent.encoding")),
        }
    }))
}

fn assert_stored(server: &BulkServer, entries: &Entries) {
    let stored = assembled(server.with(|state| state.documents()));
    assert_eq!(stored.repetitions, 0);
    assert!(stored.contents == entries.contents());
}

fn all_kinds() -> Entries {
    let mut entries = Entries::of(odd_lines());
    entries
        .enrich(r#","labels":{"team":"x"},"activity":{"event.action":"prompt","ai_agent.turn":3}"#);
    entries.record(br#"{"timestamp":"2026-11-21T19:00:00Z","type":"user"}"#);
    entries.record_in_parts(&[b"first \xff", b"second"]);
    entries.event("agent_stopped", r#"{"a": 1}"#);
    entries
}

#[tokio::test]
async fn every_kind_of_entry_arrives_byte_for_byte() {
    for compression in [Compression::Gzip, Compression::None] {
        let server = BulkServer::start();
        let mut sink = sink(Settings { compression, ..settings(&server.http.url()) });
        let entries = all_kinds();
        assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
        assert!(sink.bytes_sent() > 0);
        assert_stored(&server, &entries);
        // The same batch again changes nothing.
        assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
        assert_stored(&server, &entries);
    }
}

#[tokio::test]
async fn request_has_credentials_and_pipeline() {
    let server = BulkServer::start();
    let entries = Entries::small(1);
    let basic = Authorization::Basic { user: "u".into(), password: "p".into() };
    for (authorization, expected) in [
        (Authorization::ApiKey("a2V5".into()), "ApiKey a2V5"),
        (basic, "Basic dTpw"),
        (Authorization::None, ""),
    ] {
        let pipeline = Some("my pipeline".to_owned());
        let mut sink = sink(Settings { authorization, pipeline, ..settings(&server.http.url()) });
        assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
        let request = server.http.requests().pop().unwrap();
        assert_eq!(request.header("authorization"), expected);
        assert_eq!(request.header("content-encoding"), "gzip");
        assert!(request.query.contains("pipeline=my+pipeline"), "{}", request.query);
    }
}

#[tokio::test]
async fn document_has_time_and_fields() {
    let server = BulkServer::start();
    let mut entries = Entries::new();
    entries.enrich(r#","labels":{"team":"x"},"activity":{"event.action":"prompt"}"#);
    entries.record(br#"{"timestamp":"2026-11-21T19:00:00Z"}"#);
    for (time, expected) in
        [(TimeOf::Record, "2026-11-21T19:00:00.000Z"), (TimeOf::Read, "2026-11-21T20:00:01.250Z")]
    {
        server.with(|state| state.roll_over());
        let mut sink = sink(Settings { time, ..settings(&server.http.url()) });
        assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
        let (id, document) = server.with(|state| state.documents().pop().unwrap());
        assert_eq!(document["@timestamp"], expected);
        assert_eq!(document["event.created"], "2026-11-21T20:00:01.250Z");
        assert_eq!(document["labels"]["team"], "x");
        assert_eq!(document["event.action"], "prompt");
        let hash = document["event.hash"].as_str().unwrap();
        assert_eq!(id, format!("{}-{}", document["event.id"].as_str().unwrap(), &hash[..16]));
    }
}

#[tokio::test]
async fn busy_documents_alone_are_sent_again() {
    let server = BulkServer::start();
    let busy = |text: &str| (text.to_owned(), 429, "es_rejected_execution_exception".to_owned(), 1);
    server.with(|state| state.errors.extend([busy(r#"\"n\":3}"#), busy(r#"\"n\":7}"#)]));
    let mut sink = sink(settings(&server.http.url()));
    let entries = Entries::small(10);
    let Delivery::PerEntry { entries: results, rest } = sink.deliver(entries.batch()).await else {
        panic!()
    };
    assert!(matches!(rest, Rest::Retry { .. }), "{rest:?}");
    let undecided: Vec<_> = (0..10).filter(|at| results[*at] == EntryResult::Undecided).collect();
    assert_eq!(undecided, [3, 7]);
    let decided: Vec<_> = (0..10).filter(|at| !undecided.contains(at)).collect();
    let left = entries.without(0, &decided);
    assert_eq!(left.len(), 2);
    assert_eq!(sink.deliver(left.batch()).await, Delivery::Acknowledged);
    assert_stored(&server, &entries);
}

#[tokio::test]
async fn refused_document_does_not_stop_the_others() {
    let server = BulkServer::start();
    let poison =
        (r#"\"n\":2}"#.to_owned(), 400, "document_parsing_exception".to_owned(), usize::MAX);
    server.with(|state| state.errors.push(poison));
    let max_request_bytes = 64 << 10;
    let mut sink = sink(Settings { max_request_bytes, ..settings(&server.http.url()) });
    let mut entries = Entries::small(4);
    // A second request follows the one with the refused document.
    entries.record("x".repeat(63_000));
    let Delivery::PerEntry { entries: results, .. } = sink.deliver(entries.batch()).await else {
        panic!()
    };
    let refused =
        EntryResult::Refused { status: 400, answer: "document_parsing_exception: scripted".into() };
    let accepted = EntryResult::Accepted;
    assert_eq!(results, [accepted.clone(), accepted.clone(), refused, accepted.clone(), accepted]);
    assert_eq!(server.http.request_count(), 2);
}

/// A response whose reasons quote megabytes was too long to be read, and held the batch for ever.
#[tokio::test]
async fn reasons_that_quote_megabytes_are_cut() {
    let server = BulkServer::start();
    let poison = ("xx".to_owned(), 400, "document_parsing_exception".to_owned(), usize::MAX);
    server.with(|state| {
        state.quotations = 4;
        state.errors.push(poison);
    });
    let mut sink = sink(settings(&server.http.url()));
    let mut entries = Entries::small(2);
    entries.record(format!("{{\"s3cr3t\":\"{}\"}}", "\u{0}x\u{20ac}xx".repeat(200_000)));
    entries.record(b"{}");
    let Delivery::PerEntry { entries: results, .. } = sink.deliver(entries.batch()).await else {
        panic!()
    };
    let answer = "document_parsing_exception: scripted".to_owned();
    let accepted = EntryResult::Accepted;
    let refused = EntryResult::Refused { status: 400, answer };
    assert_eq!(results, [accepted.clone(), accepted.clone(), refused, accepted]);
    assert_eq!(server.http.request_count(), 1);
}

#[tokio::test]
async fn document_in_the_failure_store_is_reported() {
    let server = BulkServer::start();
    server.with(|state| {
        state.has_failure_store = true;
        let kind = "document_parsing_exception".to_owned();
        state.errors.push((r#"\"n\":1}"#.to_owned(), 400, kind, 1));
    });
    let mut sink = sink(settings(&server.http.url()));
    let Delivery::PerEntry { entries, .. } = sink.deliver(Entries::small(2).batch()).await else {
        panic!()
    };
    assert_eq!(entries[0], EntryResult::Accepted);
    assert!(
        matches!(&entries[1], EntryResult::Misfiled { answer } if answer.contains("failure store"))
    );
    assert_eq!(server.with(|state| state.failed.len()), 1);
}

#[tokio::test]
async fn lost_response_repeats_no_document() {
    let server = BulkServer::start();
    let path = "_bulk";
    let busy = Fault::Answer(Reply::new(503, "").header("Retry-After", "7"));
    server.http.fail(path, [Fault::ProcessAndClose, Fault::ProcessAndTruncate, Fault::Close, busy]);
    let mut sink = sink(settings(&server.http.url()));
    let entries = Entries::small(50);
    for _ in 0..3 {
        let delivery = sink.deliver(entries.batch()).await;
        assert!(matches!(delivery, Delivery::Retry { after: None, .. }), "{delivery:?}");
    }
    let delivery = sink.deliver(entries.batch()).await;
    let seven = Some(Duration::from_secs(7));
    assert!(matches!(delivery, Delivery::Retry { after, .. } if after == seven), "{delivery:?}");
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    assert_stored(&server, &entries);
}

#[tokio::test]
async fn response_after_the_timeout_is_slow() {
    let server = BulkServer::start();
    server.http.fail("_bulk", [Fault::ProcessAndHang]);
    let timeout = Duration::from_millis(300);
    let mut sink = sink(Settings { timeout, ..settings(&server.http.url()) });
    let entries = Entries::small(3);
    let delivery = sink.deliver(entries.batch()).await;
    assert!(matches!(delivery, Delivery::Slow { waited, .. } if waited == timeout), "{delivery:?}");
    assert_eq!(
        sink.deliver(entries.batch_within(Duration::from_secs(30))).await,
        Delivery::Acknowledged
    );
    assert_stored(&server, &entries);
}

/// The id is unique in one backing index only. What was stored just before a rollover, and whose
/// response was lost, is stored again: at most the entries of one batch.
#[tokio::test]
async fn rollover_repeats_at_most_the_batch_in_flight() {
    let server = BulkServer::start();
    let mut sink = sink(settings(&server.http.url()));
    let before = Entries::small(20);
    assert_eq!(sink.deliver(before.batch()).await, Delivery::Acknowledged);
    let mut in_flight = Entries::small(20);
    for number in 0..5 {
        in_flight.record(format!("{{\"after\":{number}}}"));
    }
    let in_flight = in_flight.without(20, &[]);
    server.http.fail("_bulk", [Fault::ProcessAndClose]);
    assert!(matches!(sink.deliver(in_flight.batch()).await, Delivery::Retry { .. }));
    server.with(|state| state.roll_over());
    assert_eq!(sink.deliver(in_flight.batch()).await, Delivery::Acknowledged);
    let stored = assembled(server.with(|state| state.documents()));
    assert_eq!((stored.repetitions, stored.contents.len()), (5, 25));
}

#[tokio::test]
async fn too_large_request_is_sent_in_smaller_ones() {
    let server = BulkServer::start();
    server.with(|state| state.max_body = 200_000);
    let mut sink = sink(settings(&server.http.url()));
    let mut entries = Entries::small(300);
    entries.record(long_text(500_000));
    entries.record(b"\xff".repeat(400_000));
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    assert_stored(&server, &entries);
    // The lower limit is kept.
    let count = server.http.request_count();
    let more = Entries::of([long_text(150_000)]);
    server.with(|state| state.roll_over());
    assert_eq!(sink.deliver(more.batch()).await, Delivery::Acknowledged);
    assert_eq!(
        server.http.requests()[count..].iter().filter(|it| it.body.len() > 200_000).count(),
        0
    );
}

#[tokio::test]
async fn event_stays_below_its_limit() {
    let server = BulkServer::start();
    let max_event_bytes = 20_000;
    let mut sink = sink(Settings { max_event_bytes, ..settings(&server.http.url()) });
    let mut entries =
        Entries::of([long_text(90_000).into_bytes(), b"\0".repeat(9_000), b"\xfe".repeat(30_000)]);
    entries.record_in_parts(&[&b"y".repeat(50_000), b"\xff"]);
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    assert_stored(&server, &entries);
    for request in server.http.requests() {
        let lines: Vec<_> = request.body.split(|byte| *byte == b'\n').collect();
        let largest =
            lines.chunks(2).map(|pair| pair.iter().map(|line| line.len() + 1).sum::<usize>()).max();
        assert!(largest.unwrap() <= max_event_bytes, "{largest:?}");
    }
}

#[tokio::test]
async fn refused_credentials_hold_the_batch() {
    let server = BulkServer::start();
    let mut sink = sink(settings(&server.http.url()));
    for status in [401, 403, 404] {
        server.http.fail("_bulk", [Fault::Answer(Reply::new(status, "{}"))]);
        let delivery = sink.deliver(Entries::small(1).batch()).await;
        assert!(matches!(delivery, Delivery::Hold { .. }), "{status}: {delivery:?}");
    }
}

#[tokio::test]
async fn damaged_entry_holds_the_batch() {
    let mut sink = sink(settings("http://127.0.0.1:1"));
    let entries = Entries::small(1);
    let batch = siem_sinks::Batch { lines: b"{\"seq\":1}\n", ..entries.batch() };
    assert!(matches!(sink.deliver(batch).await, Delivery::Hold { .. }));
}

#[tokio::test]
async fn probe_proves_the_right_to_create() {
    let server = BulkServer::start();
    let mut sink = sink(settings(&server.http.url()));
    let within = Duration::from_secs(10);
    let found = sink.probe(within).await.unwrap();
    assert_eq!(found, format!("Elasticsearch 9.1.0, may create documents in `{DATA_STREAM}`"));
    let none = Reply::new(200, r#"{"has_all_requested":false}"#);
    server.http.fail("_has_privileges", [Fault::Answer(none)]);
    assert!(sink.probe(within).await.unwrap_err().contains("create_doc"));
    server.http.fail("/", [Fault::Answer(Reply::new(401, "{}"))]);
    assert!(sink.probe(within).await.unwrap_err().contains("check the credentials"));
    // A key that may only create documents cannot read the version.
    server.http.fail("/", [Fault::Answer(Reply::new(403, "{}"))]);
    assert!(sink.probe(within).await.unwrap().contains("may create documents"));
    assert!(sink.probe_is_proof());
    assert_eq!(server.with(|state| state.documents().len()), 0);
}

#[requires(servers)]
#[tokio::test]
async fn opensearch_stores_every_kind_of_entry() {
    let server = Osmem::start();
    let mut sink = sink(Settings { authorization: Authorization::None, ..settings(&server.url()) });
    assert!(sink.probe(Duration::from_secs(10)).await.unwrap().starts_with("OpenSearch 3."));
    let entries = all_kinds();
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    let stored = assembled(server.documents(DATA_STREAM));
    assert_eq!(stored.repetitions, 0);
    assert!(stored.contents == entries.contents());
}

/// The mapping makes one document invalid, as a template of the operator may.
#[requires(servers)]
#[tokio::test]
async fn opensearch_refuses_one_document_alone() {
    let server = Osmem::start();
    let mapping =
        r#"{"mappings":{"properties":{"labels":{"properties":{"number":{"type":"long"}}}}}}"#;
    server.call("PUT", "/claude", mapping);
    let target = Target::index("claude").unwrap();
    let authorization = Authorization::None;
    let mut sink = sink(Settings { authorization, target, ..settings(&server.url()) });
    let mut entries = Entries::small(3);
    entries.enrich(r#","labels":{"number":"s3cr3t"}"#);
    entries.record(b"{}");
    let Delivery::PerEntry { entries: results, .. } = sink.deliver(entries.batch()).await else {
        panic!()
    };
    assert!(results[..3].iter().all(|result| *result == EntryResult::Accepted));
    let EntryResult::Refused { status: 400, answer } = &results[3] else { panic!("{results:?}") };
    assert!(answer.contains("labels.number") && !answer.contains("s3cr3t"), "{answer}");
    let ids: BTreeMap<_, _> = server.documents("claude").into_iter().collect();
    assert_eq!(ids.len(), 3);
}
