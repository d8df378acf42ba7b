//! Connections that are dead although they look open, as after sleep or a change of the network.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    eventually,
    home::Home,
    receiver::{Receiver, settle},
};

/// A proxy that can stop to forward on the connections that are open, and still acknowledges what it
/// receives there. New connections work.
struct DeafProxy {
    url: String,
    accepted: Arc<AtomicU64>,
    /// Number of the oldest connection that is forwarded.
    first_alive: Arc<AtomicU64>,
}

impl DeafProxy {
    fn to(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (accepted, first_alive) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let to = to.trim_start_matches("http://").to_owned();
        let (number, first) = (Arc::clone(&accepted), Arc::clone(&first_alive));
        thread::spawn(move || {
            for agent in listener.incoming().flatten() {
                let number = number.fetch_add(1, Ordering::SeqCst);
                let receiver = TcpStream::connect(&to).unwrap();
                let back = (receiver.try_clone().unwrap(), agent.try_clone().unwrap());
                for (from, to) in [(agent, receiver), back] {
                    let first = Arc::clone(&first);
                    thread::spawn(move || {
                        forward(from, to, || number >= first.load(Ordering::SeqCst));
                    });
                }
            }
        });
        Self { url, accepted, first_alive }
    }

    /// Swallows everything on the connections that are open.
    fn go_deaf(&self) {
        self.first_alive.store(self.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, is_alive: impl Fn() -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if is_alive() && to.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// The next record took a minute, and the message blamed a slow connection.
#[test]
fn record_arrives_soon_after_its_connection_has_died() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let proxy = DeafProxy::to(&receiver.url());
    let config = "[shipping]\nflush_interval = \"0s\"";
    let running = home.agent(&["run"]).config(config).ships_to(&proxy.url).start_and_wait();
    home.append("-work/one.jsonl", "{\"n\":1}\n");
    settle(&receiver, 1);
    for n in 2..4 {
        // The connection is used until it dies, so the agent has no reason to open another one.
        home.append("-work/one.jsonl", format!("{{\"n\":{n}0}}\n"));
        settle(&receiver, 2 * n - 2);
        proxy.go_deaf();
        let died = Instant::now();
        home.append("-work/one.jsonl", format!("{{\"n\":{n}}}\n"));
        eventually("the record arrives", || {
            let entries = receiver.entries();
            let lines = crate::support::entries::lines(&entries).len();
            (lines >= 2 * n - 1).then_some(())
        });
        let took = died.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    assert!(!running.log().contains("delivery_postponed"), "{}", running.log());
    running.stop();
    receiver.assert_complete();
}
