//! A receiver that answers by a script and checks every request against the protocol, without any
//! code of the real receiver.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use serde_json::json as value;
use siem_protocol::{BatchHeader, Digest, json};
use test_support::accept::Acceptor;

use super::{
    SECRET, TOKEN, answer_late,
    entries::{self, StoredEntry},
    http_server::{Request, read_body, read_head},
    release_server::Releases,
};

/// Reaction to a batch.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Stores the batch and sends a receipt.
    Receipt,
    /// Sends this status with these headers and this body, and stores nothing.
    Status(u16, &'static [(&'static str, &'static str)], &'static str),
    /// Closes the connection without a response.
    Close,
    /// Stores the batch and closes the connection without a response.
    StoreAndClose,
    /// Stores the batch and resets the connection.
    StoreAndReset,
    /// Stores the batch and closes the connection in the middle of the receipt.
    StoreAndTruncateReceipt,
    /// Stores the batch and acknowledges a number this far above or below its last one.
    StoreAndAcknowledge(i64),
    /// Stores the batch after this delay.
    After(Duration),
    /// Sends no response and does not read the body.
    HangBeforeBody,
    /// Sends no response and stores nothing.
    Hang,
}

/// A valid batch, for a rule that depends on its content.
pub(crate) struct OfferedBatch<'a> {
    /// Sequence number and line, with its newline, of each entry.
    pub(crate) lines: &'a [(u64, Vec<u8>)],
}

impl OfferedBatch<'_> {
    /// Reports whether any line contains `text`.
    pub(crate) fn holds(&self, text: &str) -> bool {
        let holds = |line: &[u8]| String::from_utf8_lossy(line).contains(text);
        self.lines.iter().any(|(_, line)| holds(line))
    }
}

