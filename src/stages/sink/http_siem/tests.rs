//! The sink with a receiver that enrolls devices, and then lies.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use siem_protocol::{
    BatchHeader, Chain, ChainPoint, Digest, EnrollAnswer, EnrollRequest, Identity, KeysAnswer,
    Problem, Receipt,
    agent_event::{DeviceKeyReason, TrustState},
    minisign::OrganisationKey,
    names::{self, problem},
    note::{NoteSigner, SigningKey, VerifierKey},
    statement::{
        Device as DeviceStatement, DeviceState, Durability, Enroll, KeyList, Seal, Statement as _,
        StoredReceipt, TrustLevel, Verdict, digest,
    },
};

use super::*;
use crate::{
    frame::FrameBuilder,
    platform::Timestamp,
    siem::{Device, device::KeyFile, minisign},
    stages::sink::{Custody, build},
};

mod trust_changes;

const NAME: &str = "siem.test";
const NOW: Timestamp = Timestamp(1_795_291_200_000);

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(NAME, [seed; 32]).unwrap()
}

fn public(seed: u8) -> VerifierKey {
    key(seed).key().clone()
}

/// How a response to a batch differs from an honest one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Lie {
    #[default]
    None,
    /// A receipt without signature.
    Unsigned,
    /// No statement about the body of a redelivery.
    UnsignedVerdict,
    /// A receipt signed by another key with the same name.
    OtherKey,
    OtherMachine,
    OtherUser,
    OtherEpoch,
    OtherChain,
    OtherReceiver,
    /// The receipt for the batch before.
    Replayed,
    /// An unsigned refusal with this status and problem type.
    Refused(u16, &'static str),
    /// The same with a verdict signed by another key.
    RefusedByStranger(u16, &'static str),
    /// The same with a verdict about another body.
    RefusedAnother(u16, &'static str),
    /// An honest refusal.
    Verdict(u16, &'static str),
}

#[derive(Default)]
struct State {
    /// Seeds of the current and the next key; `None` for a receiver without keys.
    keys: Option<(u8, Option<u8>)>,
    /// Seeds of the keys that sign the list of keys.
    list_signers: Vec<u8>,
    /// Organisation that signs the list, too.
    organisation: Option<u8>,
    device: Option<DeviceState>,
    /// Status of refused requests for the keys.
    refuses_keys: Option<u16>,
    /// Status of refused enrollments.
    refuses_enrollment: Option<u16>,
    lie: Lie,
    asks_for_enrollment: bool,
    /// Paths of all requests.
    paths: Vec<String>,
    headers: Vec<BatchHeader>,
    enrollments: Vec<Enroll>,
    tokens: Vec<String>,
    last_receipt: Option<String>,
}

/// The receiver, on a thread of its own.
struct Server {
    url: String,
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
}

impl Server {
    fn start(state: State) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (state, ended) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let (shared, end) = (Arc::clone(&state), Arc::clone(&ended));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                serve(stream.unwrap(), &mut shared.lock().unwrap());
            }
        });
        Self { url, state, ended }
    }

    fn with_keys() -> Self {
        Self::start(State {
            keys: Some((1, None)),
            list_signers: vec![1],
            device: Some(DeviceState::Confirmed),
            ..State::default()
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn lie(&self, lie: Lie) {
        self.state().lie = lie;
    }

    /// Returns the paths of the requests since the last call.
    fn paths(&self) -> Vec<String> {
        std::mem::take(&mut self.state().paths)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.url.trim_start_matches("http://").trim_end_matches('/')));
    }
}

