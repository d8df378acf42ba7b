//! Releases as a receiver serves them, with faults.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, BufReader, Write},
    net::{Ipv4Addr, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use siem_protocol::{
    Digest,
    update::{
        ArtifactName, Platform, Rollout, TrustedComment, UpdateManifest, UpdateRelease, Version,
    },
};

use crate::{
    accept::Acceptor,
    http_server::{Request, read_head},
    minisign::Minisign,
};

/// How one response with a file differs from an honest one.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The connection ends after this many bytes of the body.
    CutAfter(usize),
    /// No byte follows after this many.
    StallAfter(usize),
    /// One byte in each interval.
    Dribble(Duration),
    /// Only this status.
    Status(u16),
    /// Another part than requested.
    OtherRange,
    /// This many bytes more than the file has, without a length.
    Longer(usize),
}

/// A request for a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileRequest {
    pub range: Option<String>,
    pub if_range: Option<String>,
}

#[derive(Default)]
struct State {
    manifest: Option<Vec<u8>>,
    /// List that is offered once a file was requested.
    next_manifest: Option<Vec<u8>>,
    /// Secret that signs the list.
    secret: Option<String>,
    files: BTreeMap<String, (Vec<u8>, String)>,
    faults: VecDeque<Fault>,
    queries: Vec<String>,
    requests: Vec<FileRequest>,
}

/// The releases of a receiver.
#[derive(Clone, Default)]
pub struct Releases(Arc<Mutex<State>>);

/// Platform of this machine.
pub fn platform() -> Platform {
    Platform::new(std::env::consts::OS, std::env::consts::ARCH).unwrap()
}

/// Returns a release whose file is `program`, signed with `key` as that version for this platform.
pub fn release(version: &str, program: &[u8], key: &Minisign) -> UpdateRelease {
    let version: Version = version.parse().unwrap();
    let comment = TrustedComment { version: version.clone(), platform: platform() };
    UpdateRelease {
        artifact: ArtifactName::of(&version, &platform()),
        version,
        published_at: "2026-11-29T00:00:00Z".to_owned(),
        rollout: Rollout::ALL,
        size: program.len() as u64,
        sha256: Digest::of(program),
        minisig: Some(key.sign(program, &comment.to_string())),
    }
}

impl Releases {
    /// Offers these releases for this platform.
    pub fn offer(&self, releases: &[UpdateRelease]) {
        let manifest = UpdateManifest::new(&platform(), releases.to_vec());
        self.offer_text(manifest.to_json());
    }

    /// Offers these releases in place of the others once a file is requested.
    pub fn offer_after_download(&self, releases: &[UpdateRelease]) {
        let manifest = UpdateManifest::new(&platform(), releases.to_vec());
        self.state().next_manifest = Some(manifest.to_json());
    }

    /// Sends this text as the list of releases.
    pub fn offer_text(&self, text: impl Into<Vec<u8>>) {
        self.state().manifest = Some(text.into());
    }

    /// Signs lists of releases, if they are requested with a nonce.
    pub fn sign_with(&self, secret: &str) {
        self.state().secret = Some(secret.to_owned());
    }

    /// Serves the file of a release.
    pub fn serve(&self, release: &UpdateRelease, program: &[u8], etag: &str) {
        let etag = format!("\"{etag}\"");
        self.state().files.insert(release.artifact.to_string(), (program.to_vec(), etag));
    }

