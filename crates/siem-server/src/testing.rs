//! Fixtures for the tests of several files. The tests in `tests/` include this file by its path.

use siem_protocol::{
    BatchHeader, Chain, ChainPoint, Digest, Identity,
    note::{NoteSigner as _, SigningKey},
    statement::{Enroll, Seal, Statement as _},
};

/// Name of the receiver in every test.
pub(crate) const RECEIVER: &str = "siem.example.com";

/// Body of the protocol's test vectors.
pub(crate) const VECTOR: &str = concat!(
    r##"{"kind":"batch","protocol":1,"epoch":"01930000-0000-7000-8000-000000000001","machine_id":"m-1","hostname":"laptop","user":"u","os":"linux","arch":"x86_64","agent_version":"0.1.0","first_seq":1,"last_seq":4,"count":3,"dead_lettered":[{"seq":3,"line_sha256":"a61b7a1f563d82b56475c1a4db0dd3b93ce4970c8bb0a30bd935d120699951da"}],"chain":{"before":"0000000000000000000000000000000000000000000000000000000000000000","after":"49cecf4e3424ff49958627bb425e5837223b43ce484ab06c9f2e09828a8bf4b2"},"config_hash":"0000000000000000000000000000000000000000000000000000000000000000","sent_at":"2026-11-21T20:00:02.000Z"}"##,
    "\n",
    r##"{"seq":1,"kind":"event","source":"agent","event":"agent_started","severity":"info","at":"2026-11-21T20:00:00.000Z","data":{"version":"0.1.0"}}"##,
    "\n",
    r##"{"seq":2,"kind":"record","source":"claude-sessions","path":"/home/u/.claude/projects/-home-u-app/4f.jsonl","generation":"9c41","offset":0,"length":54,"read_at":"2026-11-21T20:00:01.000Z","record":{"type":"user","uuid":"a" , "message":"h\u00e9 \"q\""}}"##,
    "\n",
    r##"{"seq":4,"kind":"record","source":"claude-sessions","path":"/home/u/.claude/projects/-home-u-app/4f.jsonl","generation":"9c41","offset":55,"length":11,"read_at":"2026-11-21T20:00:01.000Z","raw":"{\"torn\": tr"}"##,
    "\n",
);

/// Line of the entry `seq` in every test.
pub(crate) fn line(seq: u64) -> String {
    format!(
        r#"{{"seq":{seq},"kind":"event","source":"agent","event":"heartbeat","data":{{"n":{}}}}}"#,
        seq * 7
    )
}

/// Returns `h(seq)` over [`line`].
pub(crate) fn chain(seq: u64) -> Digest {
    (1..=seq).fold(Digest::ZERO, |value, seq| value.chain(Digest::of(line(seq).as_bytes())))
}

pub(crate) fn identity() -> Identity {
    Identity {
        machine_id: "m-1".into(),
        hostname: "laptop".into(),
        user: "u".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        agent_version: "0.1.0".into(),
    }
}

/// An agent's device key.
pub(crate) struct TestDevice {
    pub(crate) key: SigningKey,
}

impl TestDevice {
    pub(crate) fn new(seed: u8) -> Self {
        Self { key: SigningKey::from_seed("ai-agent-device", [seed; 32]).unwrap() }
    }

    /// The note that presents the key, for `identity`; after a rotation also signed by `previous`.
    pub(crate) fn enrollment(&self, identity: &Identity, previous: Option<&Self>) -> String {
        let enroll = Enroll {
            receiver: RECEIVER.into(),
            machine: identity.machine_id.clone(),
            user: identity.user.clone(),
            host: identity.hostname.clone(),
            os: identity.os.clone(),
            arch: identity.arch.clone(),
            version: identity.agent_version.clone(),
            key: self.key.key().clone(),
            previous: previous.map(|previous| previous.key.key().clone()),
        };
        match previous {
            Some(previous) => enroll.sign(&[&self.key, &previous.key]).unwrap(),
            None => enroll.sign(&[&self.key]).unwrap(),
        }
    }
}

