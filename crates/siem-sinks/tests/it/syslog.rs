//! Syslog: to a real rsyslog, and through connections that are reset.

use std::{
    fs, io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use siem_protocol::delivery::{Delivery, EntryResult, Rest};
use siem_sinks::{
    Batch, SiemSink as _,
    event::TimeOf,
    syslog::{Settings, Syslog, TcpSystem, WindowSize},
    tls::TlsSettings,
};
use test_requires::requires;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::support::{
    assembly::{Assembled, ServerEvent, assemble, decode},
    entries::{EPOCH, Entries},
    odd_lines::odd_lines,
    rsyslog::{Rsyslog, certificates},
};

const DEADLINE: Duration = Duration::from_secs(60);

fn settings(port: u16, window: WindowSize) -> Settings {
    Settings {
        host: "localhost".to_owned(),
        port,
        tls: None,
        facility: 13,
        max_event_bytes: 8_000,
        time: TimeOf::Record,
        timeout: Duration::from_secs(10),
        window,
        system: Arc::new(Unknown),
    }
}

/// A system that does not report which bytes are acknowledged.
struct Unknown;

impl TcpSystem for Unknown {
    fn limit_unacknowledged(&self, _: &TcpStream, _: Duration) -> io::Result<()> {
        Ok(())
    }

    fn unacknowledged(&self, _: &TcpStream) -> Option<u64> {
        None
    }
}

/// A system on which a test says how many bytes are not acknowledged.
#[derive(Default)]
struct Scripted(AtomicU64);

impl Scripted {
    fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

impl TcpSystem for Scripted {
    fn limit_unacknowledged(&self, _: &TcpStream, _: Duration) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unacknowledged(&self, _: &TcpStream) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed))
    }
}

/// A window that entries leave soon.
fn short_window() -> WindowSize {
    WindowSize { time: Duration::from_millis(200), ..WindowSize::default() }
}

/// Delivers all entries as the agent does, and returns the number of attempts that failed.
async fn deliver_all(sink: &mut Syslog, entries: &Entries) -> usize {
    let (start, mut done, mut failures) = (Instant::now(), 0, 0);
    while done < entries.len() {
        assert!(start.elapsed() < DEADLINE, "{done} of {} delivered", entries.len());
        let rest = entries.without(done, &[]);
        match sink.deliver(rest.batch()).await {
            Delivery::Acknowledged => done = entries.len(),
            Delivery::PerEntry { entries, rest } => {
                done += entries.iter().filter(|entry| **entry == EntryResult::Accepted).count();
                match rest {
                    Rest::InTransit { recheck } => tokio::time::sleep(recheck).await,
                    Rest::Retry { .. } => failures += 1,
                    other => panic!("{other:?}"),
                }
            }
            Delivery::Retry { .. } => failures += 1,
            other => panic!("{other:?}"),
        }
    }
    failures
}

fn check_complete(events: Vec<ServerEvent>, entries: &Entries) -> Assembled {
    let assembled = assemble(events);
    assert_eq!(assembled.contents, entries.contents());
    assert_eq!(assembled.incomplete, Vec::<String>::new());
    assembled
}

#[requires(rsyslog)]
#[tokio::test]
async fn odd_lines_arrive_over_tls_byte_for_byte() {
    let server = Rsyslog::start(true);
    let mut entries = Entries::of(odd_lines());
    entries.event("heartbeat", r#"{"files":3}"#);
    let authorities = server.authority().unwrap().as_bytes().to_vec();
    let tls = TlsSettings { authorities, ..TlsSettings::default() }.client_config().unwrap();
    let tls = Some(Arc::new(tls));
    let mut sink = Syslog::new(Settings { tls, ..settings(server.port(), short_window()) });
    assert_eq!(deliver_all(&mut sink, &entries).await, 0);
    drop(sink);
    let assembled = check_complete(server.into_events(), &entries);
    assert_eq!(assembled.repetitions, 0);
}

/// Returns the configuration in the documentation, with paths and port of a test.
fn documented_configuration(folder: &Path, port: u16) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/siem/rsyslog.md");
    let page = fs::read_to_string(page).unwrap();
    let from = page.find("```rsyslog\n").unwrap() + "```rsyslog\n".len();
    let configuration = page[from..].split("```").next().unwrap();
    let folder = folder.to_str().unwrap();
    configuration
        .replace("/etc/rsyslog.d/tls", folder)
        .replace("/var/log/ai-agent", folder)
        .replace("port=\"6514\"", &format!("address=\"127.0.0.1\" port=\"{port}\""))
}

