//! The sink `http` against a server that stores the objects of its requests.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use reqwest::{
    Method,
    header::{HeaderMap, HeaderValue},
};
use serde_json::Value;
use siem_protocol::delivery::{Acknowledged, Delivery, EntryResult, Rest};
use siem_sinks::{
    SiemSink as _,
    clock::Clock,
    compression::Compression,
    event::TimeOf,
    http::ClientSettings,
    json_http::{Format, JsonHttp, Settings},
};

use crate::support::{
    assembly::{Assembled, ServerEvent, assemble, decode},
    entries::Entries,
    http_server::{Fault, HttpServer, Reply, Request},
    odd_lines::{long_text, odd_lines},
};

struct TestClock;

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH
    }

    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

/// A server with the objects that it has stored.
struct Receiver {
    http: HttpServer,
    stored: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    /// Starts a server that refuses requests over a size, and those that contain a text.
    fn start(max_bytes: usize, poison: &'static str) -> Self {
        let stored = Arc::new(Mutex::new(Vec::new()));
        let storing = Arc::clone(&stored);
        let http = HttpServer::start(move |request| {
            if request.method == "HEAD" {
                return Reply::new(405, "");
            }
            if request.body.len() > max_bytes {
                return Reply::new(413, "too large");
            }
            let mut objects = objects(request);
            let text = |object: &Value| object["event.original"].as_str().unwrap().to_owned();
            if !poison.is_empty() && objects.iter().any(|object| text(object).contains(poison)) {
                return Reply::new(400, "invalid event");
            }
            storing.lock().unwrap().append(&mut objects);
            Reply::new(202, "")
        });
        Self { http, stored }
    }

    fn settings(&self) -> Settings {
        Settings {
            url: format!("{}/receiver/s3cr3t?sig=s3cr3t", self.http.url()).parse().unwrap(),
            method: Method::POST,
            headers: HeaderMap::new(),
            success: vec![200..=299],
            format: Format::Ndjson,
            time: TimeOf::Record,
            max_event_bytes: 900_000,
            max_request_bytes: 4_000_000,
            max_events: 1000,
            compression: Compression::Gzip,
            timeout: Duration::from_secs(20),
        }
    }

    #[track_caller]
    fn assembled(&self) -> Assembled {
        let text =
            |object: &Value, name: &str| object[name].as_str().unwrap_or_default().to_owned();
        assemble(self.stored.lock().unwrap().iter().map(|object| {
            let part = object["ai_agent.part.index"].as_u64().map(|index| {
                let total = object["ai_agent.part.total"].as_u64().unwrap();
                (text(object, "ai_agent.part.of"), index, total)
            });
            let content = text(object, "event.original");
            ServerEvent {
                id: text(object, "event.id"),
                part,
                hash: text(object, "event.hash"),
                content: decode(&content, &text(object, "ai_agent.encoding")),
            }
        }))
    }
}

/// Returns the objects of a request, whose format is that of its content type.
fn objects(request: &Request) -> Vec<Value> {
    match request.header("content-type") {
        "application/json" => serde_json::from_slice(&request.body).unwrap(),
        "application/x-ndjson" => {
            assert!(request.body.ends_with(b"\n"));
            let lines = request.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
        }
        other => panic!("{other}"),
    }
}

fn sink(settings: Settings) -> JsonHttp {
    let client = ClientSettings { connect_timeout: Duration::from_secs(5), ..Default::default() };
    JsonHttp::new(client.client().unwrap(), Arc::new(TestClock), settings)
}