/// A batch to write, with a correct chain unless a test changes it.
pub(crate) struct BatchText {
    pub(crate) header: BatchHeader,
    lines: Vec<(u64, String)>,
}

impl BatchText {
    pub(crate) fn new(first: u64, last: u64) -> Self {
        let sent_at = "2026-11-21T20:00:02.000Z".to_owned();
        let mut header = BatchHeader::new(&identity(), "e-1".into(), Digest::ZERO, sent_at);
        header.first_seq = Some(first);
        header.last_seq = Some(last);
        header.count = (first..=last).count() as u64;
        header.chain = Some(Chain { before: chain(first - 1), after: chain(last) });
        Self { header, lines: (first..=last).map(|seq| (seq, line(seq))).collect() }
    }

    /// Replaces the line of `seq`.
    pub(crate) fn line(mut self, seq: u64, text: &str) -> Self {
        for (number, line) in &mut self.lines {
            if *number == seq {
                text.clone_into(line);
            }
        }
        self
    }

    /// Computes the end of the chain from its beginning and the lines, as a sender of these does.
    pub(crate) fn chained(mut self) -> Self {
        if let Some(chain) = &mut self.header.chain {
            let lines = self.lines.iter().map(|(_, line)| Digest::of(line.as_bytes()));
            chain.after = lines.fold(chain.before, |value, line| value.chain(line));
        }
        self
    }

    /// Declares `seqs` dead-lettered, in place of sending their lines.
    pub(crate) fn dead(mut self, seqs: &[u64]) -> Self {
        let (dead, lines): (Vec<_>, _) =
            self.lines.into_iter().partition(|(seq, _)| seqs.contains(seq));
        self.lines = lines;
        self.header.count = self.lines.len() as u64;
        self.header.dead_lettered = dead
            .into_iter()
            .map(|(seq, line)| siem_protocol::DeadLettered {
                seq,
                line_sha256: Digest::of(line.as_bytes()),
            })
            .collect();
        self
    }

    /// Sends `seqs` again.
    pub(crate) fn redelivery(seqs: &[u64]) -> Self {
        let mut batch = Self::new(1, 1);
        batch.header.first_seq = None;
        batch.header.last_seq = None;
        batch.header.chain = None;
        batch.header.redelivery = true;
        batch.header.seqs = seqs.to_vec();
        batch.header.count = seqs.len() as u64;
        batch.lines = seqs.iter().map(|seq| (*seq, line(*seq))).collect();
        batch
    }

    /// Applies `edit` to the header.
    pub(crate) fn with(mut self, edit: impl FnOnce(&mut BatchHeader)) -> Self {
        edit(&mut self.header);
        self
    }

    /// Seals the batch; a redelivery at `point`.
    pub(crate) fn seal_at(self, device: &TestDevice, point: Option<(u64, Digest)>) -> Self {
        self.seal_with(device, point, |_| ())
    }

    pub(crate) fn seal(self, device: &TestDevice) -> Self {
        self.seal_at(device, None)
    }

    /// Seals the batch with a statement that `edit` changes.
    pub(crate) fn seal_with(
        self,
        device: &TestDevice,
        point: Option<(u64, Digest)>,
        edit: impl FnOnce(&mut Seal),
    ) -> Self {
        let header = &self.header;
        let own = header.last_seq.zip(header.chain.map(|chain| chain.after));
        let (last_seq, chain) = point.or(own).unwrap();
        let point = ChainPoint { seq: last_seq, hash: chain };
        let mut seal = Seal::of(header, Some(RECEIVER.into()), point, None);
        edit(&mut seal);
        let note = seal.sign(&[&device.key]).unwrap();
        self.with(|header| header.seal = Some(note))
    }

