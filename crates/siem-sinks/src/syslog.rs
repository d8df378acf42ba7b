//! Syslog: RFC 5424 messages over TLS (RFC 5425) or TCP, framed by octet counting.
//!
//! The protocol has no acknowledgements. An entry counts as delivered when it has left a
//! [window](WindowSize) of the last bytes and seconds, and the receiver's system has acknowledged its
//! bytes, if [the system](TcpSystem) reports that. After a disconnect the other entries are sent again. So a reset
//! loses nothing that the systems on both sides buffer within the window, and repeats at most the window
//! and what was not acknowledged.

mod connection;
mod message;
mod window;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use siem_protocol::{
    BatchHeader,
    delivery::{Acknowledged, Delivery, EntryResult, Rest},
};

pub use self::{connection::TcpSystem, message::MIN_EVENT_BYTES, window::WindowSize};
use self::{
    connection::{Connection, Target},
    message::Format,
    window::Window,
};
use crate::{
    Batch, SiemSink,
    event::{Event, TimeOf},
    http::{causes, remedy},
};

/// Bytes encoded before they are written.
const WRITE_BYTES: usize = 64 << 10;

/// Time between two checks of an entry that is waited for.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Settings of the sink.
pub struct Settings {
    /// Host name or address of the receiver.
    pub host: String,
    /// Port of the receiver.
    pub port: u16,
    /// TLS configuration; `None` for plain TCP.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Facility from 0 to 23.
    pub facility: u8,
    /// Maximum size of a message in bytes, without the octet count; at least [`MIN_EVENT_BYTES`].
    pub max_event_bytes: usize,
    /// Time of a message.
    pub time: TimeOf,
    /// Maximum time to connect, for each write, and until the receiver's system acknowledges data.
    pub timeout: Duration,
    /// Size of the window.
    pub window: WindowSize,
    /// Functions of the operating system.
    pub system: Arc<dyn TcpSystem>,
}

/// Sends messages over one connection.
pub struct Syslog {
    settings: Settings,
    format: Format,
    open: Option<Open>,
    bytes_sent: u64,
}

/// An open connection, and what was written to it.
struct Open {
    connection: Connection,
    window: Window,
    /// Epoch of the entries in the window; `None` if there were none.
    epoch: Option<String>,
    /// Last moment at which the connection was known to be open. Only time before it makes an entry
    /// older: a reset is noticed when the connection is used again.
    alive_at: Instant,
}

impl Syslog {
    /// Creates the sink. It connects with the first batch.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let format = Format::new(settings.facility, settings.max_event_bytes, settings.time);
        Self { settings, format, open: None, bytes_sent: 0 }
    }

    /// Returns the open connection if the batch can be sent over it, or a new one.
    async fn open(&mut self, header: &BatchHeader) -> io::Result<Open> {
        // Numbers of another epoch are those of other entries. The window has no dead letters.
        let can_continue = |open: &Open| {
            header.redelivery || open.epoch.as_ref().is_none_or(|epoch| *epoch == header.epoch)
        };
        let mut open = match self.open.take().filter(can_continue) {
            Some(open) => open,
            None => Open {
                connection: connect(&self.settings, self.settings.timeout).await?,
                window: Window::new(self.settings.window),
                epoch: None,
                alive_at: Instant::now(),
            },
        };
        if !header.redelivery && open.epoch.is_none() {
            open.epoch = Some(header.epoch.clone());
        }
        Ok(open)
    }

    /// Writes the entries that are not in the window.
    async fn send(&mut self, open: &mut Open, batch: Batch<'_>) -> Result<(), Failed> {
        open.check().await?;
        let within = self.settings.timeout.max(batch.patience.unwrap_or_default());
        let mut buffer = Vec::new();
        for line in batch.entries() {
            let event = Event::of(line, batch.header, self.format.time())
                .map_err(|error| Failed::Entry(causes(&error)))?;
            let is_tracked = !batch.header.redelivery;
            if is_tracked && open.window.contains(event.entry.seq) {
                continue;
            }
            let start = buffer.len();
            self.format.write(&event, batch.header, &mut buffer);
            match buffer.len() - start {
                bytes if is_tracked => open.window.push(event.entry.seq, bytes),
                bytes => open.window.push_untracked(bytes),
            }
            if buffer.len() >= WRITE_BYTES {
                self.write(open, &mut buffer, within).await?;
            }
        }
        Ok(self.write(open, &mut buffer, within).await?)
    }

    async fn write(
        &mut self,
        open: &mut Open,
        buffer: &mut Vec<u8>,
        within: Duration,
    ) -> io::Result<()> {
        if !buffer.is_empty() {
            open.connection.write(buffer, within).await?;
            open.window.written(Instant::now(), open.connection.written());
            self.bytes_sent += buffer.len() as u64;
            buffer.clear();
            // If a later write fails, the entries that are acknowledged by now are not sent again.
            open.check().await?;
        }
        Ok(())
    }

    /// Delivers a dead letter again. It is not repeated after a disconnect, since its number belongs to
    /// an earlier time than those in the window: so the receiver's system must acknowledge it now.
    async fn redeliver(&mut self, mut open: Open, batch: Batch<'_>) -> Delivery {
        let sent = match self.send(&mut open, batch).await {
            Ok(()) => open.wait_until_acknowledged(self.settings.timeout).await,
            Err(Failed::Connection(error)) => Err(error),
            Err(Failed::Entry(reason)) => return Delivery::Hold { after: None, reason },
        };
        match sent {
            Ok(is_acknowledged) => {
                self.open = Some(open);
                if is_acknowledged {
                    return Delivery::Acknowledged;
                }
                let to = self.destination();
                let reason = format!("the system of `{to}` does not acknowledge what was sent");
                Delivery::Retry { after: None, reason }
            }
            Err(error) => delivery(vec![EntryResult::Undecided], self.failed(&error)),
        }
    }

    fn failed(&self, error: &io::Error) -> Rest {
        match self.describe(error) {
            (reason, true) => Rest::Hold { after: None, reason },
            (reason, false) => Rest::Retry { after: None, reason },
        }
    }

    fn describe(&self, error: &io::Error) -> (String, bool) {
        let to = self.destination();
        let reason = format!("connection to `{to}` failed: {}", causes(error));
        match remedy(error) {
            Some(remedy) => (format!("{reason}: {remedy}"), true),
            None => (reason, false),
        }
    }
}

