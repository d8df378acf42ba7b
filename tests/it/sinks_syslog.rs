//! The sink `syslog` on session files, with faults: what rsyslog has is compared with the files.
#![cfg(unix)]

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use test_requires::requires;

use crate::support::{
    eventually,
    rsyslog::Rsyslog,
    session_tree::{SentRecord, assert_complete, home_with_sessions},
};

/// Bytes that may be repeated after each disconnect: the window of the sink, and one write.
const WINDOW: usize = (1 << 20) + (64 << 10);

/// Options of the agent with a sink that ships to `port`.
fn config(port: u16, authority: &Path) -> String {
    format!(
        "[pipeline]\nsinks = [\"syslog\"]\n[shipping]\nflush_interval = \"0s\"\n[sink.syslog]\n\
         type = \"syslog\"\naddress = \"localhost:{port}\"\nca_file = \"{}\"\ntimeout = \"10s\"\n",
        authority.display()
    )
}

/// Forwards connections to rsyslog, and resets each of the first ones after some bytes.
struct Proxy {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    fn start(to: u16, resets: Vec<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let limit = resets.get(count.fetch_add(1, Ordering::Relaxed)).copied();
                thread::spawn(move || forward(client, to, limit));
            }
        });
        Self { address, connections }
    }

    fn port(&self) -> u16 {
        self.address.port()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Forwards both ways until one side closes, or until `limit` bytes were sent to the server: then the
/// client is disconnected, and what was not read is lost.
fn forward(mut client: TcpStream, to: u16, limit: Option<usize>) -> Option<()> {
    let mut server = TcpStream::connect(("127.0.0.1", to)).ok()?;
    let (mut back, mut to_client) = (server.try_clone().ok()?, client.try_clone().ok()?);
    thread::spawn(move || {
        drop(std::io::copy(&mut back, &mut to_client));
        drop(to_client.shutdown(Shutdown::Both));
    });
    let (mut buffer, mut total) = (vec![0; 16 << 10], 0);
    loop {
        let count = client.read(&mut buffer).ok().filter(|count| *count > 0)?;
        server.write_all(&buffer[..count]).ok()?;
        total += count;
        if limit.is_some_and(|limit| total >= limit) {
            drop(client.shutdown(Shutdown::Both));
            drop(server.shutdown(Shutdown::Write));
            return None;
        }
    }
}

fn records(server: &Rsyslog) -> Vec<SentRecord> {
    let messages = server.messages().into_iter();
    messages
        .map(|message| SentRecord {
            event: message.event,
            path: message.path,
            generation: message.generation,
        })
        .collect()
}

#[requires(rsyslog)]
#[test]
fn faults_before_rsyslog_lose_nothing_and_repeat_the_window() {
    let home = home_with_sessions();
    let mut server = Rsyslog::start(true);
    let authority = home.path().join("ca.pem");
    std::fs::write(&authority, server.authority().unwrap()).unwrap();
    let resets = vec![300_000, 900_000, 2_000_000];
    let mut disconnects = resets.len();
    let proxy = Proxy::start(server.port(), resets);
    let config = config(proxy.port(), &authority);
    let start = || home.agent(&["run"]).config(&config).start_and_wait();
    let agent = start();
    eventually("all resets happened", || (proxy.connections() > disconnects).then_some(()));
    agent.kill();
    disconnects += 1;

    let agent = start();
    let before = proxy.connections();
    eventually("a connection", || (proxy.connections() > before.min(4)).then_some(()));
    server.stop();
    home.write("-generated/later.jsonl", "{\"later\":1}\n");
    server.run();
    disconnects += 1;
    agent.stop();
    // The last entries are delivered when they have left the window.
    let once = home.agent(&["run", "--once"]).config(&config);
    once.env("AI_AGENT_TEST_SYSLOG_WINDOW_MS", "5000").succeed();
    disconnects += 1;
    server.stop();

    let records = records(&server);
    let largest = 8_000;
    let bytes: usize = records.iter().map(|record| record.event.content.len()).sum();
    let (count, repeated) = assert_complete(&home, records);
    eprintln!(
        "{count} records, {bytes} bytes; {disconnects} disconnects: 0 lost, {repeated} repeated"
    );
    // A message is not smaller than its structured data.
    assert!(repeated <= disconnects * (WINDOW + largest) / 500, "{repeated}");
}