    pub(crate) fn text(&self) -> String {
        let mut text = serde_json::to_string(&self.header).unwrap() + "\n";
        for (_, line) in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// Outbox of an agent: entries of every kind, chained, and heartbeats with correct totals.
#[derive(Clone)]
pub(crate) struct Outbox {
    epoch: String,
    lines: Vec<String>,
    chain: Vec<Digest>,
    records: (u64, u64),
    parts: (u64, u64),
    events: u64,
    uncounted: u64,
}

impl Outbox {
    pub(crate) fn new(epoch: &str) -> Self {
        Self {
            epoch: epoch.to_owned(),
            lines: Vec::new(),
            chain: vec![Digest::ZERO],
            records: (0, 0),
            parts: (0, 0),
            events: 0,
            uncounted: 0,
        }
    }

    /// Highest number.
    pub(crate) fn last(&self) -> u64 {
        self.lines.len() as u64
    }

    fn push(&mut self, rest: &str) -> &mut Self {
        let line = format!(r#"{{"seq":{},{rest}}}"#, self.last() + 1);
        let value = self.chain[self.lines.len()].chain(Digest::of(line.as_bytes()));
        self.chain.push(value);
        self.lines.push(line);
        self
    }

    pub(crate) fn record(&mut self, generation: &str, offset: u64, length: u64) -> &mut Self {
        self.records = (self.records.0 + 1, self.records.1 + length);
        self.push(&format!(
            r#""kind":"record","source":"claude-sessions","path":"/p","generation":"{generation}","offset":{offset},"length":{length},"record":{{}}"#
        ))
    }

    /// Lines of the entries.
    pub(crate) fn lines(&self) -> &[String] {
        &self.lines
    }

    /// A part of six bytes.
    pub(crate) fn part(&mut self, generation: &str, offset: u64, part: u32) -> &mut Self {
        self.parts = (self.parts.0 + 1, self.parts.1 + 6);
        self.push(&format!(
            r#""kind":"record_part","source":"claude-sessions","path":"/p","generation":"{generation}","offset":{offset},"part":{part},"raw_base64":"cGFydHNz""#
        ))
    }

    pub(crate) fn event(&mut self) -> &mut Self {
        self.events += 1;
        self.push(r#""kind":"event","source":"agent","event":"canary","data":{}"#)
    }

    /// An entry that was carried over from an older epoch: a heartbeat of that epoch, with its
    /// totals.
    pub(crate) fn carried_over(&mut self) -> &mut Self {
        self.uncounted += 1;
        self.push(
            r#""kind":"event","source":"agent","event":"heartbeat","data":{"epoch":"older","totals":{"events":900}}"#,
        )
    }

    pub(crate) fn heartbeat(&mut self) -> &mut Self {
        let bytes = self.records.1;
        self.heartbeat_of(bytes)
    }

    /// A heartbeat that claims `record_bytes`, right or wrong.
    pub(crate) fn heartbeat_of(&mut self, record_bytes: u64) -> &mut Self {
        let (epoch, (records, _), (parts, part_bytes)) = (&self.epoch, self.records, self.parts);
        let (events, uncounted) = (self.events, self.uncounted);
        let data = format!(
            r#"{{"files":3,"epoch":"{epoch}","totals":{{"shipped":{{"lines":{records},"bytes":{record_bytes}}},"parts":{{"parts":{parts},"lines":1,"bytes":{part_bytes}}},"events":{events},"uncounted":{uncounted},"blank":{{"lines":1,"bytes":2}}}}}}"#
        );
        self.events += 1;
        self.push(&format!(r#""kind":"event","source":"agent","event":"heartbeat","data":{data}"#))
    }

    pub(crate) fn batch(&self, first: u64, last: u64) -> BatchText {
        let at = |seq: u64| self.chain[seq as usize];
        let mut batch = BatchText::new(first, last).with(|header| {
            header.epoch.clone_from(&self.epoch);
            header.chain = Some(Chain { before: at(first - 1), after: at(last) });
        });
        for seq in first..=last {
            batch = batch.line(seq, &self.lines[seq as usize - 1]);
        }
        batch
    }

    pub(crate) fn redelivery(&self, seqs: &[u64]) -> BatchText {
        let mut batch = BatchText::redelivery(seqs);
        batch.header.epoch.clone_from(&self.epoch);
        for seq in seqs {
            batch = batch.line(*seq, &self.lines[*seq as usize - 1]);
        }
        batch
    }
}
