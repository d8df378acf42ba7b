//! Batches as agents send them: chained, signed, with all headers.

use std::path::Path;

use siem_protocol::{
    BatchHeader, Chain, ChainPoint, Content, Digest, Encoding, EnrollRequest, Identity,
    entry::{PathText, RecordLine},
    names::{content_type, header, path},
    note::{NoteSigner as _, SigningKey},
    sign,
    statement::{Enroll, Seal, Statement as _},
};

use crate::server::RECEIVER;

/// Records to send, cyclically.
pub(crate) struct Records {
    lines: Vec<Vec<u8>>,
}

impl Records {
    /// Reads the lines of all session files below `directory`, up to `bytes`.
    pub(crate) fn read(directory: &Path, bytes: usize) -> std::io::Result<Self> {
        let (mut lines, mut length) = (Vec::new(), 0);
        let mut waiting = vec![directory.to_owned()];
        while let Some(path) = waiting.pop().filter(|_| length < bytes) {
            if path.is_dir() {
                let entries = std::fs::read_dir(&path)?.map(|entry| Ok(entry?.path()));
                let mut entries = entries.collect::<std::io::Result<Vec<_>>>()?;
                entries.sort();
                waiting.extend(entries);
            } else if path.extension().is_some_and(|ending| ending == "jsonl") {
                let text = std::fs::read(&path)?;
                length += text.len();
                lines.extend(text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec));
            }
        }
        lines.retain(|line| !line.is_empty());
        Ok(Self { lines })
    }

    /// Generates session lines of 0.4 to 8 KB that compress about as well as real ones.
    pub(crate) fn made(count: usize) -> Self {
        const WORDS: [&str; 16] = [
            r#"\"type\":\"text\",\"text\":"#,
            "the function returns early when ",
            "crates/siem-server/src/store/mod.rs ",
            r"\n    let value = self.next()?;\n",
            "error[E0382]: borrow of moved value ",
            "toolu_01",
            "and then ",
            "writes ",
            "the journal ",
            r"\t\treturn ",
            "cargo test ",
            "because ",
            "is not ",
            "which ",
            r#"\"content\": "#,
            "https://example.com/",
        ];
        let mut random = Random(1);
        let lines = (0..count).map(|number| {
            let mut line = format!(
                r#"{{"type":"user","uuid":"{number:032x}","message":{{"role":"user","content":""#
            );
            let words = 16 << (random.next() % 5);
            for _ in 0..words {
                let bits = random.next();
                line.push_str(WORDS[usize::try_from(bits % 16).unwrap_or_default()]);
                line.push_str(&format!("{:x} ", bits >> 40));
            }
            line.push_str("\"}}");
            line.into_bytes()
        });
        Self { lines: lines.collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

/// Random numbers with a fixed seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// A request, from its first line to the last byte of its body.
pub(crate) struct Request {
    pub(crate) bytes: Vec<u8>,
    /// Size of its lines in bytes, decoded.
    pub(crate) lines: usize,
}

/// An agent with its position in the epoch.
pub(crate) struct Agent<'a> {
    records: &'a Records,
    identity: Identity,
    epoch: String,
    path: PathText,
    encoding: Encoding,
    /// Key that seals the batches.
    device: Option<SigningKey>,
    next: usize,
    seq: u64,
    offset: u64,
    value: Digest,
}

impl<'a> Agent<'a> {
    /// Creates agent `number`, which starts somewhere in the records. With `sealed` it has a device
    /// key.
    pub(crate) fn new(
        records: &'a Records,
        number: usize,
        encoding: Encoding,
        sealed: bool,
    ) -> Self {
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let device = SigningKey::from_seed("ai-agent-device", seed).ok().filter(|_| sealed);
        let identity = Identity {
            machine_id: format!("machine-{number:08}"),
            hostname: format!("laptop-{number}"),
            user: "u".into(),
            os: "linux".into(),
            arch: "x86_64".into(),
            agent_version: "0.1.0".into(),
        };
        let file = format!("/home/u/.claude/projects/p/{number:032x}.jsonl");
        Self {
            records,
            identity,
            epoch: format!("01930000-0000-7000-8000-{number:012}"),
            path: PathText::new(Path::new(&file)),
            encoding,
            device,
            next: number * 997 % records.lines.len(),
            seq: 0,
            offset: 0,
            value: Digest::ZERO,
        }
    }

    /// The next batch: at most as many entries and bytes as an agent puts into one.
    pub(crate) fn batch(&mut self, keys: (&str, &str), entries: u64, bytes: usize) -> Request {
        let (first, before, mut lines) = (self.seq + 1, self.value, Vec::new());
        let generation = format!("{:032x}", self.records.lines.len());
        while self.seq + 1 < first + entries && (lines.len() < bytes || self.seq < first) {
            let record = &self.records.lines[self.next];
            let at = lines.len();
            self.seq += 1;
            let line = RecordLine {
                source: "claude-sessions",
                path: &self.path,
                generation: &generation,
                offset: self.offset,
                length: record.len() as u64,
                read_at: "2026-01-01T00:00:00.000Z",
                enriched: "",
                cut: &[],
                masked: &[],
                sha256: None,
                folded: None,
                incomplete: false,
                content: Content::of(record),
            };
            line.write(self.seq, &mut lines);
            self.value = self.value.chain(Digest::of(&lines[at..]));
            lines.push(b'\n');
            self.offset += record.len() as u64 + 1;
            self.next = (self.next + 1) % self.records.lines.len();
        }
        let mut header =
            BatchHeader::new(&self.identity, self.epoch.clone(), Digest::ZERO, String::new());
        (header.first_seq, header.last_seq) = (Some(first), Some(self.seq));
        header.count = self.seq + 1 - first;
        header.chain = Some(Chain { before, after: self.value });
        header.instance = self.device.is_some().then(|| format!("{:032x}", 1));
        header.seal = self.device.as_ref().map(|device| self.seal(device, &header));
        self.request(keys, &header, &lines)
    }

    fn seal(&self, device: &SigningKey, header: &BatchHeader) -> String {
        let point = ChainPoint { seq: self.seq, hash: self.value };
        let seal = Seal::of(header, Some(RECEIVER.into()), point, None);
        seal.sign(&[device]).expect("a key in memory signs")
    }

    /// Request that enrolls the agent's device key, if it has one.
    pub(crate) fn enrollment(&self, token: &str) -> Option<Request> {
        let device = self.device.as_ref()?;
        let identity = &self.identity;
        let enroll = Enroll {
            receiver: RECEIVER.into(),
            machine: identity.machine_id.clone(),
            user: identity.user.clone(),
            host: identity.hostname.clone(),
            os: identity.os.clone(),
            arch: identity.arch.clone(),
            version: identity.agent_version.clone(),
            key: device.key().clone(),
            previous: None,
        };
        let request = EnrollRequest {
            enroll: enroll.sign(&[device]).expect("a key in memory signs"),
            instance: format!("{:032x}", 1),
            sent_at: "2026-01-01T00:00:00.000Z".into(),
        };
        let body = serde_json::to_string(&request).expect("a request can be written as JSON");
        let text = format!(
            "POST {} HTTP/1.1\r\nhost: siem\r\nauthorization: Bearer {token}\r\n\
             content-type: {}\r\ncontent-length: {}\r\n\r\n{body}",
            path::ENROLL,
            content_type::JSON,
            body.len()
        );
        Some(Request { bytes: text.into_bytes(), lines: 0 })
    }

    /// Header line and lines are compressed separately, as agents do.
    fn request(&self, (token, secret): (&str, &str), head: &BatchHeader, lines: &[u8]) -> Request {
        let mut first = serde_json::to_vec(head).expect("a header can be written as JSON");
        first.push(b'\n');
        let body = match self.encoding {
            Encoding::Identity => [&first, lines].concat(),
            _ => {
                // Frames of an agent have at most 256 KiB.
                let pieces = std::iter::once(first.as_slice()).chain(lines.chunks(256 << 10));
                let pieces = pieces.map(|piece| zstd::bulk::compress(piece, 1));
                pieces.flat_map(|piece| piece.expect("memory can be compressed")).collect()
            }
        };
        let mut text = format!(
            "POST /ingest HTTP/1.1\r\nhost: siem\r\nauthorization: Bearer {token}\r\n\
             content-type: {}\r\ncontent-encoding: {}\r\ncontent-length: {}\r\n{}: {}\r\n{}: {}\r\n",
            content_type::NDJSON,
            self.encoding.as_str(),
            body.len(),
            header::BATCH_ID,
            head.id(),
            header::SIGNATURE,
            sign(secret.as_bytes(), &body)
        );
        for (name, value) in self.identity.headers() {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&body);
        Request { bytes, lines: lines.len() }
    }
}
