use std::time::Instant;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use siem_protocol::{BatchHeader, Digest, Identity, entry::EventLine};
use siem_sinks::{Batch, SiemSink as _, tls::TlsSettings};
use test_requires::requires;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::{TcpListener, TcpSocket},
    time::sleep,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    super::{Delivery, EntryResult, Rest},
    *,
};
use crate::platform::tcp::dead_network;

#[test]
fn address_is_host_and_port() {
    for (text, host, port) in [
        ("syslog.example.com:1514", "syslog.example.com", 1514),
        ("syslog.example.com", "syslog.example.com", 6514),
        ("192.0.2.1:514", "192.0.2.1", 514),
        ("[2001:db8::1]:514", "2001:db8::1", 514),
        ("2001:db8::1", "2001:db8::1", 6514),
    ] {
        assert_eq!(address(text, 6514).unwrap(), (host.to_owned(), port), "{text}");
    }
    for text in ["", ":514", "host:", "host:port", "host:70000", "tcp://host:514", "a b"] {
        let error = address(text, 6514).unwrap_err().to_string();
        assert!(error.starts_with("`address` is not a host"), "{text}: {error}");
    }
}

const DEADLINE: Duration = Duration::from_secs(60);
/// Time after which an entry would count as delivered, and the time of a dead connection.
const WINDOW: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(1);

fn sink(port: u16, tls: Option<Arc<rustls::ClientConfig>>) -> Syslog {
    Syslog::new(settings(port, tls))
}

fn settings(port: u16, tls: Option<Arc<rustls::ClientConfig>>) -> Settings {
    Settings {
        host: "127.0.0.1".to_owned(),
        port,
        tls,
        facility: 13,
        max_event_bytes: 8_000,
        time: TimeOf::Record,
        timeout: TIMEOUT,
        window: WindowSize { time: WINDOW, ..WindowSize::default() },
        system: Arc::new(System),
    }
}

/// Entries `first` to `last`, each larger than a kilobyte.
struct Entries {
    header: BatchHeader,
    lines: Vec<u8>,
    count: usize,
}

impl Entries {
    fn new(first: u64, last: u64) -> Self {
        let text = || "x".to_owned();
        let identity = Identity {
            machine_id: text(),
            hostname: text(),
            user: text(),
            os: text(),
            arch: text(),
            agent_version: text(),
        };
        let header = BatchHeader::new(&identity, text(), Digest::ZERO, text());
        let mut lines = Vec::new();
        for seq in first..=last {
            let data = format!(r#"{{"entry":"({seq})","text":"{}"}}"#, "x".repeat(1_000));
            let (source, severity, at) = ("agent", "info", "2026-11-21T20:00:01.000Z");
            EventLine { source, event: "test", severity, at, enriched: "", data: &data }
                .write(seq, &mut lines);
            lines.push(b'\n');
        }
        Self { header, lines, count: (first..=last).count() }
    }

    /// Delivers the entries and returns the number of accepted ones.
    async fn deliver(&self, sink: &mut Syslog) -> Result<usize, String> {
        let batch = Batch { header: &self.header, lines: &self.lines, patience: None };
        match sink.deliver(batch).await {
            Delivery::Acknowledged => Ok(self.count),
            Delivery::PerEntry { entries, rest: Rest::InTransit { .. } } => {
                Ok(entries.iter().filter(|entry| **entry == EntryResult::Accepted).count())
            }
            Delivery::Retry { reason, .. } => Err(reason),
            other => panic!("{other:?}"),
        }
    }
}

/// Reads from `stream` until the entries have arrived, each at least once.
async fn read_entries(stream: &mut (impl AsyncRead + Unpin), first: u64, last: u64) {
    let mut received = Vec::new();
    let read = async {
        let mut next = first;
        while next <= last {
            assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0, "closed at {next}");
            let text = String::from_utf8_lossy(&received);
            while next <= last && text.contains(&format!(r#""({next})""#)) {
                next += 1;
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("the entries arrive");
}

/// Delivers `entries` until all are accepted.
async fn deliver_all(entries: &Entries, sink: &mut Syslog) {
    let start = Instant::now();
    while entries.deliver(sink).await.unwrap() < entries.count {
        assert!(start.elapsed() < DEADLINE);
        sleep(WINDOW).await;
    }
}

/// What was in the send buffer counted as delivered after the time of the window.
#[requires(socket_filter)]
#[tokio::test]
async fn peer_that_stops_reading_delivers_only_what_its_system_has() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(8).unwrap();
    let mut sink = sink(listener.local_addr().unwrap().port(), None);
    let entries = Entries::new(1, 120);
    let (accepted, peer) = tokio::join!(entries.deliver(&mut sink), listener.accept());
    assert_eq!(accepted, Ok(0));
    sleep(WINDOW * 2).await;
    let accepted = entries.deliver(&mut sink).await.unwrap();
    assert!(accepted < 60, "{accepted} of {} entries", entries.count);
    let rest = Entries::new(accepted as u64 + 1, 120);
    sleep(WINDOW * 2).await;
    assert!(rest.deliver(&mut sink).await.unwrap() < 60);
    let mut peer = peer.unwrap().0;
    read_entries(&mut peer, 1, 120).await;
    sleep(WINDOW).await;
    deliver_all(&Entries::new(120, 120), &mut sink).await;
}

#[requires(socket_filter)]
#[tokio::test]
async fn dead_network_delivers_nothing_and_is_noticed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut sink = sink(listener.local_addr().unwrap().port(), None);
    let (first, second) = (Entries::new(1, 1), Entries::new(2, 40));
    let (accepted, peer) = tokio::join!(first.deliver(&mut sink), listener.accept());
    assert_eq!(accepted, Ok(0));
    let mut peer = peer.unwrap().0;
    read_entries(&mut peer, 1, 1).await;
    dead_network::begin(&peer);
    let start = Instant::now();
    loop {
        sleep(WINDOW).await;
        match second.deliver(&mut sink).await {
            Ok(accepted) => assert_eq!(accepted, 0),
            Err(_) => break,
        }
        assert!(start.elapsed() < DEADLINE, "the connection is still used");
    }
    assert!(start.elapsed() > TIMEOUT / 2, "the connection did not end by itself");
    let (accepted, peer) = tokio::join!(second.deliver(&mut sink), listener.accept());
    assert_eq!(accepted, Ok(0));
    let mut peer = peer.unwrap().0;
    read_entries(&mut peer, 2, 40).await;
    deliver_all(&second, &mut sink).await;
}

/// A server with TLS on loopback, and the configuration of a client that trusts it.
async fn tls_server() -> (TcpListener, TlsAcceptor, Arc<rustls::ClientConfig>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, key).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let authorities = authority.pem().into_bytes();
    let client = TlsSettings { authorities, ..TlsSettings::default() }.client_config().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener, TlsAcceptor::from(Arc::new(server)), Arc::new(client))
}