fn serve(stream: TcpStream, state: &mut State) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut length, mut token) = (0, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match &*name.to_ascii_lowercase() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => value.clone_into(&mut token),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    state.paths.push(path.clone());
    state.tokens.push(token);
    let (status, answer) = match &*path {
        "/keys" if state.refuses_keys.is_some() => (state.refuses_keys.unwrap(), String::new()),
        "/keys" => state.keys_answer().map_or((404, String::new()), |keys| (200, json(&keys))),
        "/enroll" => state.enroll(&body),
        "/ingest" => state.ingest(&body),
        _ => (404, String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{answer}",
        answer.len()
    );
    (&stream).write_all(head.as_bytes()).unwrap();
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

impl State {
    fn keys_answer(&self) -> Option<KeysAnswer> {
        let (current, next) = self.keys?;
        let list =
            KeyList { receiver: NAME.into(), current: public(current), next: next.map(public) };
        let signers: Vec<SigningKey> = self.list_signers.iter().copied().map(key).collect();
        let signers: Vec<&dyn NoteSigner> = signers.iter().map(|key| key as _).collect();
        let sign = |seed| minisign::Minisign::new(seed).sign(list.encode().as_bytes(), "recovery");
        let organisation = self.organisation.map(sign);
        Some(KeysAnswer { keys: list.sign(&signers).unwrap(), organisation })
    }

    fn enroll(&mut self, body: &[u8]) -> (u16, String) {
        if let Some(status) = self.refuses_enrollment {
            return (status, String::new());
        }
        let request: EnrollRequest = serde_json::from_slice(body).unwrap();
        let enroll = Enroll::open_self_signed(&request.enroll).unwrap();
        let device = DeviceStatement {
            receiver: NAME.into(),
            key: enroll.key.clone(),
            state: self.device.unwrap(),
            level: TrustLevel::FirstUse,
            confirmed_by: None,
        };
        self.enrollments.push(enroll);
        let device = device.sign(&[&key(self.keys.unwrap().0)]).unwrap();
        (200, json(&EnrollAnswer { device, keys: self.keys_answer().unwrap() }))
    }

    fn ingest(&mut self, body: &[u8]) -> (u16, String) {
        let line = body.split(|byte| *byte == b'\n').next().unwrap();
        let header: BatchHeader = serde_json::from_slice(line).unwrap();
        self.headers.push(header.clone());
        let seal = header.seal.as_ref().map(|seal| sealed(seal, &self.enrollments));
        match self.lie {
            Lie::Refused(status, kind) => (status, refusal(status, kind, None)),
            Lie::RefusedByStranger(status, kind) => {
                let verdict = verdict(&header, status, kind, Digest::of(body), 9);
                (status, refusal(status, kind, Some(verdict)))
            }
            Lie::RefusedAnother(status, kind) => {
                let verdict = verdict(&header, status, kind, Digest::of(b"another"), 1);
                (status, refusal(status, kind, Some(verdict)))
            }
            Lie::Verdict(status, kind) => {
                let verdict = verdict(&header, status, kind, Digest::of(body), 1);
                (status, refusal(status, kind, Some(verdict)))
            }
            lie => {
                let stored = verdict(&header, 200, names::verdict::STORED, Digest::of(body), 1);
                let stored = (header.redelivery && lie != Lie::UnsignedVerdict).then_some(stored);
                (200, self.receipt(&header, seal.flatten().as_ref(), stored, lie))
            }
        }
    }

    fn receipt(
        &mut self,
        header: &BatchHeader,
        seal: Option<&Seal>,
        verdict: Option<String>,
        lie: Lie,
    ) -> String {
        let seal = seal.filter(|seal| seal.last_seq > 0);
        let point = match (header.redelivery, header.chain) {
            (true, _) => seal.map(|seal| ChainPoint { seq: seal.last_seq, hash: seal.chain }),
            (false, chain) => {
                chain.map(|chain| ChainPoint { seq: header.last_seq.unwrap(), hash: chain.after })
            }
        };
        let note = point.filter(|_| self.keys.is_some()).map(|point| {
            let changed = |of, text: &str| if lie == of { "x".to_owned() } else { text.to_owned() };
            let receipt = StoredReceipt {
                receiver: changed(Lie::OtherReceiver, NAME),
                machine: changed(Lie::OtherMachine, &header.machine_id),
                user: changed(Lie::OtherUser, &header.user),
                epoch: changed(Lie::OtherEpoch, &header.epoch),
                last_seq: point.seq,
                chain: if lie == Lie::OtherChain { Digest::of(b"x") } else { point.hash },
                seal: header.seal.as_deref().map(digest),
                received_at: "2026-11-21T20:00:00Z".into(),
                durability: Durability::Synced,
            };
            let seed = if lie == Lie::OtherKey { 9 } else { self.keys.unwrap().0 };
            receipt.sign(&[&key(seed)]).unwrap()
        });
        let note = match lie {
            Lie::Unsigned => None,
            Lie::Replayed => self.last_receipt.clone(),
            _ => note,
        };
        if lie == Lie::None {
            self.last_receipt.clone_from(&note);
        }
        json(&Receipt {
            last_seq: header.last_seq,
            accepted_seqs: header.redelivery.then(|| header.seqs.clone()),
            receipt: note,
            verdict,
            enroll: self.asks_for_enrollment,
            ..Receipt::default()
        })
    }
}

/// Returns the seal, if an enrolled key made it.
fn sealed(note: &str, enrollments: &[Enroll]) -> Option<Seal> {
    let keys: Vec<VerifierKey> = enrollments.iter().map(|enroll| enroll.key.clone()).collect();
    Seal::open(note, &keys).ok().map(|opened| opened.statement)
}

fn verdict(header: &BatchHeader, status: u16, kind: &str, body: Digest, seed: u8) -> String {
    let verdict = Verdict {
        receiver: NAME.into(),
        status,
        kind: kind.into(),
        machine: header.machine_id.clone(),
        epoch: Some(header.epoch.clone()),
        body,
        at: "2026-11-21T20:00:00Z".into(),
        detail: None,
    };
    verdict.sign(&[&key(seed)]).unwrap()
}

fn refusal(status: u16, kind: &str, verdict: Option<String>) -> String {
    json(&Problem {
        kind: kind.into(),
        title: "t".into(),
        status,
        detail: None,
        expected_seq: Some(7),
        verdict,
        enroll: false,
    })
}

/// A clock whose uptime a test moves.
#[derive(Default)]
struct TestClock(AtomicU64);

impl TestClock {
    fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        NOW
    }

    fn uptime(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// An agent's state directory, with sinks that start one after the other.
struct Agent {
    directory: tempfile::TempDir,
    clock: Arc<TestClock>,
    context: AgentContext,
}

impl Agent {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock::default());
        let file = KeyFile::new(directory.path(), "machine");
        let device = Device::new(file.clone(), "instance".to_owned());
        device.set(Ok(file.create(DeviceKeyReason::First, Timestamp(0)).unwrap()));
        let context = AgentContext {
            device,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            state_dir: Some(directory.path().to_owned()),
            ..crate::test_context::context()
        };
        Self { directory, clock, context }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn sink(&self, server: &Server, options: &str) -> Box<dyn Sink> {
        let options = format!(
            "endpoint = {:?}\ntoken = \"t-of-16-bytes-or-more\"\n\
             hmac_secret = \"s-of-16-bytes-or-more\"\ncompression = \"none\"\n{options}",
            server.url
        );
        build("http-siem", &options.parse().unwrap(), &self.context).unwrap()
    }

    fn state(&self) -> TrustState {
        let all = self.context.trust.all();
        assert_eq!(crate::siem::pins::stored_trust(self.path()), all);
        all[0].state
    }

    /// Identity as in headers.
    fn identity(&self) -> &Identity {
        &self.context.identity
    }

    /// A batch of `count` entries after the number `after`.
    fn batch(&self, after: u64, count: u64, receipt: Option<String>) -> Batch {
        let mut builder = FrameBuilder::default();
        let mut chain = point(after).hash;
        for seq in after + 1..=after + count {
            let line = line(seq);
            let hash = Digest::of(line.as_bytes());
            builder.push(hash, false, |raw| raw.extend_from_slice(line.as_bytes()));
            chain = chain.chain(hash);
        }
        let frame = builder.seal(after + count + 1, chain, Digest::ZERO, NOW);
        let header = BatchHeader {
            first_seq: Some(after + 1),
            last_seq: Some(after + count),
            count,
            chain: Some(Chain { before: point(after).hash, after: chain }),
            ..BatchHeader::new(self.identity(), "e".into(), Digest::ZERO, NOW.to_string())
        };
        let custody = Custody { sink: "siem".into(), held: None, receipt };
        Batch::new(header, StoredFrames::new(frame.into_iter().collect(), custody))
    }

    /// The dead letter `seq` again, of an epoch that the receiver holds up to `held`.
    fn redelivery(&self, seq: u64, held: Option<ChainPoint>) -> Batch {
        let frames = StoredFrames::of(&self.batch(seq - 1, 1, None)).unwrap().frames.clone();
        let header = BatchHeader {
            count: 1,
            redelivery: true,
            seqs: vec![seq],
            ..BatchHeader::new(self.identity(), "e".into(), Digest::ZERO, NOW.to_string())
        };
        let custody = Custody { sink: "siem".into(), held, receipt: None };
        Batch::new(header, StoredFrames::new(frames, custody))
    }
}

fn line(seq: u64) -> String {
    format!("{{\"seq\":{seq}}}")
}

fn point(seq: u64) -> ChainPoint {
    let step = |chain: Digest, seq| chain.chain(Digest::of(line(seq).as_bytes()));
    ChainPoint { seq, hash: (1..=seq).fold(Digest::ZERO, step) }
}

fn findings(batch: &Batch) -> crate::stages::sink::ResponseFindings {
    StoredFrames::of(batch).unwrap().take_findings()
}

#[track_caller]
fn assert_untrusted(delivery: &Delivery, batch: &Batch, what: &str) {
    assert!(matches!(delivery, Delivery::Hold { .. }), "{what}: {delivery:?}");
    let findings = findings(batch);
    assert!(findings.untrusted.is_some() && findings.receipt.is_none(), "{what}: {findings:?}");
}

#[tokio::test]
async fn batch_is_sealed_and_its_receipt_is_kept() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    let first = agent.batch(0, 2, None);
    assert_eq!(sink.deliver(&first).await, Delivery::Acknowledged);
    assert_eq!(server.paths(), ["/keys", "/enroll", "/ingest"]);
    assert_eq!(agent.state(), TrustState::Confirmed);
    let receipt = findings(&first).receipt.unwrap();

    let second = agent.batch(2, 3, Some(receipt.clone()));
    assert_eq!(sink.deliver(&second).await, Delivery::Acknowledged);
    assert_eq!(server.paths(), ["/ingest"]);
    let state = server.state();
    let header = &state.headers[1];
    assert_eq!(header.instance.as_deref(), Some("instance"));
    let identity = agent.identity();
    let expected = Seal {
        receiver: Some(NAME.into()),
        machine: identity.machine_id.clone(),
        user: identity.user.clone(),
        epoch: "e".into(),
        last_seq: 5,
        chain: point(5).hash,
        config: header.config_hash,
        receipt: Some(digest(&receipt)),
        instance: header.instance.clone(),
    };
    assert_eq!(sealed(header.seal.as_ref().unwrap(), &state.enrollments), Some(expected));
}

#[tokio::test]
async fn lie_holds_delivery_until_an_honest_answer() {
    let forged = [
        (401, problem::TOKEN),
        (403, problem::SIGNATURE),
        (403, problem::DEVICE_REVOKED),
        (403, problem::DEVICE_CLONED),
        (409, problem::CONFLICT),
        (413, problem::TOO_LARGE),
        (422, problem::ENTRY),
    ];
    let mut lies = vec![
        // First: afterwards the last receipt is for the same batch.
        Lie::Replayed,
        Lie::Unsigned,
        Lie::OtherKey,
        Lie::OtherMachine,
        Lie::OtherUser,
        Lie::OtherEpoch,
        Lie::OtherChain,
        Lie::OtherReceiver,
    ];
    lies.extend(forged[2..].iter().map(|(status, kind)| Lie::Refused(*status, kind)));
    lies.extend(forged.map(|(status, kind)| Lie::RefusedByStranger(status, kind)));
    lies.extend(forged.map(|(status, kind)| Lie::RefusedAnother(status, kind)));
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    for lie in lies {
        server.lie(lie);
        let batch = agent.batch(1, 1, None);
        assert_untrusted(&sink.deliver(&batch).await, &batch, &format!("{lie:?}"));
        assert_eq!(agent.state(), TrustState::ReceiptUntrusted, "{lie:?}");
        assert_eq!(agent.context.device.take_request(), None, "{lie:?}");
        server.lie(Lie::None);
        assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged, "{lie:?}");
        assert_eq!(agent.state(), TrustState::Confirmed, "{lie:?}");
    }
}

