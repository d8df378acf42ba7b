//! The sink `splunk-hec` against a collector that behaves as Splunk was seen to behave.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use siem_protocol::delivery::{Acknowledged, Delivery, EntryResult, Rest};
use siem_sinks::{
    SiemSink as _,
    clock::Clock,
    compression::Compression,
    event::TimeOf,
    http::ClientSettings,
    splunk_hec::{Dialect, Indexed, Settings, SplunkHec},
};

use crate::support::{
    assembly::{Assembled, ServerEvent, assemble, decode},
    entries::Entries,
    hec_server::{Collector, HEC_TOKEN, HecServer},
    http_server::{Fault, Reply},
    odd_lines::{long_text, odd_lines},
};

/// Channel of each sink at its start; the next ones count from there.
const CHANNEL: &str = "0aeeac95-ac74-4aa9-b30d-6c4c0ac58100";

/// Waits only as long as the test needs, and counts the time.
#[derive(Default)]
struct TestClock {
    slept: Mutex<Duration>,
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        *self.slept.lock().unwrap() += duration;
        Box::pin(std::future::ready(()))
    }
}

fn settings(server: &HecServer) -> Settings {
    let is_logscale = server.collector().is_logscale;
    Settings {
        url: server.http().url().parse().unwrap(),
        token: HEC_TOKEN.to_owned(),
        dialect: if is_logscale { Dialect::LogScale } else { Dialect::Splunk },
        index: None,
        sourcetype: None,
        time: TimeOf::Record,
        max_event_bytes: 900_000,
        max_request_bytes: 900_000,
        compression: Compression::Gzip,
        indexed: None,
        timeout: Duration::from_secs(20),
    }
}

fn indexed(server: &HecServer) -> Settings {
    let next = AtomicU8::new(0);
    let new_channel = move || format!("{}{:02}", &CHANNEL[..34], next.fetch_add(1, Relaxed));
    let indexed = Indexed { new_channel: Arc::new(new_channel), within: Duration::from_secs(60) };
    Settings { indexed: Some(indexed), ..settings(server) }
}

fn sink(settings: Settings) -> SplunkHec {
    let client = ClientSettings { connect_timeout: Duration::from_secs(5), ..Default::default() };
    SplunkHec::new(client.client().unwrap(), Arc::new(TestClock::default()), settings)
}

/// Reads back what the server has stored.
#[track_caller]
fn stored(server: &HecServer) -> Assembled {
    let collector = server.collector();
    let text = |object: &Value, name: &str| object[name].as_str().unwrap_or_default().to_owned();
    assemble(collector.stored.iter().map(|object| {
        let fields = &object["fields"];
        let number = |name: &str| fields[name].as_u64();
        let part = number("ai_agent.part.index").map(|index| {
            let total = number("ai_agent.part.total").unwrap();
            (text(fields, "ai_agent.part.of"), index, total)
        });
        ServerEvent {
            id: text(fields, "event.id"),
            part,
            hash: text(fields, "event.hash"),
            content: decode(&text(object, "event"), &text(fields, "ai_agent.encoding")),
        }
    }))
}