/// Parses a line that the configuration in the documentation writes.
fn parse_documented(line: &str) -> ServerEvent {
    let event: serde_json::Value = serde_json::from_str(line).unwrap();
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let number = |name: &str| event[name].as_str().unwrap().parse().unwrap();
    let part = event["ai_agent.part.of"]
        .as_str()
        .map(|of| (of.to_owned(), number("ai_agent.part.index"), number("ai_agent.part.total")));
    ServerEvent {
        id: text("event.id"),
        hash: text("event.hash"),
        part,
        content: decode(event["event.original"].as_str().unwrap(), &text("ai_agent.encoding")),
    }
}

#[requires(rsyslog)]
#[tokio::test]
async fn documented_configuration_writes_every_record() {
    let mut server = Rsyslog::configured(true, documented_configuration);
    let mut entries = Entries::of(odd_lines());
    entries.event("heartbeat", r#"{"files":3}"#);
    let authorities = server.authority().unwrap().as_bytes().to_vec();
    let tls = TlsSettings { authorities, ..TlsSettings::default() }.client_config().unwrap();
    let settings = settings(server.port(), short_window());
    let settings = Settings { tls: Some(Arc::new(tls)), max_event_bytes: 60_000, ..settings };
    let mut sink = Syslog::new(settings);
    assert_eq!(deliver_all(&mut sink, &entries).await, 0);
    drop(sink);
    server.stop();
    let file = format!("{}.jsonl", entries.batch().header.hostname);
    let text = fs::read_to_string(server.folder().join(file)).unwrap();
    check_complete(text.lines().map(parse_documented).collect(), &entries);
}

#[requires(rsyslog)]
#[tokio::test]
async fn unknown_authority_is_an_alarm() {
    let server = Rsyslog::start(true);
    let other = tempfile::tempdir().unwrap();
    let authorities = certificates(other.path()).into_bytes();
    let tls = TlsSettings { authorities, ..TlsSettings::default() }.client_config().unwrap();
    let tls = Some(Arc::new(tls));
    let mut sink = Syslog::new(Settings { tls, ..settings(server.port(), short_window()) });
    let delivery = sink.deliver(Entries::small(1).batch()).await;
    let Delivery::Hold { reason, .. } = delivery else { panic!("{delivery:?}") };
    assert!(reason.contains("ca_file"), "{reason}");
}

/// Forwards connections to rsyslog. The first ones are reset after some bytes, and what was not read
/// by then is lost.
async fn resetting_proxy(to: u16, resets: Vec<usize>) -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener: TcpListener = socket.listen(8).unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let limit = resets.get(count.fetch_add(1, Ordering::Relaxed)).copied();
            tokio::spawn(forward(client, to, limit));
        }
    });
    address
}

async fn forward(mut client: TcpStream, to: u16, limit: Option<usize>) {
    let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
    let (mut buffer, mut total) = (vec![0; 16 << 10], 0);
    while let Ok(count @ 1..) = client.read(&mut buffer).await {
        server.write_all(&buffer[..count]).await.unwrap();
        total += count;
        if limit.is_some_and(|limit| total >= limit) {
            #[allow(deprecated, reason = "a lingering time of 0 does not block")]
            client.set_linger(Some(Duration::ZERO)).unwrap();
            break;
        }
    }
    server.shutdown().await.ok();
}