    /// Applies a fault to the next response with a file without one.
    pub fn fault(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    /// Returns the requests for files.
    pub fn requests(&self) -> Vec<FileRequest> {
        self.state().requests.clone()
    }

    /// Returns the queries of the requests for the list of releases.
    pub fn queries(&self) -> Vec<String> {
        self.state().queries.clone()
    }

    /// Answers a request below `/update/`.
    ///
    /// # Errors
    /// The connection must be closed.
    pub fn answer(&self, request: &Request, out: &mut impl Write) -> io::Result<()> {
        let header =
            |name| Some(request.header(name)).filter(|it| !it.is_empty()).map(str::to_owned);
        if request.path == "/update/manifest.json" {
            let (manifest, secret) = {
                let mut state = self.state();
                state.queries.push(request.query.clone());
                (state.manifest.clone(), state.secret.clone())
            };
            let Some(body) = manifest else { return respond(out, 404, "", b"") };
            let signed = secret.zip(header("x-siem-nonce")).map(|(secret, nonce)| {
                let signature = siem_protocol::sign_answer(secret.as_bytes(), &nonce, &body);
                format!("X-Siem-Signature: {signature}\r\n")
            });
            return respond(out, 200, &signed.unwrap_or_default(), &body);
        }
        let wanted = FileRequest { range: header("range"), if_range: header("if-range") };
        let (file, fault) = {
            let mut state = self.state();
            state.requests.push(wanted.clone());
            if let Some(next) = state.next_manifest.take() {
                state.manifest = Some(next);
            }
            let name = request.path.strip_prefix("/update/").unwrap_or_default();
            (state.files.get(name).cloned(), state.faults.pop_front())
        };
        let Some((file, etag)) = file else { return respond(out, 404, "", b"") };
        let is_same = wanted.if_range.is_none_or(|known| *known == etag);
        let start = wanted.range.filter(|_| is_same).map(|range| {
            let first = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
            first.and_then(|first| first.parse::<usize>().ok()).expect("a range to the end")
        });
        answer_file(out, &file, &etag, start, fault)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

fn answer_file(
    out: &mut impl Write,
    file: &[u8],
    etag: &str,
    start: Option<usize>,
    fault: Option<Fault>,
) -> io::Result<()> {
    let from = start.unwrap_or(0);
    let (body, last) = (&file[from..], file.len().saturating_sub(1));
    let sent_from =
        if matches!(fault, Some(Fault::OtherRange)) { from.saturating_sub(1) } else { from };
    let (status, range) = match start {
        Some(_) => (206, format!("Content-Range: bytes {sent_from}-{last}/{}\r\n", file.len())),
        None => (200, String::new()),
    };
    let closed = || Err(io::ErrorKind::ConnectionAborted.into());
    match fault {
        Some(Fault::Status(status)) => return respond(out, status, "", b""),
        Some(Fault::Longer(more)) => {
            let head = format!(
                "HTTP/1.1 {status} Answer\r\nETag: {etag}\r\n{range}Connection: close\r\n\r\n"
            );
            out.write_all(head.as_bytes())?;
            out.write_all(body)?;
            out.write_all(&vec![0; more])?;
            return closed();
        }
        _ => {}
    }
    let head = format!(
        "HTTP/1.1 {status} Answer\r\nETag: {etag}\r\n{range}Content-Length: {}\r\n\r\n",
        body.len()
    );
    out.write_all(head.as_bytes())?;
    match fault {
        Some(Fault::CutAfter(count)) => {
            out.write_all(&body[..count])?;
            out.flush()?;
            closed()
        }
        Some(Fault::StallAfter(count)) => {
            out.write_all(&body[..count])?;
            out.flush()?;
            loop {
                thread::park();
            }
        }
        Some(Fault::Dribble(interval)) => {
            for byte in body {
                out.write_all(&[*byte])?;
                out.flush()?;
                thread::park_timeout(interval);
            }
            Ok(())
        }
        _ => out.write_all(body),
    }
}

fn respond(out: &mut impl Write, status: u16, headers: &str, body: &[u8]) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Answer\r\nContent-Length: {length}\r\n{headers}\r\n");
    out.write_all(head.as_bytes())?;
    out.write_all(body)
}

/// A server with releases and nothing else. It stops when dropped.
pub struct ReleaseServer {
    acceptor: Acceptor,
    pub releases: Releases,
}

impl ReleaseServer {
    /// Starts a server without releases.
    pub fn start() -> Self {
        let releases = Releases::default();
        let shared = releases.clone();
        let acceptor = Acceptor::start((Ipv4Addr::LOCALHOST, 0), move |stream| {
            let releases = shared.clone();
            move || drop(serve(&stream, &releases))
        });
        Self { acceptor, releases }
    }

    /// Returns the URL of the endpoint.
    pub fn url(&self) -> String {
        format!("http://{}/", self.acceptor.address())
    }
}

fn serve(mut stream: &TcpStream, releases: &Releases) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_head(&mut reader) {
        releases.answer(&request, &mut stream)?;
    }
    Ok(())
}