/// Response to a request for the managed configuration.
#[derive(Clone, Debug, Default)]
pub(crate) enum ConfigResponse {
    /// 404.
    #[default]
    Nothing,
    /// This configuration, signed with this secret; 304 to a client that has it.
    Signed(String, &'static str),
    /// This configuration, signed with this secret, and the text of the organisation's signature.
    Organisation(String, String, &'static str),
    /// These bytes, signed with [`SECRET`].
    SignedBytes(Vec<u8>),
    /// This configuration without a signature.
    Unsigned(String),
    /// The first response again, including its signature.
    Replayed,
    /// This status without a body.
    Status(u16),
    /// No response.
    Hangs,
}

type Rule = Box<dyn FnMut(&OfferedBatch<'_>) -> Answer + Send>;

/// The receiver. It stops when dropped, and the test fails if a request violated the protocol.
pub(crate) struct ScriptedReceiver {
    acceptor: Acceptor,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    script: VecDeque<Answer>,
    /// Rule that applies after the script.
    rule: Option<Rule>,
    /// Digest of each entry when it was first sent, stored or not.
    offered: BTreeMap<(String, u64), Digest>,
    /// Number of lines that were sent again after they had been stored.
    doubled: usize,
    config: ConfigResponse,
    /// The first managed configuration that was served, with its signature.
    first_config: Option<(Vec<u8>, String)>,
    taken: Vec<u8>,
    headers: Vec<BatchHeader>,
    encodings: Vec<String>,
    last_seq: u64,
    chain: Digest,
    requests: usize,
    config_requests: usize,
    config_versions: Vec<String>,
    wrong: Vec<String>,
    releases: Releases,
}

impl ScriptedReceiver {
    /// Starts a receiver that answers by `script`, and with receipts after that.
    pub(crate) fn start(script: impl IntoIterator<Item = Answer>) -> Self {
        Self::on(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), script)
    }

    /// Starts a receiver that answers by the content of a batch.
    pub(crate) fn by_rule(rule: impl FnMut(&OfferedBatch<'_>) -> Answer + Send + 'static) -> Self {
        let receiver = Self::start([]);
        receiver.state().rule = Some(Box::new(rule));
        receiver
    }

    /// Like [`ScriptedReceiver::start`], on a free address.
    pub(crate) fn on(address: SocketAddr, script: impl IntoIterator<Item = Answer>) -> Self {
        let state = State { script: script.into_iter().collect(), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let acceptor = Acceptor::start(address, move |stream| {
            let shared = Arc::clone(&shared);
            move || serve(stream, &shared)
        });
        Self { acceptor, state }
    }

    /// Serves this managed configuration, signed with `secret`.
    pub(crate) fn manages(self, config: &str, secret: &'static str) -> Self {
        self.manage(ConfigResponse::Signed(config.to_owned(), secret));
        self
    }

    /// Changes the response to requests for the managed configuration.
    pub(crate) fn manage(&self, config: ConfigResponse) {
        self.state().config = config;
    }

    /// Returns the releases that it serves.
    pub(crate) fn releases(&self) -> Releases {
        self.state().releases.clone()
    }

    /// Endpoint for agents.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.acceptor.address())
    }

    /// Port on this machine.
    pub(crate) fn port(&self) -> u16 {
        self.acceptor.address().port()
    }

    /// Accepts every batch from now on.
    pub(crate) fn accept_everything(&self) {
        let mut state = self.state();
        state.script.clear();
        state.rule = None;
    }

    /// Number of lines that were sent again after they had been stored.
    pub(crate) fn doubled(&self) -> usize {
        self.state().doubled
    }

    /// Returns the stored entries in the order of their arrival.
    #[track_caller]
    pub(crate) fn entries(&self) -> Vec<StoredEntry> {
        let taken = self.state().taken.clone();
        entries::parse(&taken)
    }

    /// Returns the stored lines.
    pub(crate) fn taken(&self) -> Vec<u8> {
        self.state().taken.clone()
    }

    /// Returns the headers of the stored batches.
    pub(crate) fn headers(&self) -> Vec<BatchHeader> {
        self.state().headers.clone()
    }

    /// Returns the encodings of the stored batches.
    pub(crate) fn encodings(&self) -> Vec<String> {
        self.state().encodings.clone()
    }

    /// Number of batches that arrived, stored or not.
    pub(crate) fn requests(&self) -> usize {
        self.state().requests
    }

    /// Number of requests for the managed configuration.
    pub(crate) fn config_requests(&self) -> usize {
        self.state().config_requests
    }

    /// Returns the managed configuration that each request declared, in order.
    pub(crate) fn config_versions(&self) -> Vec<String> {
        self.state().config_versions.clone()
    }

    /// Returns the violations of the protocol so far.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.state().wrong.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for ScriptedReceiver {
    fn drop(&mut self) {
        self.acceptor.stop();
        if !thread::panicking() {
            let wrong = self.wrong();
            assert!(wrong.is_empty(), "requests broke the protocol: {wrong:#?}");
        }
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some(mut request) = read_head(&mut reader) {
        let Request { method, path, query, .. } = &request;
        let target = format!("{method} {path}{}{query}", if query.is_empty() { "" } else { "?" });
        let is_batch = target == "POST /ingest";
        let scripted = if is_batch { state.lock().unwrap().script.pop_front() } else { None };
        if matches!(scripted, Some(Answer::HangBeforeBody)) {
            state.lock().unwrap().requests += 1;
            hang();
        }
        let Some(body) = read_body(&mut reader, &request) else { return };
        request.raw_body = body;
        if request.path.starts_with("/update/") {
            let releases = state.lock().unwrap().releases.clone();
            match releases.answer(&request, &mut writer) {
                Ok(()) => continue,
                Err(_) => return,
            }
        }
        let version = request.header("x-siem-config-version").to_owned();
        state.lock().unwrap().config_versions.push(version);
        let (status, headers, body) = if is_batch {
            match ingest(&request, scripted, state) {
                Done::Reply((status, headers, body)) => {
                    let owned = |(name, value): &(&str, &str)| format!("{name}: {value}\r\n");
                    (status, headers.iter().map(owned).collect(), body.into_bytes())
                }
                Done::Half(body) => {
                    let head = "HTTP/1.1 200 Answer\r\nContent-Length: 4711\r\n\r\n";
                    drop(writer.write_all(head.as_bytes()));
                    drop(writer.write_all(&body.as_bytes()[..body.len() / 2]));
                    return;
                }
                Done::Close => return,
                Done::Reset => return reset(&writer),
                Done::Hang => hang(),
            }
        } else if target == "GET /config" {
            if matches!(state.lock().unwrap().config, ConfigResponse::Hangs) {
                hang();
            }
            config(&request, &mut state.lock().unwrap())
        } else if target == "GET /keys" {
            (404, String::new(), Vec::new())
        } else {
            state.lock().unwrap().wrong.push(format!("asked for {target}"));
            (404, String::new(), Vec::new())
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} Answer\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n{headers}\r\n"
        );
        if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body)).is_err() {
            return;
        }
    }
}

/// Keeps the connection open and silent until the test ends.
fn hang() -> ! {
    loop {
        thread::park();
    }
}

/// Ends the connection as a crash of the machine does: the other side sees a reset.
#[cfg(unix)]
fn reset(stream: &TcpStream) {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}

#[cfg(not(unix))]
fn reset(_: &TcpStream) {}

fn config(request: &Request, state: &mut State) -> (u16, String, Vec<u8>) {
    state.config_requests += 1;
    let nonce = request.header("x-siem-nonce");
    if nonce.len() != 32 || request.header("authorization") != format!("Bearer {TOKEN}") {
        state.wrong.push(format!("asked for the configuration with nonce {nonce:?}"));
    }
    let mut minisig = String::new();
    let (body, secret) = match state.config.clone() {
        ConfigResponse::Nothing | ConfigResponse::Hangs => return (404, String::new(), Vec::new()),
        ConfigResponse::Status(status) => return (status, String::new(), Vec::new()),
        ConfigResponse::Unsigned(body) => return (200, String::new(), body.into_bytes()),
        ConfigResponse::Replayed => {
            let (body, signature) = state.first_config.clone().unwrap();
            return (200, format!("X-Siem-Signature: {signature}\r\n"), body);
        }
        ConfigResponse::Signed(body, secret) => (body.into_bytes(), secret),
        ConfigResponse::SignedBytes(body) => (body, SECRET),
        ConfigResponse::Organisation(body, text, secret) => {
            let base64 = data_encoding::BASE64.encode(text.as_bytes());
            minisig = format!("X-Siem-Policy-Signature: {base64}\r\n");
            (body.into_bytes(), secret)
        }
    };
    let etag = format!("\"{}\"", Digest::of(&body));
    let is_known = request.header("if-none-match") == etag;
    let (status, body) = if is_known { (304, Vec::new()) } else { (200, body) };
    let signature = siem_protocol::sign_answer(secret.as_bytes(), nonce, &body);
    if !is_known {
        state.first_config.get_or_insert((body.clone(), signature.clone()));
    }
    (status, format!("ETag: {etag}\r\nX-Siem-Signature: {signature}\r\n{minisig}"), body)
}

type Reply = (u16, &'static [(&'static str, &'static str)], String);

/// Outcome of a batch for its connection.
enum Done {
    Reply(Reply),
    Half(String),
    Close,
    Reset,
    Hang,
}

/// Checks a batch and chooses the response.
fn ingest(request: &Request, scripted: Option<Answer>, state: &Mutex<State>) -> Done {
    let mut held = state.lock().unwrap();
    held.requests += 1;
    let batch = match check(request, &held) {
        Ok(batch) => batch,
        Err(wrong) => {
            held.wrong.push(wrong);
            return Done::Reply((400, &[], String::new()));
        }
    };
    held.offer(&batch);
    let offered = OfferedBatch { lines: &batch.lines };
    let answer = scripted.unwrap_or_else(|| match &mut held.rule {
        Some(rule) => rule(&offered),
        None => Answer::Receipt,
    });
    let last_seq = batch.header.last_seq.unwrap();
    let receipt = |last_seq| value!({ "last_seq": last_seq, "accepted": 0 }).to_string();
    match answer {
        Answer::Status(status, headers, body) => Done::Reply((status, headers, body.to_owned())),
        Answer::Close => Done::Close,
        Answer::Hang | Answer::HangBeforeBody => Done::Hang,
        Answer::Receipt => {
            held.take(batch);
            Done::Reply((200, &[], receipt(last_seq)))
        }
        Answer::StoreAndAcknowledge(more) => {
            held.take(batch);
            Done::Reply((200, &[], receipt(last_seq.saturating_add_signed(more))))
        }
        Answer::StoreAndClose => {
            held.take(batch);
            Done::Close
        }
        Answer::StoreAndReset => {
            held.take(batch);
            Done::Reset
        }
        Answer::StoreAndTruncateReceipt => {
            held.take(batch);
            Done::Half(receipt(last_seq))
        }
        Answer::After(delay) => {
            drop(held);
            answer_late(delay);
            state.lock().unwrap().take(batch);
            Done::Reply((200, &[], receipt(last_seq)))
        }
    }
}

/// A valid batch.
struct Batch {
    header: BatchHeader,
    encoding: String,
    /// Sequence number and line, with its newline, of each entry.
    lines: Vec<(u64, Vec<u8>)>,
    /// Hash chain value after each number that the batch covers.
    chain: Vec<Digest>,
}

impl State {
    /// Records the digest of each entry: it must be the same whenever the entry is sent again.
    fn offer(&mut self, batch: &Batch) {
        for (seq, line) in &batch.lines {
            let key = (batch.header.epoch.clone(), *seq);
            let digest = Digest::of(line);
            if *self.offered.entry(key).or_insert(digest) != digest {
                self.wrong.push(format!("entry {seq} came again with other bytes"));
            }
        }
    }

    /// Stores the lines that are new.
    fn take(&mut self, batch: Batch) {
        for (seq, line) in &batch.lines {
            if *seq > self.last_seq {
                self.taken.extend_from_slice(line);
            } else {
                self.doubled += 1;
            }
        }
        if batch.header.last_seq.unwrap() > self.last_seq {
            self.last_seq = batch.header.last_seq.unwrap();
            self.chain = *batch.chain.last().unwrap();
        }
        self.encodings.push(batch.encoding);
        self.headers.push(batch.header);
    }
}

/// Checks a request against the protocol.
fn check(request: &Request, state: &State) -> Result<Batch, String> {
    let ensure = |right: bool, what: String| if right { Ok(()) } else { Err(what) };
    let expect = |name: &str, value: &str| {
        let found = request.header(name);
        ensure(found == value, format!("{name} is {found:?}, not {value:?}"))
    };
    expect("authorization", &format!("Bearer {TOKEN}"))?;
    expect("content-type", "application/x-ndjson")?;
    expect("x-siem-signature", &siem_protocol::sign(SECRET.as_bytes(), &request.raw_body))?;
    let version = request.header("x-siem-agent-version");
    ensure(request.header("user-agent") == format!("ai-agent/{version}"), "user agent".into())?;

    let encoding = request.header("content-encoding").to_owned();
    let mut body = Vec::new();
    match &*encoding {
        "zstd" => body = zstd::decode_all(&*request.raw_body).map_err(|error| error.to_string())?,
        "gzip" => {
            let read =
                flate2::bufread::MultiGzDecoder::new(&*request.raw_body).read_to_end(&mut body);
            read.map_err(|error| error.to_string())?;
        }
        "identity" => body.clone_from(&request.raw_body),
        other => return Err(format!("content encoding {other:?}")),
    }
    ensure(body.ends_with(b"\n"), "the body does not end with a newline".into())?;
    let mut lines = body.split_inclusive(|byte| *byte == b'\n');
    let header = lines.next().ok_or("the body is empty")?;
    object(header)?;
    let header: BatchHeader = serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let (Some(first), Some(last)) = (header.first_seq, header.last_seq) else {
        return Err(format!("no range: {header:?}"));
    };
    expect("x-siem-batch-id", &format!("{}-{first}-{last}", header.epoch))?;
    expect("x-siem-os", &header.os)?;
    expect("x-siem-arch", &header.arch)?;
    let machine = percent_encoding::percent_decode_str(request.header("x-siem-machine-id"));
    ensure(machine.decode_utf8_lossy() == header.machine_id, "machine id".into())?;
    // The agent may not have received an earlier receipt.
    let known = first <= state.last_seq + 1 && last >= first;
    ensure(known, format!("{first} to {last} came after {}", state.last_seq))?;

    let chain = header.chain.ok_or("no chain")?;
    ensure(
        first != state.last_seq + 1 || chain.before == state.chain,
        format!("the chain before {first} is another"),
    )?;
    let dead = |seq| header.dead_lettered.iter().find(|letter| letter.seq == seq);
    let (mut hash, mut hashes, mut numbered) = (chain.before, Vec::new(), Vec::new());
    for seq in first..=last {
        let digest = match dead(seq) {
            Some(letter) => letter.line_sha256,
            None => {
                let line = lines.next().ok_or(format!("no line for {seq}"))?;
                let entry = object(line)?;
                ensure(entry == Some(seq), format!("the line for {seq} says {entry:?}"))?;
                numbered.push((seq, line.to_vec()));
                Digest::of(&line[..line.len() - 1])
            }
        };
        hash = hash.chain(digest);
        hashes.push(hash);
    }
    ensure(lines.next().is_none(), "more lines than numbers".into())?;
    ensure(header.count == numbered.len() as u64, format!("count is {}", header.count))?;
    ensure(hash == chain.after, format!("the chain after {last} is another"))?;
    Ok(Batch { header, encoding, lines: numbered, chain: hashes })
}

/// Checks a line against the grammar of JSON and with a second parser. Returns its `seq`.
fn object(line: &[u8]) -> Result<Option<u64>, String> {
    #[derive(serde::Deserialize)]
    struct Numbered {
        seq: Option<u64>,
    }
    let text = std::str::from_utf8(&line[..line.len() - 1]).map_err(|error| error.to_string())?;
    let show = || text.chars().take(300).collect::<String>();
    let shape = json::check(text).ok_or_else(|| format!("no JSON: {}", show()))?;
    if !shape.object || shape.padded {
        return Err(format!("no object: {}", show()));
    }
    let numbered: Numbered =
        serde_json::from_str(text).map_err(|error| format!("{error}: {}", show()))?;
    Ok(numbered.seq)
}