#[requires(rsyslog)]
#[tokio::test]
async fn reset_loses_nothing_and_repeats_the_window_at_most() {
    let server = Rsyslog::start(false);
    let proxy = resetting_proxy(server.port(), vec![2_000_000, 100_000, 3_000_000]).await;
    let line = format!(r#"{{"type":"user","text":"{}"}}"#, "x".repeat(2_000));
    let entries = Entries::of((0..2_500).map(|_| &line));
    let window = WindowSize { time: Duration::from_secs(1), ..WindowSize::default() };
    let host = "127.0.0.1".to_owned();
    let mut sink = Syslog::new(Settings { host, ..settings(proxy.port(), window) });
    let failures = deliver_all(&mut sink, &entries).await;
    drop(sink);
    let assembled = check_complete(server.into_events(), &entries);
    eprintln!(
        "{} entries, {failures} failed attempts, {} repeated",
        entries.len(),
        assembled.repetitions
    );
    assert!(failures >= 3, "{failures}");
    // Each reset repeats at most the window, and the entry that crosses its border.
    let in_window = (1 << 20) / line.len() + 1;
    assert!(assembled.repetitions <= failures * in_window, "{}", assembled.repetitions);
}

#[tokio::test]
async fn closed_connection_is_noticed_before_the_next_batch() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let window = WindowSize { time: Duration::from_secs(600), ..WindowSize::default() };
    let host = "127.0.0.1".to_owned();
    let mut sink = Syslog::new(Settings { host, ..settings(port, window) });
    let entries = Entries::small(2);
    let (delivery, accepted) = tokio::join!(sink.deliver(entries.batch()), listener.accept());
    assert!(matches!(delivery, Delivery::PerEntry { rest: Rest::InTransit { .. }, .. }));
    drop(accepted);
    let start = Instant::now();
    loop {
        match sink.deliver(entries.batch()).await {
            Delivery::Retry { .. } => break,
            Delivery::PerEntry { rest: Rest::InTransit { .. }, .. } => {}
            other => panic!("{other:?}"),
        }
        assert!(start.elapsed() < DEADLINE);
        tokio::task::yield_now().await;
    }
    // The window is sent again, whole.
    let (_, accepted) = tokio::join!(sink.deliver(entries.batch()), async {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut received = Vec::new();
        while !String::from_utf8_lossy(&received).contains(r#""n":1}"#) {
            assert_ne!(client.read_buf(&mut received).await.unwrap(), 0, "closed too early");
        }
        received
    });
    let text = String::from_utf8(accepted).unwrap();
    assert!(text.contains(r#"{"type":"user","n":0}"#) && text.contains(r#"{"type":"user","n":1}"#));
}

/// A reset that is noticed only when the entries are older than the window loses none of them.
#[tokio::test]
async fn late_notice_of_a_reset_accepts_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = "127.0.0.1".to_owned();
    let mut sink = Syslog::new(Settings { host, ..settings(port, short_window()) });
    let entries = Entries::small(2);
    let (delivery, accepted) = tokio::join!(sink.deliver(entries.batch()), listener.accept());
    let Delivery::PerEntry { rest: Rest::InTransit { recheck }, .. } = delivery else { panic!() };
    drop(accepted);
    tokio::time::sleep(recheck * 2).await;
    let delivery = sink.deliver(entries.batch()).await;
    assert!(matches!(delivery, Delivery::Retry { .. }), "{delivery:?}");
}

/// Returns a sink with `system` and a receiver that reads everything.
async fn with_reader(system: Arc<dyn TcpSystem>, window: WindowSize) -> (Syslog, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let received = Received::default();
    let all = received.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            all.0.lock().unwrap().push(Vec::new());
            let all = all.clone();
            let connection = all.0.lock().unwrap().len() - 1;
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(count @ 1..) = client.read(&mut buffer).await {
                    all.0.lock().unwrap()[connection].extend_from_slice(&buffer[..count]);
                }
            });
        }
    });
    let host = "127.0.0.1".to_owned();
    let timeout = Duration::from_millis(500);
    (Syslog::new(Settings { host, system, timeout, ..settings(port, window) }), received)
}

/// Bytes of each connection.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<Vec<u8>>>>);

