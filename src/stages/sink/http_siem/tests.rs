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

use test_support::minisign;

use super::*;
use crate::{
    frame::FrameBuilder,
    platform::Timestamp,
    siem::{Device, device::KeyFile},
    stages::sink::{Custody, build},
};

mod batches;
mod enrollment;
mod receiver_keys;
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
