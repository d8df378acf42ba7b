//! Syslog: to a real rsyslog, and through connections that are reset.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use siem_protocol::delivery::{Delivery, EntryResult, Rest};
use siem_sinks::{
    SiemSink as _,
    event::TimeOf,
    syslog::{Settings, Syslog, WindowSize},
    tls::TlsSettings,
};
use test_requires::requires;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::support::{
    assembly::{Assembled, ServerEvent, assemble, decode},
    entries::Entries,
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