#[tokio::test]
async fn lie_with_several_entries_splits_at_most() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    server.lie(Lie::Refused(413, problem::TOO_LARGE));
    let delivery = sink.deliver(&agent.batch(1, 2, None)).await;
    assert!(matches!(delivery, Delivery::Refused { status: 413, .. }), "{delivery:?}");
    for (status, kind) in [(409, problem::CONFLICT), (422, problem::ENTRY)] {
        server.lie(Lie::Refused(status, kind));
        let batch = agent.batch(1, 2, None);
        assert_untrusted(&sink.deliver(&batch).await, &batch, kind);
    }
}

#[tokio::test]
async fn unsigned_refusal_of_the_token_only_holds() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    for (status, kind) in [(401, problem::TOKEN), (403, problem::SIGNATURE), (404, "")] {
        server.lie(Lie::Refused(status, kind));
        let batch = agent.batch(1, 1, None);
        let delivery = sink.deliver(&batch).await;
        assert!(matches!(delivery, Delivery::Hold { .. }), "{delivery:?}");
        assert_eq!(findings(&batch).untrusted, None);
        assert_eq!(agent.state(), TrustState::Confirmed);
    }
    server.lie(Lie::Refused(503, problem::FULL));
    let delivery = sink.deliver(&agent.batch(1, 1, None)).await;
    assert!(matches!(delivery, Delivery::Retry { .. }), "{delivery:?}");
}

