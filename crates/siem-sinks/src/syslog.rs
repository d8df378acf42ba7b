//! Syslog: RFC 5424 messages over TLS (RFC 5425) or TCP, framed by octet counting.
//!
//! The protocol has no acknowledgements. An entry counts as delivered when it has left a
//! [window](WindowSize) of the last bytes and seconds; after a disconnect the entries in the window are
//! sent again. So a reset loses nothing that the systems on both sides buffer within the window, and
//! repeats at most the window.

mod connection;
mod message;
mod window;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use siem_protocol::delivery::{Acknowledged, Delivery, EntryResult, Rest};

pub use self::window::WindowSize;
use self::{connection::Connection, message::Format, window::Window};
use crate::{
    Batch, SiemSink,
    event::{Event, TimeOf},
    http::{causes, remedy},
};

/// Bytes encoded before they are written.
const WRITE_BYTES: usize = 64 << 10;

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
    /// Maximum size of a message in bytes, without the octet count.
    pub max_event_bytes: usize,
    /// Time of a message.
    pub time: TimeOf,
    /// Maximum time to connect, and for each write.
    pub timeout: Duration,
    /// Size of the window.
    pub window: WindowSize,
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
    epoch: String,
}

impl Syslog {
    /// Creates the sink. It connects with the first batch.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let format = Format::new(settings.facility, settings.max_event_bytes, settings.time);
        Self { settings, format, open: None, bytes_sent: 0 }
    }

    /// Writes the entries that are not in the window, and returns the result for the batch. After an
    /// error the connection is closed by the caller.
    async fn send(&mut self, open: &mut Open, batch: Batch<'_>) -> Result<Delivery, Failed> {
        open.connection.check().await?;
        let within = self.settings.timeout.max(batch.patience.unwrap_or_default());
        let (mut seqs, mut buffer) = (Vec::new(), Vec::new());
        for line in batch.entries() {
            let event = Event::of(line, batch.header, self.format.time())
                .map_err(|error| Failed::Entry(causes(&error)))?;
            let seq = event.entry.seq;
            seqs.push(seq);
            if open.window.contains(seq) {
                continue;
            }
            let start = buffer.len();
            self.format.write(&event, batch.header, &mut buffer);
            open.window.push(seq, buffer.len() - start, Instant::now());
            if buffer.len() >= WRITE_BYTES {
                self.write(open, &mut buffer, within).await?;
            }
        }
        self.write(open, &mut buffer, within).await?;
        Ok(result(&seqs, &mut open.window, Instant::now()))
    }

    async fn write(
        &mut self,
        open: &mut Open,
        buffer: &mut Vec<u8>,
        within: Duration,
    ) -> io::Result<()> {
        if !buffer.is_empty() {
            open.connection.write(buffer, within).await?;
            self.bytes_sent += buffer.len() as u64;
            buffer.clear();
        }
        Ok(())
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

async fn connect(settings: &Settings, within: Duration) -> io::Result<Connection> {
    Connection::open(&settings.host, settings.port, settings.tls.as_ref(), within).await
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

/// Returns the result for the entries `seqs`, all of which were written.
fn result(seqs: &[u64], window: &mut Window, now: Instant) -> Delivery {
    let left = seqs.iter().take_while(|seq| window.has_left(**seq, now)).count();
    if let Some(last) = left.checked_sub(1) {
        window.remove_up_to(seqs[last]);
    }
    if left == seqs.len() {
        return Delivery::Acknowledged;
    }
    let mut entries = vec![EntryResult::Accepted; left];
    entries.resize(seqs.len(), EntryResult::Undecided);
    Delivery::PerEntry { entries, rest: Rest::InTransit { recheck: window.until_next(now) } }
}

impl SiemSink for Syslog {
    async fn deliver(&mut self, batch: Batch<'_>) -> Delivery {
        self.bytes_sent = 0;
        // If this future is dropped, the connection is closed: a message may be written in part.
        let open = self.open.take().filter(|open| open.epoch == batch.header.epoch);
        let open = match open {
            Some(open) => Ok(open),
            None => connect(&self.settings, self.settings.timeout).await.map(|connection| Open {
                connection,
                window: Window::new(self.settings.window),
                epoch: batch.header.epoch.clone(),
            }),
        };
        let failed = match open {
            Ok(mut open) => match self.send(&mut open, batch).await {
                Ok(delivery) => {
                    self.open = Some(open);
                    return delivery;
                }
                Err(failed) => failed,
            },
            Err(error) => Failed::Connection(error),
        };
        match failed {
            Failed::Entry(reason) => Delivery::Hold { after: None, reason },
            Failed::Connection(error) => match self.describe(&error) {
                (reason, true) => Delivery::Hold { after: None, reason },
                (reason, false) => Delivery::Retry { after: None, reason },
            },
        }
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
}