impl Received {
    /// Waits until the text contains `part` on any connection.
    async fn wait_for(&self, part: &str) {
        let start = Instant::now();
        while !self.texts().iter().any(|text| text.contains(part)) {
            assert!(start.elapsed() < DEADLINE, "{part} is missing");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn texts(&self) -> Vec<String> {
        let all = self.0.lock().unwrap();
        all.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }
}

fn accepted_count(delivery: &Delivery, of: usize) -> usize {
    match delivery {
        Delivery::Acknowledged => of,
        Delivery::PerEntry { entries, rest: Rest::InTransit { recheck } } => {
            assert!(!recheck.is_zero());
            entries.iter().filter(|entry| **entry == EntryResult::Accepted).count()
        }
        other => panic!("{other:?}"),
    }
}

/// What a network without a reset did not carry for the time of the window counted as delivered.
#[tokio::test]
async fn unacknowledged_bytes_do_not_count_as_delivered() {
    let system = Arc::new(Scripted::default());
    let window = WindowSize { time: Duration::from_millis(1), ..WindowSize::default() };
    let (mut sink, received) = with_reader(system.clone(), window).await;
    system.set(u64::MAX);
    let line = "x".repeat(3_000);
    let entries = Entries::of((0..100).map(|_| &line));
    assert_eq!(accepted_count(&sink.deliver(entries.batch()).await, 100), 0);
    let sent = sink.bytes_sent();
    tokio::time::sleep(window.time * 2).await;
    assert_eq!(accepted_count(&sink.deliver(entries.batch()).await, 100), 0);
    assert_eq!(sink.bytes_sent(), 0, "entries in transit are sent once");
    // Of the last bytes none is acknowledged, and so not the entry to which they belong.
    system.set(100_000);
    let some = accepted_count(&sink.deliver(entries.batch()).await, 100);
    let in_transit = usize::try_from(100_000 / (sent / 100)).unwrap();
    assert!((1..100 - in_transit).contains(&some), "{some}");
    system.set(1);
    let most = entries.without(some, &[]);
    assert!(accepted_count(&sink.deliver(most.batch()).await, most.len()) < most.len());
    system.set(0);
    let last = entries.without(99, &[]);
    assert_eq!(sink.deliver(last.batch()).await, Delivery::Acknowledged);
    assert_eq!(received.texts().len(), 1, "one connection");
}

/// A window of bytes is not enough either: the send buffer may be as large.
#[tokio::test]
async fn bytes_after_an_unacknowledged_entry_do_not_deliver_it() {
    let system = Arc::new(Scripted::default());
    let window = WindowSize { bytes: 1_000, time: Duration::from_secs(600) };
    let (mut sink, _received) = with_reader(system.clone(), window).await;
    system.set(u64::MAX);
    let entries = Entries::small(50);
    assert_eq!(accepted_count(&sink.deliver(entries.batch()).await, 50), 0);
    system.set(0);
    assert!(accepted_count(&sink.deliver(entries.batch()).await, 50) > 40);
}

/// The number of a dead letter is smaller than those in the window, or that of another entry in it.
#[tokio::test]
async fn redelivery_leaves_the_window_as_it_is() {
    let system = Arc::new(Scripted::default());
    let window = WindowSize { time: Duration::from_secs(600), ..WindowSize::default() };
    let (mut sink, received) = with_reader(system.clone(), window).await;
    let entries = Entries::of((0..9).map(|number| format!("entry {number}.")));
    let recent = entries.without(4, &[]);
    assert_eq!(accepted_count(&sink.deliver(recent.batch()).await, 5), 0);
    for (epoch, number) in [(EPOCH, 2), (EPOCH, 5), ("01JD3Q8Z5T4X0W9V8U7S6R5P4M", 7)] {
        let letter = Entries::of((0..9).map(|at| format!("letter {at}."))).without(number, &[]);
        let mut header = letter.batch().header.clone();
        (header.redelivery, header.epoch) = (true, epoch.to_owned());
        let line = letter.batch().entries().next().unwrap();
        let batch = Batch { header: &header, lines: line, patience: None };
        assert_eq!(sink.deliver(batch).await, Delivery::Acknowledged);
        received.wait_for(&format!("letter {number}.")).await;
        // A redelivery that does not reach the other system is not delivered, and can be repeated.
        system.set(1);
        let delivery = sink.deliver(batch).await;
        assert!(matches!(delivery, Delivery::Retry { .. }), "{delivery:?}");
        system.set(0);
        assert_eq!(accepted_count(&sink.deliver(recent.batch()).await, 5), 0);
        assert_eq!(sink.bytes_sent(), 0, "entries in the window are not sent again");
    }
    assert_eq!(received.texts().len(), 1, "one connection");
}

/// An entry whose acceptance was forgotten is sent again, after those with larger numbers.
#[tokio::test]
async fn entry_sent_after_larger_numbers_is_delivered_once_more() {
    let window = WindowSize { bytes: 8_000, time: Duration::from_millis(300) };
    let (mut sink, received) = with_reader(Arc::new(Unknown), window).await;
    let entries = Entries::small(20);
    let some = accepted_count(&sink.deliver(entries.batch()).await, 20);
    assert!((1..20).contains(&some), "{some}");
    sink.deliver(entries.batch()).await;
    let sent = sink.bytes_sent();
    assert!(sent > 0, "what was forgotten is sent again");
    sink.deliver(entries.batch()).await;
    assert_eq!(sink.bytes_sent(), 0, "what is in the window is not");
    tokio::time::sleep(window.time).await;
    assert_eq!(sink.deliver(entries.batch()).await, Delivery::Acknowledged);
    assert_eq!(received.texts().len(), 1, "one connection");
}