#[tokio::test]
async fn signed_verdict_is_acted_on() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    let deliver = async |sink: &mut Box<dyn Sink>, status, kind| {
        server.lie(Lie::Verdict(status, kind));
        sink.deliver(&agent.batch(0, 1, None)).await
    };
    let conflict = deliver(&mut sink, 409, problem::CONFLICT).await;
    assert_eq!(conflict, Delivery::Conflict { expected: Some(7) });
    for (status, kind) in [(413, problem::TOO_LARGE), (422, problem::ENTRY)] {
        let refused = deliver(&mut sink, status, kind).await;
        assert!(matches!(refused, Delivery::Refused { status: s, .. } if s == status));
    }
    for kind in [problem::EPOCH_OWNED, problem::IMPERSONATION, problem::SEAL] {
        let held = deliver(&mut sink, 403, kind).await;
        assert!(matches!(held, Delivery::Hold { .. }), "{kind}");
        assert_eq!(agent.state(), TrustState::Confirmed, "{kind}");
    }
    let held = deliver(&mut sink, 403, problem::DEVICE_CLONED).await;
    assert!(matches!(held, Delivery::Hold { .. }));
    assert_eq!(agent.context.device.take_request(), Some(DeviceKeyReason::Cloned));
}

#[tokio::test]
async fn device_that_is_not_enrolled_enrolls_again() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    let batch = agent.batch(0, 1, None);
    server.lie(Lie::Verdict(403, problem::NOT_ENROLLED));
    assert!(matches!(sink.deliver(&batch).await, Delivery::Hold { .. }));
    assert_eq!(agent.state(), TrustState::NotEnrolled);
    server.paths();
    server.lie(Lie::None);
    agent.clock.advance(5);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(server.paths(), ["/keys", "/enroll", "/ingest"]);
    assert_eq!(agent.state(), TrustState::Confirmed);
}