/// Delivers entries as the agent does, with its policy in short: what is decided is not sent again.
/// Returns the number of deliveries and the indexes of refused entries.
async fn deliver_all(sink: &mut SplunkHec, entries: &Entries) -> (usize, Vec<usize>) {
    let (mut refused, mut accepted) = (Vec::new(), 0);
    for deliveries in 1..50 {
        let rest = entries.without(accepted, &refused);
        match sink.deliver(rest.batch()).await {
            Delivery::Acknowledged => return (deliveries, refused),
            Delivery::PerEntry { entries: results, .. } => {
                let indexes = (accepted..entries.len()).filter(|index| !refused.contains(index));
                let indexes: Vec<usize> = indexes.collect();
                for (index, result) in indexes.into_iter().zip(results) {
                    match result {
                        EntryResult::Accepted if index == accepted => accepted += 1,
                        EntryResult::Refused { .. } => {
                            refused.push(index);
                            accepted += usize::from(index == accepted);
                        }
                        EntryResult::Undecided => break,
                        other => panic!("{index}: {other:?}"),
                    }
                }
            }
            Delivery::Retry { .. } | Delivery::Slow { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("no end");
}

#[tokio::test]
async fn odd_lines_arrive_with_their_bytes() {
    for is_logscale in [false, true] {
        for compression in [Compression::Gzip, Compression::None] {
            let server = HecServer::start(Collector { is_logscale, ..Collector::default() });
            let mut entries = Entries::of(odd_lines());
            entries.record_in_parts(&[b"{\"a\":", b"\xff}"]);
            entries.event("heartbeat", r#"{"n":1}"#);
            let mut sink = sink(Settings { compression, ..settings(&server) });
            assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
            let stored = stored(&server);
            assert_eq!(stored.contents.len(), entries.len());
            assert!(stored.contents == entries.contents(), "the bytes differ");
            assert_eq!((stored.repetitions, stored.incomplete.len()), (0, 0));
            let requests = server.http().requests();
            assert!(requests.iter().all(|request| request.body.len() <= 900_000));
            let sent: u64 = requests.iter().map(|request| request.raw_body.len() as u64).sum();
            assert_eq!(sink.bytes_sent(), sent);
            let is_gzip = requests[0].header("content-encoding") == "gzip";
            assert_eq!(is_gzip, compression == Compression::Gzip);
        }
    }
}

#[tokio::test]
async fn envelope_and_fields_describe_the_record() {
    let server = HecServer::start(Collector::default());
    let mut entries = Entries::new();
    entries.enrich(
        r#","host":{"machine_id":"m"},"activity":{"gen_ai.tool.name":"Bash","process.args":["a","b"]}"#,
    );
    entries.record(r#"{"type":"user","timestamp":"2026-11-20T10:00:00.123Z"}"#);
    entries.record(r#"{"type":"user"}"#);
    entries.event("heartbeat", "{}");
    let index = Some("claude".to_owned());
    let mut sink = sink(Settings { index, ..settings(&server) });
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    let stored = server.collector().stored.clone();
    let envelope = |object: &Value| {
        let of = |name: &str| object[name].as_str().unwrap().to_owned();
        (object["time"].to_string(), of("source"), of("sourcetype"), of("host"), of("index"))
    };
    let (path, host) = (crate::support::entries::PATH, "laptop-7".to_owned());
    let index = "claude".to_owned();
    let record = ("1795168800.123".to_owned(), path.to_owned(), "claude_code:session".to_owned());
    let expected = (record.0, record.1, record.2, host.clone(), index.clone());
    assert_eq!(envelope(&stored[0]), expected);
    assert_eq!(stored[1]["time"].to_string(), "1795291201.25");
    assert_eq!(stored[2]["sourcetype"], "ai_agent:event");
    let fields = &stored[0]["fields"];
    assert_eq!(fields["gen_ai.tool.name"], "Bash");
    assert_eq!(fields["process.args"], serde_json::json!(["a", "b"]));
    assert_eq!(fields["event.sequence"], 1);
    assert_eq!(fields["user.name"], "ada");
}

#[tokio::test]
async fn large_entry_is_sent_in_parts_with_all_fields() {
    let server = HecServer::start(Collector::default());
    let limit = 20_000;
    let mut entries = Entries::new();
    let huge = format!(r#","activity":{{"process.command_line":"{}"}}"#, "x".repeat(30_000));
    entries.enrich(&huge);
    entries.record(long_text(100_000));
    entries.record(" ".repeat(100_000));
    entries.record("\t\0".repeat(10_000));
    entries.record(b"\xff".repeat(100_000));
    let mut sink = sink(Settings { max_event_bytes: limit, ..settings(&server) });
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    let found = stored(&server);
    assert!(found.contents == entries.contents());
    let collector = server.collector();
    assert!(collector.stored.len() > 15, "{}", collector.stored.len());
    for object in &collector.stored {
        assert!(object.to_string().len() <= limit, "{}", object.to_string().len());
        assert_eq!(object["fields"]["ai_agent.omitted_fields"], "process.command_line");
    }
}

#[tokio::test]
async fn poisoned_entry_is_refused_and_no_other_sent_twice() {
    for code in [6, 12, 13, 15] {
        let poison = Some((r#""n":7}"#.to_owned(), code));
        let server = HecServer::start(Collector { poison, ..Collector::default() });
        let entries = Entries::small(20);
        let mut sink = sink(settings(&server));
        let delivery = sink.deliver(entries.batch()).await;
        let Delivery::PerEntry { entries: results, rest } = delivery else { panic!() };
        assert_eq!(rest, Rest::Unprocessed);
        assert!(matches!(&results[7], EntryResult::Refused { status: 400, answer }
            if answer.contains(&format!("code {code}"))));
        assert!(results[..7].iter().all(|result| *result == EntryResult::Accepted));
        assert!(results[8..].iter().all(|result| *result == EntryResult::Undecided));
        let rest = entries.without(8, &[]);
        assert_eq!(sink.deliver(rest.batch()).await, Delivery::Acknowledged);
        let stored = stored(&server);
        assert_eq!((stored.contents.len(), stored.repetitions), (19, 0));
    }
}

#[tokio::test]
async fn busy_receiver_keeps_what_it_has() {
    let server = HecServer::start(Collector { busy_after: Some(5), ..Collector::default() });
    let entries = Entries::small(20);
    let mut sink = sink(settings(&server));
    let Delivery::PerEntry { entries: results, rest } = sink.deliver(entries.batch()).await else {
        panic!()
    };
    assert_eq!(results.iter().filter(|result| **result == EntryResult::Accepted).count(), 5);
    assert!(matches!(rest, Rest::Retry { .. }));
    assert_eq!(sink.deliver(entries.without(5, &[]).batch()).await, Delivery::Acknowledged);
    let stored = stored(&server);
    assert_eq!((stored.contents.len(), stored.repetitions), (20, 0));
}

#[tokio::test]
async fn wrong_index_is_held_without_refusing_an_entry() {
    let indexes = vec!["main".to_owned()];
    let server = HecServer::start(Collector { indexes, ..Collector::default() });
    let mut sink = sink(Settings { index: Some("other".into()), ..settings(&server) });
    for _ in 0..2 {
        let delivery = sink.deliver(Entries::small(3).batch()).await;
        let Delivery::Hold { reason, .. } = delivery else { panic!("{delivery:?}") };
        assert!(reason.contains("code 7") && reason.contains("`index`"), "{reason}");
    }
    assert!(server.collector().stored.is_empty());
}

#[tokio::test]
async fn too_large_requests_become_smaller_without_repetitions() {
    for cloud in [false, true] {
        let limit = Some(if cloud { 1_200_000 } else { 300_000 });
        let server = HecServer::start(Collector {
            max_request_bytes: limit.filter(|_| !cloud),
            cloud_max_request_bytes: limit.filter(|_| cloud),
            ..Collector::default()
        });
        let mut entries = Entries::small(10);
        entries.record(long_text(2_500_000));
        for _ in 0..60 {
            entries.record(long_text(40_000));
        }
        let max = 5_000_000;
        let mut sink = sink(Settings {
            max_event_bytes: 900_000,
            max_request_bytes: max,
            ..settings(&server)
        });
        assert_eq!(deliver_all(&mut sink, &entries).await, (1, vec![]));
        let stored = stored(&server);
        assert!(stored.contents == entries.contents(), "cloud {cloud}");
        assert_eq!(stored.repetitions, 0);
    }
}

#[tokio::test]
async fn request_at_the_smallest_limit_is_refused() {
    let server =
        HecServer::start(Collector { max_request_bytes: Some(1000), ..Collector::default() });
    let mut sink = sink(settings(&server));
    let delivery = sink.deliver(Entries::small(100).batch()).await;
    assert!(matches!(delivery, Delivery::Refused { status: 413, .. }), "{delivery:?}");
}

#[tokio::test]
async fn faults_lose_nothing_and_repeat_at_most_one_request() {
    let server = HecServer::start(Collector::default());
    let busy = Reply::new(503, r#"{"text":"Server is busy","code":9}"#);
    server.http().fail(
        "/event",
        [
            Fault::Close,
            Fault::Answer(busy),
            Fault::Answer(Reply::new(429, "slow down").header("Retry-After", "7")),
            Fault::ProcessAndClose,
            Fault::ProcessAndTruncate,
            Fault::Hang,
            Fault::ProcessAndHang,
            Fault::Answer(Reply::new(500, "<html>")),
        ],
    );
    let entries = Entries::small(30);
    let timeout = Duration::from_millis(300);
    let mut sink = sink(Settings { timeout, ..settings(&server) });
    let (deliveries, refused) = deliver_all(&mut sink, &entries).await;
    assert_eq!((deliveries, refused.len()), (9, 0));
    let stored = stored(&server);
    assert!(stored.contents == entries.contents());
    // Three requests were stored without a complete response: HEC has no ids to tell.
    assert_eq!(stored.repetitions, 3 * 30);
    assert_eq!(sink.acknowledged(), Acknowledged::Received);
}

#[tokio::test]
async fn retry_after_of_the_receiver_is_used() {
    let server = HecServer::start(Collector::default());
    let busy = Reply::new(429, "").header("Retry-After", "7");
    server.http().fail("/event", [Fault::Answer(busy)]);
    let delivery = sink(settings(&server)).deliver(Entries::small(1).batch()).await;
    let Delivery::Retry { after, .. } = delivery else { panic!() };
    assert_eq!(after, Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn indexed_entries_are_acknowledged_once_the_receiver_says_so() {
    let server = HecServer::start(Collector {
        uses_ack: true,
        polls_until_indexed: Some(2),
        ..Collector::default()
    });
    let entries = Entries::small(3000);
    let max_request_bytes = 64 << 10;
    let mut sink = sink(Settings { max_request_bytes, ..indexed(&server) });
    assert_eq!(sink.acknowledged(), Acknowledged::Indexed);
    for _ in 0..2 {
        assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    }
    let polled = server.collector().polled.clone();
    // The check of the token, then all ids of a batch at once until they are indexed.
    assert_eq!(polled.len(), 7);
    assert!(polled[1].len() > 1 && polled[1] == polled[2] && polled[2] == polled[3]);
    assert!(polled[4][0] == polled[3].len() as u64, "ids continue in the channel");
    let polls = server.http().requests();
    let polls: Vec<_> = polls.iter().filter(|request| request.path.ends_with("/ack")).collect();
    assert!(polls.iter().all(|poll| poll.header("x-splunk-request-channel") == CHANNEL));
    assert!(polls[1..].iter().all(|poll| poll.header("cookie") == "indexer=a1"));
}

#[tokio::test]
async fn entries_without_acknowledgement_are_sent_again() {
    let mut server = HecServer::start(Collector {
        uses_ack: true,
        polls_until_indexed: None,
        ..Collector::default()
    });
    let entries = Entries::small(3);
    let mut sink = sink(indexed(&server));
    let delivery = sink.deliver(entries.batch()).await;
    let Delivery::Retry { reason, .. } = delivery else { panic!("{delivery:?}") };
    assert!(reason.contains("60 s"), "{reason}");
    server.restart(|| ());
    server.collector().polls_until_indexed = Some(0);
    // The first request may use a connection that was closed by the restart.
    assert!(deliver_all(&mut sink, &entries).await.1.is_empty());
    assert_eq!(stored(&server).repetitions, 3);
}

/// Returns the channel of each request to an endpoint.
fn channels(server: &HecServer, endpoint: &str) -> Vec<String> {
    let requests = server.http().requests();
    let requests = requests.iter().filter(|request| request.path.ends_with(endpoint));
    requests.map(|request| request.header("x-splunk-request-channel").to_owned()).collect()
}

/// An id that was never confirmed once confirmed a later request with the same id, which another
/// indexer had received and not indexed.
#[tokio::test]
async fn id_of_an_earlier_request_confirms_no_later_one() {
    let overdue = Fault::None;
    for fault in [overdue, Fault::ProcessAndClose, Fault::ProcessAndTruncate] {
        let server = HecServer::start(Collector { uses_ack: true, ..Collector::default() });
        let mut sink = sink(indexed(&server));
        server.http().fail("/event", [fault]);
        let delivery = sink.deliver(Entries::small(3).batch()).await;
        assert!(matches!(delivery, Delivery::Retry { .. }), "{delivery:?}");
        server.change_indexer();
        let mut others = Entries::new();
        others.record(r#"{"other":1}"#);
        let delivery = sink.deliver(others.batch()).await;
        assert!(matches!(delivery, Delivery::Retry { .. }), "{delivery:?}");
        server.collector().polls_until_indexed = Some(0);
        for _ in 0..2 {
            assert_eq!(sink.deliver(others.batch()).await, Delivery::Acknowledged);
        }
        // A channel is kept as long as all of its ids are confirmed.
        let posts: Vec<_> =
            channels(&server, "/event").into_iter().map(|it| it[34..].to_owned()).collect();
        assert_eq!(posts, ["00", "01", "02", "02"]);
    }
}

/// Two indexers that give the same id leave it undecided which request it confirms.
#[tokio::test]
async fn ambiguous_id_is_followed_by_a_new_channel() {
    let server = HecServer::start(Collector {
        uses_ack: true,
        polls_until_indexed: Some(0),
        ..Collector::default()
    });
    let again = Reply::new(200, r#"{"text":"Success","code":0,"ackId":0}"#);
    server.http().fail("/event", [Fault::None, Fault::Answer(again)]);
    let max_request_bytes = 64 << 10;
    let mut sink = sink(Settings { max_request_bytes, ..indexed(&server) });
    let entries = Entries::small(300);
    let delivery = sink.deliver(entries.batch()).await;
    assert!(matches!(delivery, Delivery::Retry { .. }), "{delivery:?}");
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    let posts = channels(&server, "/event");
    assert_eq!(posts[1], CHANNEL);
    assert!(
        posts.len() > 2 && posts[2..].iter().all(|channel| channel.ends_with("01")),
        "{posts:?}"
    );
}

/// A proxy, or a token that is changed, may answer in between: the ids stay valid.
#[tokio::test]
async fn poll_that_needs_a_person_does_not_end_polling() {
    for (count, is_acknowledged) in [(3, true), (100, false)] {
        let server = HecServer::start(Collector {
            uses_ack: true,
            polls_until_indexed: Some(0),
            ..Collector::default()
        });
        let refused = Fault::Answer(Reply::new(401, r#"{"text":"Token is required","code":2}"#));
        let page = Fault::Answer(Reply::new(200, "<html>sign in</html>"));
        server.http().fail("/ack", [Fault::None, page]);
        server.http().fail("/ack", vec![refused; count]);
        let mut sink = sink(indexed(&server));
        let delivery = sink.deliver(Entries::small(3).batch()).await;
        let polls = channels(&server, "/ack").len();
        match is_acknowledged {
            true => {
                assert_eq!((delivery, polls), (Delivery::Acknowledged, count + 3));
                assert_eq!(stored(&server).repetitions, 0);
            }
            // The last poll says what to do.
            false => {
                let Delivery::Hold { reason, .. } = delivery else { panic!("{delivery:?}") };
                assert!(reason.contains("code 2") && polls > 5, "{polls} {reason}");
            }
        }
    }
}

#[tokio::test]
async fn failed_polls_are_repeated() {
    let server = HecServer::start(Collector {
        uses_ack: true,
        polls_until_indexed: Some(0),
        ..Collector::default()
    });
    let busy = Fault::Answer(Reply::new(503, r#"{"text":"busy","code":9}"#));
    server.http().fail("/ack", [Fault::None, Fault::Close, busy, Fault::Close]);
    let mut sink = sink(indexed(&server));
    assert_eq!(sink.deliver(Entries::small(3).batch()).await, Delivery::Acknowledged);
    assert_eq!(stored(&server).repetitions, 0);
}

/// The receiver forgets an acknowledgement that it has sent, even if the response is lost.
#[tokio::test]
async fn lost_response_to_a_poll_repeats_only_that_batch() {
    let server = HecServer::start(Collector {
        uses_ack: true,
        polls_until_indexed: Some(0),
        ..Collector::default()
    });
    server.http().fail("/ack", [Fault::None, Fault::ProcessAndClose]);
    let mut sink = sink(indexed(&server));
    let entries = Entries::small(3);
    assert_eq!(deliver_all(&mut sink, &entries).await, (2, vec![]));
    let stored = stored(&server);
    assert_eq!((stored.contents.len(), stored.repetitions), (3, 3));
}

#[tokio::test]
async fn token_without_acknowledgement_gets_no_events() {
    let server = HecServer::start(Collector::default());
    let mut sink = sink(indexed(&server));
    for _ in 0..2 {
        let delivery = sink.deliver(Entries::small(3).batch()).await;
        let Delivery::Hold { reason, .. } = delivery else { panic!("{delivery:?}") };
        assert!(reason.contains("useACK"), "{reason}");
    }
    assert!(server.collector().stored.is_empty());
    assert!(sink.probe(Duration::from_secs(5)).await.unwrap_err().contains("useACK"));
}

#[tokio::test]
async fn acknowledgement_that_the_token_requires_is_named() {
    let server = HecServer::start(Collector { uses_ack: true, ..Collector::default() });
    let mut sink = sink(settings(&server));
    let delivery = sink.deliver(Entries::small(3).batch()).await;
    let Delivery::Hold { reason, .. } = delivery else { panic!("{delivery:?}") };
    assert!(reason.contains("`acknowledgement = \"indexed\"`"), "{reason}");
}

#[tokio::test]
async fn logscale_refuses_the_request_with_a_poisoned_entry() {
    let poison = Some((r#""n":7}"#.to_owned(), 0));
    let is_logscale = true;
    let server = HecServer::start(Collector { poison, is_logscale, ..Collector::default() });
    let mut sink = sink(settings(&server));
    let entries = Entries::small(20);
    let delivery = sink.deliver(entries.batch()).await;
    assert!(matches!(delivery, Delivery::Refused { status: 400, .. }), "{delivery:?}");
    assert_eq!(sink.deliver(entries.without(8, &[]).batch()).await, Delivery::Acknowledged);
    assert_eq!(server.collector().stored.len(), 12);
}

#[tokio::test]
async fn probe_checks_the_token_and_stores_nothing() {
    for is_logscale in [false, true] {
        let server = HecServer::start(Collector { is_logscale, ..Collector::default() });
        let within = Duration::from_secs(5);
        let mut probed = sink(settings(&server));
        let found = probed.probe(within).await.unwrap();
        assert!(found.contains("token is accepted"), "{found}");
        assert!(probed.probe_is_proof());
        let token = "wrong".to_owned();
        let problem =
            sink(Settings { token, ..settings(&server) }).probe(within).await.unwrap_err();
        assert!(problem.contains("`token_file`") && !problem.contains("wrong"), "{problem}");
        assert!(server.collector().stored.is_empty());
    }
    // Any server may respond with status 200.
    let server = HecServer::start(Collector { is_logscale: true, ..Collector::default() });
    server.http().fail("/api/v1/ingest/hec", [Fault::Answer(Reply::new(200, "<html>"))]);
    let mut other = sink(settings(&server));
    assert!(other.probe(Duration::from_secs(5)).await.is_ok() && !other.probe_is_proof());
    let server = HecServer::start(Collector::default());
    let (mut late, within) = (sink(settings(&server)), Duration::from_secs(5));
    let portal = Reply::new(200, "<html>sign in</html>");
    server.http().fail("/event", [Fault::Answer(portal.clone()), Fault::Answer(portal)]);
    assert!(late.probe(within).await.unwrap_err().contains("`endpoint`"));
    let delivery = late.deliver(Entries::small(1).batch()).await;
    assert!(matches!(delivery, Delivery::Hold { .. }), "{delivery:?}");
    drop(server);
    assert!(late.probe(within).await.unwrap_err().contains("127.0.0.1"));
}
