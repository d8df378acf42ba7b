//! Statistics of the receiver: `GET /stats`, over a socket.

use std::{
    fmt,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde::{Deserialize, de::IgnoredAny};

use crate::Failure;

/// Timeout of a response.
const PATIENCE: Duration = Duration::from_secs(2);

/// Connection parameters of a receiver.
pub(super) struct Receiver {
    address: String,
    token: String,
}

/// Summary of the entries that the receiver holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    entries: u64,
    bytes: u64,
    duplicates: u64,
    gaps: usize,
    breaks: usize,
}

impl Receiver {
    pub(super) fn new(address: String, token: &str) -> Self {
        Self { address, token: token.to_owned() }
    }

    /// Requests the statistics.
    pub(super) fn health(&self) -> Result<Health, Failure> {
        let address: SocketAddr = self.address.parse()?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // With HTTP/1.0 the response comes in one piece and ends with the connection.
        let request = format!(
            "GET /stats HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer {}\r\n\r\n",
            self.token
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        read(&answer)
    }
}

/// Parses a response, head and body.
fn read(answer: &[u8]) -> Result<Health, Failure> {
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let head = head.ok_or("the response is truncated")?;
    let (head, body) = (String::from_utf8_lossy(&answer[..head]), &answer[head + 4..]);
    let mut words = head.split_ascii_whitespace().skip(1);
    match words.next() {
        Some("200") => Ok(serde_json::from_slice::<Stats>(body)?.health()),
        status => {
            Err(format!("the receiver responded with {}", status.unwrap_or("nothing")).into())
        }
    }
}

#[derive(Deserialize)]
struct Stats {
    machines: Vec<Machine>,
}

#[derive(Deserialize)]
struct Machine {
    entries: u64,
    bytes: u64,
    epochs: Vec<Epoch>,
}

#[derive(Deserialize)]
struct Epoch {
    duplicates: u64,
    gaps: Vec<IgnoredAny>,
    breaks: Vec<IgnoredAny>,
}

impl Stats {
    fn health(&self) -> Health {
        let epochs = || self.machines.iter().flat_map(|machine| &machine.epochs);
        Health {
            entries: self.machines.iter().map(|machine| machine.entries).sum(),
            bytes: self.machines.iter().map(|machine| machine.bytes).sum(),
            duplicates: epochs().map(|epoch| epoch.duplicates).sum(),
            gaps: epochs().map(|epoch| epoch.gaps.len()).sum(),
            breaks: epochs().map(|epoch| epoch.breaks.len()).sum(),
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entries, bytes, duplicates, gaps, breaks } = self;
        let size = size(*bytes);
        write!(f, "stored {entries} entries, {size}; ")?;
        if (*duplicates, *gaps, *breaks) == (0, 0, 0) {
            f.write_str("nothing twice, no gap, chain whole")
        } else {
            write!(f, "{duplicates} came twice, {gaps} gaps, {breaks} breaks of the chain")
        }
    }
}

/// Formats bytes for people.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            let digits = usize::from(unit != "B");
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = r#"{"machines":[{"identity":{},"last_seen":"","entries":5,"bytes":2048,
        "clones":[],"epochs":[{"epoch":"e","duplicates":2,"gaps":[[3,4]],"breaks":[]}]}]}"#;

    #[test]
    fn machines_and_epochs_are_summed_up() {
        let answer = format!("HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{BODY}");
        let health = read(answer.as_bytes()).unwrap();
        let expected = Health { entries: 5, bytes: 2048, duplicates: 2, gaps: 1, breaks: 0 };
        assert_eq!(health, expected);
        let text = "stored 5 entries, 2.0 KiB; 2 came twice, 1 gaps, 0 breaks of the chain";
        assert_eq!(health.to_string(), text);
    }

    #[test]
    fn response_without_machines_has_no_faults() {
        let health = read(b"HTTP/1.1 200 OK\r\n\r\n{\"machines\":[]}").unwrap();
        let text = "stored 0 entries, 0 B; nothing twice, no gap, chain whole";
        assert_eq!(health.to_string(), text);
    }

    #[test]
    fn other_responses_are_errors() {
        let message = |answer: &[u8]| read(answer).unwrap_err().to_string();
        assert_eq!(
            message(b"HTTP/1.0 401 Unauthorized\r\n\r\n{}"),
            "the receiver responded with 401"
        );
        assert_eq!(message(b"HTTP/1.0 200 OK\r\n"), "the response is truncated");
    }

    #[test]
    fn sizes_have_units() {
        let sizes = [0, 1023, 1024, 1_572_864, 5 << 30].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "5.0 GiB"]);
    }
}