#[tokio::test]
async fn revoked_device_sends_nothing_until_it_is_approved() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let batch = agent.batch(0, 1, None);
    server.lie(Lie::Verdict(403, problem::DEVICE_REVOKED));
    let mut sink = agent.sink(&server, "");
    assert!(matches!(sink.deliver(&batch).await, Delivery::Hold { .. }));
    assert_eq!(agent.state(), TrustState::Revoked);
    server.state().device = Some(DeviceState::Revoked);
    server.lie(Lie::None);
    server.paths();
    assert!(matches!(sink.deliver(&batch).await, Delivery::Hold { .. }));
    assert_eq!(server.paths(), [""; 0]);
    // Another start of the agent asks again.
    let mut sink = agent.sink(&server, "");
    assert!(matches!(sink.deliver(&batch).await, Delivery::Hold { .. }));
    assert_eq!(server.paths(), ["/keys", "/enroll"]);
    server.state().device = Some(DeviceState::Confirmed);
    agent.clock.advance(agent.context.poll_interval.as_secs());
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::Confirmed);
}

#[tokio::test]
async fn pinned_receiver_never_counts_as_one_without_keys() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let batch = agent.batch(0, 1, None);
    assert_eq!(agent.sink(&server, "").deliver(&batch).await, Delivery::Acknowledged);
    server.state().keys = None;
    let mut sink = agent.sink(&server, "");
    server.paths();
    for _ in 0..2 {
        assert_untrusted(&sink.deliver(&batch).await, &batch, "404");
    }
    assert_eq!(server.paths(), ["/keys", "/keys"], "no entries are sent");
    assert_eq!(agent.state(), TrustState::ReceiptUntrusted);
}

