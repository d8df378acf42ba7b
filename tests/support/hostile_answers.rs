//! Responses that no receiver should send, written to a connection of the agent.

use std::{
    io::{self, Write as _},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;

use super::{answer_late, middle::Takeover};

/// After this number of bytes an endless response ends.
const MOST: u64 = 1 << 30;
/// Longest time that a write waits for the agent, so that the end of the case is noticed.
const WRITE_TIMEOUT: Duration = Duration::from_millis(50);
/// Pause between the bytes of a slow response.
const PAUSE: Duration = Duration::from_millis(20);

/// A kind of response.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// True if it is sent before the request has been read.
    pub(crate) is_early: bool,
    /// True if the agent waits for its end, up to the timeout of the request.
    pub(crate) is_slow: bool,
    play: fn(&mut Wire) -> io::Result<()>,
}

impl Kind {
    /// Returns a function that plays the response, with choices from `seed`, until `is_over`.
    pub(crate) fn takeover(self, seed: u64, is_over: &Arc<AtomicBool>) -> Takeover {
        let is_over = Arc::clone(is_over);
        Arc::new(move |stream: TcpStream| {
            let wire = Wire::new(stream, Rng::with_seed(seed), Arc::clone(&is_over));
            // The agent may close the connection at any moment.
            drop(wire.and_then(|mut wire| (self.play)(&mut wire)));
        })
    }
}

const fn kind(name: &'static str, play: fn(&mut Wire) -> io::Result<()>) -> Kind {
    Kind { name, is_early: false, is_slow: false, play }
}

const fn slow(name: &'static str, play: fn(&mut Wire) -> io::Result<()>) -> Kind {
    Kind { is_slow: true, ..kind(name, play) }
}

const fn early(name: &'static str, play: fn(&mut Wire) -> io::Result<()>) -> Kind {
    Kind { is_early: true, ..kind(name, play) }
}

