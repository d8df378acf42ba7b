//! The loop of a server that accepts connections until it is dropped.

use std::{
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// Accepts connections, each of which is served by a thread of its own. Stops when dropped; open
/// connections are not closed.
pub struct Acceptor {
    address: SocketAddr,
    has_ended: Arc<AtomicBool>,
    accepting: Option<thread::JoinHandle<()>>,
}

impl Acceptor {
    /// Listens on an address. `accept` is called with one connection after the other, and returns what
    /// the thread of that connection does.
    #[track_caller]
    pub fn start<Serve: FnOnce() + Send + 'static>(
        address: impl ToSocketAddrs,
        accept: impl Fn(TcpStream) -> Serve + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let has_ended = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&has_ended);
        let accepting = thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                thread::spawn(accept(stream));
            }
        });
        Self { address, has_ended, accepting: Some(accepting) }
    }

    /// Address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops, and waits until the address is free again.
    pub fn stop(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.has_ended.store(true, Ordering::Relaxed);
        // Wakes the thread.
        drop(TcpStream::connect(self.address));
        drop(accepting.join());
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop();
    }
}