#[tokio::test]
async fn receiver_without_keys_is_believed_and_asked_again() {
    let (server, agent) = (Server::start(State::default()), Agent::new());
    let (mut sink, batch) = (agent.sink(&server, ""), agent.batch(0, 1, None));
    for _ in 0..2 {
        assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    }
    assert_eq!(server.paths(), ["/keys", "/ingest", "/ingest"]);
    assert_eq!(agent.state(), TrustState::Shared);
    assert_eq!(findings(&batch), crate::stages::sink::ResponseFindings::default());
    // Sealed nevertheless: the epoch belongs to the device once the receiver has keys.
    assert!(server.state().headers.iter().all(|header| header.seal.is_some()));
    server.lie(Lie::Refused(409, problem::CONFLICT));
    assert_eq!(sink.deliver(&batch).await, Delivery::Conflict { expected: Some(7) });
    {
        let mut state = server.state();
        (state.keys, state.list_signers) = (Some((1, None)), vec![1]);
        (state.device, state.lie) = (Some(DeviceState::Confirmed), Lie::None);
        state.asks_for_enrollment = true;
    }
    agent.clock.advance(10);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::Confirmed);
}

#[tokio::test]
async fn foreign_receiver_gets_neither_seal_nor_enrollment() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "acknowledgement = \"status\"");
    server.lie(Lie::Unsigned);
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    assert_eq!(server.paths(), ["/ingest"]);
    let state = server.state();
    assert!(state.headers[0].seal.is_none() && state.headers[0].instance.is_none());
}

#[tokio::test]
async fn key_list_counts_if_a_pinned_key_has_signed_it() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let (mut sink, batch) = (agent.sink(&server, ""), agent.batch(0, 1, None));
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    // Another key, which only vouches for itself.
    (server.state().keys, server.state().list_signers) = (Some((2, None)), vec![2]);
    assert_untrusted(&sink.deliver(&batch).await, &batch, "receipt of an unknown key");
    agent.clock.advance(5);
    server.paths();
    assert_untrusted(&sink.deliver(&batch).await, &batch, "list of an unknown key");
    assert_eq!(server.paths(), ["/keys"]);
    // The same key with the signature of the one before.
    server.state().list_signers = vec![2, 1];
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::Confirmed);
    // The list of the time before that does not bring the old key back.
    (server.state().keys, server.state().list_signers) = (Some((1, Some(2))), vec![1, 2]);
    let mut sink = agent.sink(&server, "");
    assert_untrusted(&sink.deliver(&batch).await, &batch, "replayed list");
}