#[tokio::test]
async fn odd_lines_arrive_with_their_bytes_in_each_format() {
    for format in [Format::Ndjson, Format::Array] {
        for compression in [Compression::Gzip, Compression::None] {
            let receiver = Receiver::start(usize::MAX, "");
            let mut entries = Entries::of(odd_lines());
            entries.record_in_parts(&[b"{\"a\":", b"\xff}"]);
            entries.event("heartbeat", r#"{"n":1}"#);
            let mut sink = sink(Settings { format, compression, ..receiver.settings() });
            assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
            let stored = receiver.assembled();
            assert_eq!(stored.contents.len(), entries.len());
            assert!(stored.contents == entries.contents(), "the bytes differ");
            assert_eq!((stored.repetitions, stored.incomplete.len()), (0, 0));
        }
    }
}

#[tokio::test]
async fn event_has_the_names_of_ecs() {
    let receiver = Receiver::start(usize::MAX, "");
    let mut entries = Entries::new();
    entries.enrich(r#","activity":{"process.args":["a","\ud800"]},"labels":{"team":"a"}"#);
    entries.record(r#"{"timestamp":"2026-11-20T10:00:00.123Z"}"#);
    let mut headers = HeaderMap::new();
    headers.insert("x-key", HeaderValue::from_static("k"));
    headers.insert("content-type", HeaderValue::from_static("application/x-ndjson"));
    let method = Method::PUT;
    let mut sink = sink(Settings { headers, method, ..receiver.settings() });
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    let request = &receiver.http.requests()[0];
    assert_eq!((&*request.method, request.header("x-key")), ("PUT", "k"));
    assert_eq!((&*request.path, &*request.query), ("/receiver/s3cr3t", "sig=s3cr3t"));
    let event = &receiver.stored.lock().unwrap()[0];
    assert_eq!(event["@timestamp"], "2026-11-20T10:00:00.123Z");
    assert_eq!(event["event.sequence"], 1);
    assert_eq!(event["labels"]["team"], "a");
    assert_eq!(event["process.args"], r#"["a","\ud800"]"#);
}

#[tokio::test]
async fn limits_of_events_and_requests_hold() {
    let receiver = Receiver::start(usize::MAX, "");
    let mut entries = Entries::small(25);
    entries.record(long_text(300_000));
    let settings = receiver.settings();
    let mut sink = sink(Settings {
        max_event_bytes: 50_000,
        max_request_bytes: 100_000,
        max_events: 10,
        ..settings
    });
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    assert!(receiver.assembled().contents == entries.contents());
    for request in receiver.http.requests() {
        let objects = objects(&request);
        assert!(request.body.len() <= 100_000 && objects.len() <= 10);
        assert!(objects.iter().all(|object| object.to_string().len() <= 50_000));
    }
}

#[tokio::test]
async fn too_large_requests_become_smaller_without_repetitions() {
    let receiver = Receiver::start(150_000, "");
    let mut entries = Entries::small(10);
    for _ in 0..30 {
        entries.record(long_text(40_000));
    }
    entries.record(long_text(800_000));
    let mut sink = sink(receiver.settings());
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    let stored = receiver.assembled();
    assert!(stored.contents == entries.contents());
    assert_eq!(stored.repetitions, 0);
}

#[tokio::test]
async fn request_at_the_smallest_limit_is_refused() {
    let receiver = Receiver::start(10, "");
    let delivery = sink(receiver.settings()).deliver(Entries::small(100).batch()).await;
    assert!(matches!(delivery, Delivery::Refused { status: 413, .. }), "{delivery:?}");
}

#[tokio::test]
async fn refused_request_keeps_what_was_accepted_before() {
    let receiver = Receiver::start(usize::MAX, r#""n":15}"#);
    let mut sink = sink(Settings { max_events: 10, ..receiver.settings() });
    let entries = Entries::small(20);
    let Delivery::PerEntry { entries: results, rest } = sink.deliver(entries.batch()).await else {
        panic!()
    };
    assert!(results[..10].iter().all(|result| *result == EntryResult::Accepted));
    assert!(results[10..].iter().all(|result| *result == EntryResult::Undecided));
    assert_eq!(rest, Rest::Refused { status: 400, answer: "invalid event".into() });
}

#[tokio::test]
async fn faults_lose_nothing_and_repeat_at_most_one_request() {
    let receiver = Receiver::start(usize::MAX, "");
    receiver.http.fail(
        "",
        [
            Fault::Close,
            Fault::Answer(Reply::new(503, "busy")),
            Fault::Answer(Reply::new(429, "").header("Retry-After", "7")),
            Fault::ProcessAndClose,
            Fault::ProcessAndTruncate,
            Fault::Hang,
            Fault::ProcessAndHang,
        ],
    );
    let timeout = Duration::from_millis(300);
    let mut sink = sink(Settings { timeout, ..receiver.settings() });
    let entries = Entries::small(30);
    let mut failures = Vec::new();
    loop {
        match sink.deliver(entries.batch()).await {
            Delivery::Acknowledged => break,
            Delivery::Retry { after, .. } => failures.push(after.map(|after| after.as_secs())),
            Delivery::Slow { waited, .. } => failures.push(Some(waited.as_secs())),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(failures, [None, None, Some(7), None, None, Some(0), Some(0)]);
    let stored = receiver.assembled();
    assert!(stored.contents == entries.contents());
    // Three requests were stored without a complete response.
    assert_eq!(stored.repetitions, 3 * 30);
    assert_eq!(sink.acknowledged(), Acknowledged::Received);
}

#[tokio::test]
async fn secrets_are_in_no_text() {
    let receiver = Receiver::start(usize::MAX, "");
    let mut secret = HeaderValue::from_static("s3cr3t");
    secret.set_sensitive(true);
    let mut headers = HeaderMap::new();
    headers.insert("authorization", secret);
    let settings = Settings { headers, ..receiver.settings() };
    assert!(!format!("{:?}", settings.headers).contains("s3cr3t"));
    let mut sink = sink(settings);
    assert_eq!(sink.destination(), receiver.http.url());
    let within = Duration::from_secs(5);
    let found = sink.probe(within).await.unwrap();
    assert!(found.contains("response 405") && !found.contains("s3cr3t"), "{found}");
    assert!(!sink.probe_is_proof());
    receiver.http.fail("", [Fault::Answer(Reply::new(403, "no"))]);
    let problem = sink.probe(within).await.unwrap_err();
    assert!(problem.contains("403") && problem.contains("`headers_file`"), "{problem}");
    assert!(receiver.stored.lock().unwrap().is_empty());
    drop(receiver);
    let problem = sink.probe(within).await.unwrap_err();
    assert!(!problem.contains("s3cr3t"), "{problem}");
    let delivery = sink.deliver(Entries::small(1).batch()).await;
    assert!(!format!("{delivery:?}").contains("s3cr3t"), "{delivery:?}");
}

#[tokio::test]
async fn error_page_with_the_url_shows_no_secret() {
    let receiver = Receiver::start(usize::MAX, "");
    let page = "The requested URL /receiver/s3cr3t?sig=s3cr3t was not found; key k3y-0f-th3-fl33t";
    receiver.http.fail("/s3cr3t", [404, 400].map(|it| Fault::Answer(Reply::new(it, page))));
    let mut settings = receiver.settings();
    settings.headers.insert("api-key", HeaderValue::from_static("k3y-0f-th3-fl33t"));
    let mut sink = sink(settings);
    for _ in 0..2 {
        let delivery = format!("{:?}", sink.deliver(Entries::small(1).batch()).await);
        assert!(delivery.contains("requested URL"), "{delivery}");
        assert!(!delivery.contains("s3cr3t") && !delivery.contains("k3y-"), "{delivery}");
    }
}

/// The status acknowledges: the same events must not be sent again because the rest did not arrive.
#[tokio::test]
async fn status_counts_if_the_body_is_cut() {
    let stored = Arc::new(Mutex::new(0));
    let count = Arc::clone(&stored);
    let http = HttpServer::start(move |_| {
        *count.lock().unwrap() += 1;
        Reply::new(202, "stored")
    });
    http.fail("/events", [Fault::ProcessAndTruncate]);
    let receiver = Receiver::start(usize::MAX, "");
    let url = format!("{}/events", http.url()).parse().unwrap();
    let mut sink = sink(Settings { url, ..receiver.settings() });
    assert_eq!(sink.deliver(Entries::small(3).batch()).await, Delivery::Acknowledged);
    assert_eq!(*stored.lock().unwrap(), 1);
}