/// With TLS the bytes of the connection are not those of the messages.
#[requires(socket_filter)]
#[tokio::test]
async fn dead_network_under_tls_delivers_once_it_is_back() {
    let (listener, acceptor, tls) = tls_server().await;
    let mut sink = sink(listener.local_addr().unwrap().port(), Some(tls));
    let (first, second) = (Entries::new(1, 1), Entries::new(2, 100));
    let accept = async { acceptor.accept(listener.accept().await.unwrap().0).await.unwrap() };
    let (accepted, mut peer): (_, TlsStream<TcpStream>) =
        tokio::join!(first.deliver(&mut sink), accept);
    assert_eq!(accepted, Ok(0));
    read_entries(&mut peer, 1, 1).await;
    sleep(WINDOW).await;
    deliver_all(&first, &mut sink).await;
    dead_network::begin(peer.get_ref().0);
    for _ in 0..4 {
        assert_eq!(second.deliver(&mut sink).await, Ok(0));
        sleep(WINDOW).await;
    }
    dead_network::end(peer.get_ref().0);
    read_entries(&mut peer, 2, 100).await;
    deliver_all(&second, &mut sink).await;
}

/// A system that always misses the acknowledgement of the last byte.
struct LastByteMissing;

impl TcpSystem for LastByteMissing {
    fn limit_unacknowledged(&self, _: &TcpStream, _: Duration) -> io::Result<()> {
        Ok(())
    }

    fn unacknowledged(&self, _: &TcpStream) -> Option<u64> {
        Some(1)
    }
}

/// The handshake and the encryption add bytes: without them, the last entry would count.
#[tokio::test]
async fn entry_under_tls_counts_with_its_encrypted_bytes() {
    let (listener, acceptor, tls) = tls_server().await;
    let settings = settings(listener.local_addr().unwrap().port(), Some(tls));
    // An entry leaves this window when it is written: only the acknowledgement decides.
    let window = WindowSize { bytes: 0, time: Duration::ZERO };
    let mut sink = Syslog::new(Settings { system: Arc::new(LastByteMissing), window, ..settings });
    let entries = Entries::new(1, 100);
    let accept = async { acceptor.accept(listener.accept().await.unwrap().0).await.unwrap() };
    let (accepted, mut peer) = tokio::join!(entries.deliver(&mut sink), accept);
    let accepted = accepted.unwrap();
    assert!((1..100).contains(&accepted), "those of all writes but the last: {accepted}");
    read_entries(&mut peer, 1, 100).await;
    let rest = Entries::new(accepted as u64 + 1, 100);
    for _ in 0..2 {
        assert_eq!(rest.deliver(&mut sink).await, Ok(0));
    }
}