#[tokio::test]
async fn organisation_recovers_a_lost_receiver_key() {
    let (server, mut agent) = (Server::with_keys(), Agent::new());
    let organisation: OrganisationKey = minisign::Minisign::new(7).public().parse().unwrap();
    agent.context.organisation_keys = vec![organisation];
    let batch = agent.batch(0, 1, None);
    assert_eq!(agent.sink(&server, "").deliver(&batch).await, Delivery::Acknowledged);
    (server.state().keys, server.state().list_signers) = (Some((3, None)), vec![3]);
    let mut sink = agent.sink(&server, "");
    for stranger in [None, Some(8)] {
        server.state().organisation = stranger;
        assert_untrusted(&sink.deliver(&batch).await, &batch, "no recovery");
    }
    server.state().organisation = Some(7);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    let trust = &agent.context.trust.all()[0];
    assert_eq!(trust.receiver_keys, [public(3).to_string()]);
}

#[tokio::test]
async fn configured_receiver_key_is_needed_from_the_first_answer() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let batch = agent.batch(0, 1, None);
    let other = format!("receiver_keys = [\"{}\"]", public(5));
    let mut sink = agent.sink(&server, &other);
    assert_untrusted(&sink.deliver(&batch).await, &batch, "another key");
    assert_eq!(server.paths(), ["/keys"]);
    let right = format!("receiver_keys = [\"{}\"]", public(1));
    assert_eq!(agent.sink(&server, &right).deliver(&batch).await, Delivery::Acknowledged);
    let mut sink = agent.sink(&server, &other);
    assert_untrusted(&sink.deliver(&batch).await, &batch, "configured over pinned");
}

#[tokio::test]
async fn refused_enrollment_uses_the_ingest_token_and_sends() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    server.state().refuses_enrollment = Some(401);
    let mut sink = agent.sink(&server, "enroll_token = \"e-of-16-bytes-or-more\"");
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::NotEnrolled);
    let (ingest, enroll) = ("Bearer t-of-16-bytes-or-more", "Bearer e-of-16-bytes-or-more");
    assert_eq!(server.state().tokens, [ingest, enroll, ingest, ingest]);
}

#[tokio::test]
async fn redelivery_is_sealed_at_the_point_that_is_held() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    let batch = agent.redelivery(2, Some(point(4)));
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    {
        let state = server.state();
        let seal = sealed(state.headers[0].seal.as_ref().unwrap(), &state.enrollments).unwrap();
        assert_eq!((seal.last_seq, seal.chain), (4, point(4).hash));
    }
    for lie in [Lie::OtherChain, Lie::Unsigned, Lie::OtherEpoch] {
        server.lie(lie);
        assert_untrusted(&sink.deliver(&batch).await, &batch, &format!("{lie:?}"));
    }
}

/// The receiver has no receipt for the beginning, and says only that it holds the entries.
#[tokio::test]
async fn redelivery_of_a_forgotten_epoch_is_sealed_at_its_start() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let (mut sink, batch) = (agent.sink(&server, ""), agent.redelivery(2, None));
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    {
        let state = server.state();
        let seal = sealed(state.headers[0].seal.as_ref().unwrap(), &state.enrollments).unwrap();
        assert_eq!((seal.last_seq, seal.chain), (0, Digest::ZERO));
    }
    server.lie(Lie::UnsignedVerdict);
    assert_untrusted(&sink.deliver(&batch).await, &batch, "verdict without signature");
    server.lie(Lie::None);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    assert_eq!(agent.state(), TrustState::Confirmed);
}