/// All kinds.
pub(crate) const KINDS: &[Kind] = &[
    kind("endless status line", |wire| {
        wire.send(b"HTTP/1.1 200 ")?;
        wire.endless(|random| random_text(random, 4096))
    }),
    kind("endless headers", |wire| {
        wire.send(b"HTTP/1.1 200 OK\r\n")?;
        wire.endless(|random| {
            [&*random_text(random, 20), b": ", &*random_text(random, 99), b"\r\n"].concat()
        })
    }),
    kind("endless header", |wire| {
        wire.send(b"HTTP/1.1 200 OK\r\nX-Long: ")?;
        wire.endless(|random| random_text(random, 4096))
    }),
    slow("endless body", |wire| {
        wire.head(200, "")?;
        wire.endless(|random| random_text(random, 64 << 10))
    }),
    slow("endless body of an error", |wire| {
        let status = *wire.pick(&[400, 401, 403, 404, 409, 413, 422, 429, 500, 503]);
        wire.head(status, "")?;
        wire.endless(|random| random_text(random, 64 << 10))
    }),
    slow("endless white space", |wire| {
        wire.head(200, "")?;
        wire.endless(|_| vec![b' '; 64 << 10])
    }),
    slow("endless chunks", |wire| {
        wire.head(200, "Transfer-Encoding: chunked\r\n")?;
        wire.endless(|_| b"1\r\n{\r\n".repeat(512))
    }),
    kind("endless chunk size", |wire| {
        wire.head(200, "Transfer-Encoding: chunked\r\n")?;
        wire.endless(|_| vec![b'0'; 4096])
    }),
    kind("endless chunk extension", |wire| {
        wire.head(200, "Transfer-Encoding: chunked\r\n")?;
        wire.send(b"1;")?;
        wire.endless(|random| random_text(random, 4096))
    }),
    kind("endless trailers", |wire| {
        wire.head(200, "Transfer-Encoding: chunked\r\n")?;
        wire.send(b"2\r\n{}\r\n0\r\n")?;
        wire.endless(|random| [&*random_text(random, 20), b": x\r\n"].concat())
    }),
    kind("wrong chunk size", |wire| {
        let sizes =
            ["ffffffffffffffff", "fffffffffffffffff", "-1", "0x10", "", "zz", "7fffffffffffffff"];
        let size = *wire.pick(&sizes);
        wire.head(200, "Transfer-Encoding: chunked\r\n")?;
        wire.send(format!("{size}\r\n{{}}\r\n0\r\n\r\n").as_bytes())
    }),
    slow("dribbled head", |wire| {
        wire.dribble(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\nX-C: d\r\n\r\n{}")
    }),
    slow("dribbled body", |wire| {
        wire.head(200, "Content-Length: 100000\r\n")?;
        wire.dribble(b"{\"last_seq\": ")
    }),
    slow("dribbled interim responses", |wire| wire.dribble(b"HTTP/1.1 102 Processing\r\n\r\n")),
    kind("flood of interim responses", |wire| {
        let status = *wire.pick(&[100, 102, 103, 199]);
        wire.endless(|_| format!("HTTP/1.1 {status} Wait\r\nLink: </a>\r\n\r\n").repeat(64).into())
    }),
    kind("switched protocol", |wire| {
        wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        )?;
        wire.garbage()
    }),
    kind("bomb of gzip", |wire| {
        let bomb = gzip_bomb();
        wire.body(200, "Content-Encoding: gzip\r\n", &bomb)
    }),
    kind("bomb of zstd", |wire| {
        let bomb = zstd::encode_all(&vec![b' '; 8 << 20][..], 1)?.repeat(64);
        wire.body(200, "Content-Encoding: zstd\r\n", &bomb)
    }),
    kind("wrong encoding", |wire| {
        let encoding =
            *wire.pick(&["gzip", "br", "deflate", "zstd", "x", "gzip, gzip, gzip, gzip"]);
        wire.body(200, &format!("Content-Encoding: {encoding}\r\n"), b"{\"last_seq\":0}")
    }),
    slow("longer than its content", |wire| {
        let length = *wire.pick(&["15", "1000000", "18446744073709551615", "9223372036854775807"]);
        wire.head(200, &format!("Content-Length: {length}\r\n"))?;
        wire.send(b"{\"last_seq\":0}")?;
        wire.hold()
    }),
    kind("truncated body", |wire| {
        wire.head(200, "Content-Length: 1000\r\n")?;
        wire.send(b"{\"last_seq\":")
    }),
    kind("shorter than its content", |wire| {
        wire.head(200, "Content-Length: 3\r\n")?;
        wire.send(b"{\"last_seq\":0} and more")
    }),
    kind("invalid length", |wire| {
        let lengths =
            ["-1", "99999999999999999999999", "two", "1, 2", "+5", "0x5", "1\r\nContent-Length: 2"];
        let length = *wire.pick(&lengths);
        wire.head(200, &format!("Content-Length: {length}\r\n"))?;
        wire.send(b"{\"last_seq\":0}")
    }),
    kind("length and chunks", |wire| {
        wire.head(200, "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n")?;
        wire.send(b"e\r\n{\"last_seq\":0}\r\n0\r\n\r\n")
    }),
    kind("second response", |wire| {
        // An acknowledgement that the agent could take for that of the next batch.
        let last = wire.random.u32(..);
        let body = format!("{{\"last_seq\":{last},\"accepted\":1,\"duplicates\":0}}");
        let length = body.len();
        let head = format!(
            "HTTP/1.1 503 Wait\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        wire.send(head.as_bytes())?;
        wire.hold()
    }),
    kind("redirect", |wire| {
        let targets = [
            "/ingest",
            "/",
            "",
            "//",
            "http://127.0.0.1:1/",
            "http://[::1]:1/ingest",
            "file:///etc/passwd",
            "ftp://127.0.0.1/",
            "javascript:1",
            "http://169.254.169.254/latest/",
            "\\\\host\\share",
            "http://",
            "https://user:pass@127.0.0.1:1/",
        ];
        let (status, target) =
            (*wire.pick(&[300, 301, 302, 303, 304, 307, 308, 399]), *wire.pick(&targets));
        wire.body(status, &format!("Location: {target}\r\n"), b"")
    }),
    kind("retry far away", |wire| {
        let values = [
            "99999999999999999999",
            "18446744073709551615",
            "-5",
            "1e9",
            "Fri, 31 Dec 9999 23:59:59 GMT",
            "Thu, 01 Jan 1970 00:00:00 GMT",
            "soon",
            "",
            "\u{1f4a3}",
            "3600\r\nRetry-After: 7200",
        ];
        let (status, value) = (*wire.pick(&[429, 503, 500, 413, 200]), *wire.pick(&values));
        wire.body(status, &format!("Retry-After: {value}\r\n"), b"")
    }),
    kind("any status", |wire| {
        let status = wire.random.u16(100..600);
        wire.body(status, "", b"{}")
    }),
    kind("invalid status line", |wire| {
        let lines = [
            "HTTP/1.1 000 Zero",
            "HTTP/1.1 999 Nines",
            "HTTP/1.1 9999 X",
            "HTTP/1.1 2xx OK",
            "HTTP/1.1 -200 OK",
            "HTTP/1.1",
            "HTTP/9.9 200 OK",
            "HTTP/0.9 200 OK",
            "http/1.1 200 ok",
            "ICY 200 OK",
            "HTTP/1.1\t200\tOK",
            "HTTP/1.1  200 OK",
            "\0",
            "200 OK",
            "HTTP/2 200",
        ];
        let line = *wire.pick(&lines);
        wire.send(format!("{line}\r\nContent-Length: 14\r\n\r\n{{\"last_seq\":0}}").as_bytes())
    }),
    kind("invalid header", |wire| {
        let headers = [
            "no colon",
            ": no name",
            "Spaced : x",
            "X: \0",
            "X: a\rb",
            "X: one\r\n folded",
            "X\u{fc}: x",
            "\r: x",
            "Content-Type: \u{7f}",
            "Set-Cookie: a=b; Domain=127.0.0.1",
            "Connection: keep-alive, close",
        ];
        let header = *wire.pick(&headers);
        wire.body(200, &format!("{header}\r\n"), b"{\"last_seq\":0}")
    }),
    kind("bare line feeds", |wire| {
        wire.send(b"HTTP/1.1 200 OK\nContent-Length: 14\n\n{\"last_seq\":0}")
    }),
    kind("no head", |wire| wire.send(b"{\"last_seq\":0}")),
    kind("HTTP/1.0", |wire| wire.send(b"HTTP/1.0 200 OK\r\n\r\n{\"last_seq\":0}")),
    kind("HTTP/2", |wire| {
        wire.send(b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80\0\x04\0\x01\0\0\0\x05\0\xff\xff\xff\0\0\x08\x07\0\0\0\0\0")?;
        wire.garbage()
    }),
    kind("TLS", |wire| wire.send(b"\x15\x03\x03\x00\x02\x02\x28")),
    kind("garbage", Wire::garbage),
    kind("page for people", |wire| {
        wire.body(200, "", b"<!DOCTYPE html><title>Sign in</title><form action=/login>")
    }),
    kind("NUL in JSON", |wire| {
        let bodies: [&[u8]; 4] = [
            b"{\"last_seq\":0,\"x\":\"\0\"}",
            b"\0{\"last_seq\":0}",
            b"{\"last_seq\":0}\0",
            b"{\"last_seq\\u0000\":0}",
        ];
        let body = *wire.pick(&bodies);
        wire.body(200, "", body)
    }),
    kind("deeply nested JSON", |wire| {
        let depth = wire.random.usize(100..400_000);
        let open = *wire.pick(&["[", "{\"last_seq\":", "{\"detail\":["]);
        let status = *wire.pick(&[200, 422]);
        wire.body(status, "", open.repeat(depth).as_bytes())
    }),
    kind("extreme numbers in JSON", |wire| {
        let numbers = [
            "-1",
            "1e400",
            "0.5",
            "\"1\"",
            "null",
            "18446744073709551616",
            "-0",
            "[1]",
            "true",
            "1E-5",
        ];
        let number = *wire.pick(&numbers);
        wire.body(200, "", format!("{{\"last_seq\":{number},\"accepted\":{number}}}").as_bytes())
    }),
    kind("duplicate members in JSON", |wire| {
        wire.body(200, "", b"{\"last_seq\":0,\"last_seq\":\"x\",\"receipt\":1,\"receipt\":null}")
    }),
    kind("invalid UTF-8 in JSON", |wire| {
        wire.body(200, "", b"{\"last_seq\":0,\"receipt\":\"\xff\xfe\xed\xa0\x80\"}")
    }),
    kind("large JSON", |wire| {
        let status = *wire.pick(&[200, 400, 409, 422]);
        let mut body = b"{\"x\":[".to_vec();
        body.extend_from_slice(&b"[],".repeat(1 << 20));
        body.extend_from_slice(b"0],\"last_seq\":0}");
        wire.body(status, "", &body)
    }),
    kind("forged refusal", |wire| {
        let status = *wire.pick(&[400, 401, 403, 409, 413, 422]);
        let kinds = [
            "device-revoked",
            "device-cloned",
            "conflict",
            "too-large",
            "entry",
            "not-enrolled",
            "seal",
            "x",
        ];
        let kind = *wire.pick(&kinds);
        let body = format!(
            "{{\"type\":\"urn:ai-agent:{kind}\",\"title\":\"\\u001b[2J\",\"detail\":\"{}\",\
             \"expected_seq\":18446744073709551615,\"verdict\":\"{}\"}}",
            "x".repeat(wire.random.usize(..100_000)),
            "A".repeat(wire.random.usize(..100_000))
        );
        wire.body(status, "", body.as_bytes())
    }),
    kind("closed after the request", |_| Ok(())),
    kind("reset after the request", Wire::reset),
    kind("reset in the body", |wire| {
        wire.head(200, "Content-Length: 100\r\n")?;
        wire.send(b"{\"last")?;
        wire.reset()
    }),
    kind("half closed after the request", |wire| {
        wire.stream.shutdown(Shutdown::Write)?;
        wire.hold()
    }),
    slow("silence after the request", Wire::hold),
    early("closed at once", |_| Ok(())),
    early("reset at once", Wire::reset),
    early("half closed at once", |wire| {
        wire.stream.shutdown(Shutdown::Write)?;
        wire.hold()
    }),
    early("response before the request", |wire| {
        wire.body(200, "", b"{\"last_seq\":0}")?;
        wire.hold()
    }),
    early("garbage at once", Wire::garbage),
    Kind { is_slow: true, ..early("silence at once", Wire::hold) },
];

/// A connection of the agent.
struct Wire {
    stream: TcpStream,
    random: Rng,
    is_over: Arc<AtomicBool>,
    sent: u64,
}

impl Wire {
    fn new(stream: TcpStream, random: Rng, is_over: Arc<AtomicBool>) -> io::Result<Self> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        Ok(Self { stream, random, is_over, sent: 0 })
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.random.usize(..from.len())]
    }

    /// Sends bytes, until the end of the case.
    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.is_over.load(Ordering::Relaxed) || self.sent > MOST {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match self.stream.write(bytes) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    self.sent += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends a head with further headers, each with its line ending.
    fn head(&mut self, status: u16, headers: &str) -> io::Result<()> {
        let head =
            format!("HTTP/1.1 {status} Answer\r\nContent-Type: application/json\r\n{headers}\r\n");
        self.send(head.as_bytes())
    }

    /// Sends a whole response.
    fn body(&mut self, status: u16, headers: &str, body: &[u8]) -> io::Result<()> {
        self.head(status, &format!("Content-Length: {}\r\n{headers}", body.len()))?;
        self.send(body)
    }

    fn endless(&mut self, mut piece: impl FnMut(&mut Rng) -> Vec<u8>) -> io::Result<()> {
        loop {
            let piece = piece(&mut self.random);
            self.send(&piece)?;
        }
    }

    /// Sends these bytes again and again, one at a time.
    fn dribble(&mut self, bytes: &[u8]) -> io::Result<()> {
        for byte in bytes.iter().cycle() {
            self.send(&[*byte])?;
            answer_late(PAUSE);
        }
        Ok(())
    }

    fn garbage(&mut self) -> io::Result<()> {
        let length = self.random.usize(1..100_000);
        let bytes: Vec<u8> = (0..length).map(|_| self.random.u8(..)).collect();
        self.send(&bytes)
    }

    /// Keeps the connection open until the case ends.
    fn hold(&mut self) -> io::Result<()> {
        while !self.is_over.load(Ordering::Relaxed) {
            answer_late(PAUSE);
        }
        Ok(())
    }

    /// Ends the connection as a crash of the machine does.
    fn reset(&mut self) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO))?)
    }
}

/// Returns letters and digits.
fn random_text(random: &mut Rng, length: usize) -> Vec<u8> {
    (0..length).map(|_| random.alphanumeric() as u8).collect()
}

/// Returns 512 MiB of white space as half a megabyte.
fn gzip_bomb() -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let piece = vec![b' '; 1 << 20];
    let mut member = Vec::new();
    for _ in 0..8 {
        encoder.write_all(&piece).expect("a vector takes everything");
    }
    member.extend(encoder.finish().expect("a vector takes everything"));
    member.repeat(64)
}
