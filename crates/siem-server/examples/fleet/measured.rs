//! The measured server, as a separate process.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use serde_json::Value;

use crate::Outcome;

const TOKEN: &str = "0123456789abcdef";
const SECRET: &str = "fedcba9876543210";

pub(crate) struct Server {
    /// Time until it listens.
    pub(crate) start_ms: f64,
    address: String,
    child: Child,
    /// The last response. Kept, so that no request waits for the memory of its reader.
    response: Vec<u8>,
}

impl Server {
    pub(crate) fn start(program: &Path, core: Option<usize>, data: &Path) -> Outcome<Self> {
        let mut command = match core {
            Some(core) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(core.to_string()).arg(program);
                command
            }
            None => Command::new(program),
        };
        let begin = Instant::now();
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .env("CLAUDE_SIEM_TOKEN", TOKEN)
            .env("CLAUDE_SIEM_HMAC_SECRET", SECRET)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take();
        let mut server =
            Self { start_ms: 0.0, address: String::new(), child, response: Vec::new() };
        let mut line = String::new();
        BufReader::new(output.ok_or("a pipe is missing")?).read_line(&mut line)?;
        server.start_ms = milliseconds(begin);
        let address = line.trim().strip_prefix("listening on http://");
        server.address = address.ok_or_else(|| format!("the server said {line:?}"))?.to_owned();
        Ok(server)
    }

    /// Returns the median time of a request in milliseconds, until the last byte of its response.
    pub(crate) fn pages(&mut self, target: &str, requests: usize) -> Outcome<f64> {
        let mut times = Vec::with_capacity(requests);
        for _ in 0..requests {
            let begin = Instant::now();
            self.get(target)?;
            times.push(milliseconds(begin));
        }
        Ok(median(times))
    }

    /// Number of rows that the server shows in all.
    pub(crate) fn rows(&mut self) -> Outcome<u64> {
        let body: Value = serde_json::from_slice(self.get("/stats?limit=1")?)?;
        body["totals"]["rows"].as_u64().ok_or_else(|| "there are no totals".into())
    }

    /// Returns the body of a response.
    fn get(&mut self, target: &str) -> Outcome<&[u8]> {
        let mut stream = TcpStream::connect(&self.address)?;
        let head =
            format!("GET {target} HTTP/1.0\r\nHost: siem\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        self.response.clear();
        stream.read_to_end(&mut self.response)?;
        let answer = self.response.as_slice();
        let end = memchr::memmem::find(answer, b"\r\n\r\n").ok_or("the response is truncated")?;
        match answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200") {
            true => Ok(&answer[end + 4..]),
            false => Err(String::from_utf8_lossy(&answer[..end]).into_owned().into()),
        }
    }

    /// Highest memory of the process so far, in megabytes.
    pub(crate) fn peak_rss(&self) -> Outcome<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().trim_end_matches("kB").trim().parse().ok());
        let kilobytes: f64 = peak.ok_or("the system does not tell the memory of a process")?;
        Ok((kilobytes * 1.024 / 100.0).round() / 10.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Returns the median of times; 0 if there are none.
pub(crate) fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Returns the least of times; 0 if there are none.
pub(crate) fn least(times: Vec<f64>) -> f64 {
    times.into_iter().min_by(f64::total_cmp).unwrap_or_default()
}

fn milliseconds(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 10_000.0).round() / 10.0
}

/// Number and bytes of the files below a directory.
pub(crate) fn size(directory: &Path) -> io::Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    let mut waiting: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(next)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => waiting.push(entry.path()),
                false => (files, bytes) = (files + 1, bytes + entry.metadata()?.len()),
            }
        }
    }
    Ok((files, bytes))
}