#[tokio::test]
async fn rotated_device_key_enrolls_with_both_keys() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let (mut sink, batch) = (agent.sink(&server, ""), agent.batch(0, 1, None));
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    let before = agent.context.device.keys().unwrap().current.key().clone();
    let rotated = agent.context.device.rotate(NOW).unwrap();
    agent.context.device.set_owner(&rotated.keys.public());
    server.state().refuses_enrollment = Some(403);
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    let seal = server.state().headers[1].seal.clone().unwrap();
    assert!(
        Seal::open(&seal, std::slice::from_ref(&before)).is_ok(),
        "the receiver knows no other key"
    );
    server.state().refuses_enrollment = None;
    let mut sink = agent.sink(&server, "");
    assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    let keys = agent.context.device.keys().unwrap();
    assert!(keys.previous.is_none(), "every receiver has the new key");
    let state = server.state();
    assert_eq!(state.enrollments[1].previous, Some(before));
    let seal = state.headers[2].seal.clone().unwrap();
    assert!(Seal::open(&seal, &[keys.current.key().clone()]).is_ok());
}

#[tokio::test]
async fn device_without_its_key_sends_nothing() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    let mut sink = agent.sink(&server, "");
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    server.paths();
    let unavailable = crate::siem::device::DeviceUnavailable::permanent("the key is lost", NOW);
    agent.context.device.set(Err(unavailable));
    let delivery = sink.deliver(&agent.batch(0, 1, None)).await;
    assert_eq!(delivery, Delivery::Hold { after: None, reason: "the key is lost".into() });
    assert_eq!(server.paths(), [""; 0]);
}

/// As with the file system of a state directory that has no permissions.
#[tokio::test]
async fn receiver_without_keys_needs_no_device_key() {
    let (server, agent) = (Server::start(State::default()), Agent::new());
    let unavailable = crate::siem::device::DeviceUnavailable::permanent("mode 0777", NOW);
    agent.context.device.set(Err(unavailable));
    let mut sink = agent.sink(&server, "");
    assert_eq!(sink.deliver(&agent.batch(0, 1, None)).await, Delivery::Acknowledged);
    assert_eq!(server.paths(), ["/ingest"]);
    assert!(server.state().headers.iter().all(|header| header.seal.is_none()));
}

#[tokio::test]
async fn receiver_that_fails_other_paths_gets_entries() {
    let (server, agent) = (Server::start(State::default()), Agent::new());
    server.state().refuses_keys = Some(502);
    let (mut sink, batch) = (agent.sink(&server, ""), agent.batch(0, 1, None));
    for _ in 0..2 {
        assert!(matches!(sink.deliver(&batch).await, Delivery::Retry { .. }));
    }
    for _ in 0..2 {
        assert_eq!(sink.deliver(&batch).await, Delivery::Acknowledged);
    }
    assert_eq!(server.paths(), ["/keys", "/keys", "/keys", "/ingest", "/ingest"]);
}

#[tokio::test]
async fn damaged_pins_hold_delivery() {
    let (server, agent) = (Server::with_keys(), Agent::new());
    std::fs::write(agent.path().join("trust.json"), "{").unwrap();
    let delivery = agent.sink(&server, "").deliver(&agent.batch(0, 1, None)).await;
    assert!(matches!(delivery, Delivery::Hold { .. }), "{delivery:?}");
    assert_eq!(server.paths(), [""; 0]);
}

#[test]
fn invalid_receiver_keys_are_refused() {
    let agent = Agent::new();
    let (one, two) = (public(1), SigningKey::from_seed("other", [1; 32]).unwrap());
    for (options, word) in [
        ("receiver_keys = [\"x\"]".to_owned(), "contains `x`"),
        (format!("receiver_keys = [\"{one}\", \"{}\"]", two.key()), "two receivers"),
        (format!("receiver_keys = [\"{one}\"]\nacknowledgement = \"status\""), "acknowledgement"),
    ] {
        let options = format!(
            "endpoint = \"http://siem.test\"\ntoken = \"t-of-16-bytes-or-more\"\n\
             hmac_secret = \"s-of-16-bytes-or-more\"\n{options}"
        );
        let built = build("http-siem", &options.parse().unwrap(), &agent.context);
        let error = built.err().unwrap().to_string();
        assert!(error.contains("`receiver_keys`") && error.contains(word), "{error}");
    }
}