impl Open {
    /// Updates what the receiver's system has acknowledged. Returns an error if the connection is closed.
    async fn check(&mut self) -> io::Result<()> {
        self.connection.check().await?;
        self.alive_at = Instant::now();
        self.window.acknowledged(self.connection.acknowledged());
        Ok(())
    }

    /// Waits until the receiver's system has acknowledged everything that was written. Returns false if
    /// it has not done so within a time.
    async fn wait_until_acknowledged(&mut self, within: Duration) -> io::Result<bool> {
        let start = Instant::now();
        while self.connection.acknowledged() < self.connection.written() {
            if start.elapsed() >= within {
                return Ok(false);
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
            self.check().await?;
        }
        Ok(true)
    }
}

async fn connect(settings: &Settings, within: Duration) -> io::Result<Connection> {
    let target = Target {
        host: &settings.host,
        port: settings.port,
        tls: settings.tls.as_ref(),
        system: &settings.system,
        dead_after: settings.timeout,
    };
    Connection::open(target, within).await
}

/// Reason why a batch was not sent.
enum Failed {
    Connection(io::Error),
    /// An entry cannot be read.
    Entry(String),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

/// Returns the results of the entries of `batch` that have left the window, which must be a prefix,
/// and removes them from it.
fn accepted(batch: Batch<'_>, window: &mut Window, now: Instant) -> Vec<EntryResult> {
    let seqs = batch.entries().map_while(seq_of);
    let left: Vec<u64> = seqs.take_while(|seq| window.has_left(*seq, now)).collect();
    if let Some(last) = left.last() {
        window.remove_up_to(*last);
    }
    let mut entries = vec![EntryResult::Accepted; left.len()];
    entries.resize(batch.entries().count(), EntryResult::Undecided);
    entries
}

fn seq_of(line: &[u8]) -> Option<u64> {
    /// The only member that is needed.
    #[derive(serde::Deserialize)]
    struct Numbered {
        seq: u64,
    }
    serde_json::from_slice::<Numbered>(line).ok().map(|entry| entry.seq)
}

/// Returns the delivery with `entries` and `rest`, or the one that `rest` describes if no entry is
/// decided.
fn delivery(entries: Vec<EntryResult>, rest: Rest) -> Delivery {
    if entries.iter().all(|entry| *entry == EntryResult::Accepted) {
        return Delivery::Acknowledged;
    }
    let is_decided = entries.first() == Some(&EntryResult::Accepted);
    match rest {
        Rest::Retry { after, reason } if !is_decided => Delivery::Retry { after, reason },
        Rest::Hold { after, reason } if !is_decided => Delivery::Hold { after, reason },
        rest => Delivery::PerEntry { entries, rest },
    }
}

impl SiemSink for Syslog {
    async fn deliver(&mut self, batch: Batch<'_>) -> Delivery {
        self.bytes_sent = 0;
        // If this future is dropped, the connection is closed: a message may be written in part.
        let mut open = match self.open(batch.header).await {
            Ok(open) => open,
            Err(error) => return delivery(vec![EntryResult::Undecided], self.failed(&error)),
        };
        if batch.header.redelivery {
            return self.redeliver(open, batch).await;
        }
        let sent = self.send(&mut open, batch).await;
        let now = open.alive_at;
        let entries = accepted(batch, &mut open.window, now);
        let rest = match sent {
            Ok(()) => {
                let recheck = open.window.until_next(now);
                self.open = Some(open);
                Rest::InTransit { recheck }
            }
            Err(Failed::Connection(error)) => self.failed(&error),
            Err(Failed::Entry(reason)) => Rest::Hold { after: None, reason },
        };
        delivery(entries, rest)
    }

    fn destination(&self) -> String {
        let Settings { host, port, tls, .. } = &self.settings;
        let scheme = if tls.is_some() { "tls" } else { "tcp" };
        format!("{scheme}://{host}:{port}")
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    fn acknowledged(&self) -> Acknowledged {
        Acknowledged::Nothing
    }

    async fn probe(&mut self, within: Duration) -> Result<String, String> {
        match connect(&self.settings, within).await {
            Ok(_) => Ok(format!("connected to {}", self.destination())),
            Err(error) => Err(self.describe(&error).0),
        }
    }

    /// Returns false: a syslog receiver says nothing about what it accepts.
    fn probe_is_proof(&self) -> bool {
        false
    }
}
