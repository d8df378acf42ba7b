//! A decoded batch: split into lines, checked against its header, and hashed.

mod ended_epoch;
mod entry_scan;
mod header;
mod line_position;

use std::{net::IpAddr, ops::Range, time::SystemTime};

pub(crate) use ended_epoch::EndedEpoch;
use entry_scan::scan_entry;
pub use entry_scan::{Claim, Counts};
pub(crate) use header::MAX_NAME;
use header::header;
use line_position::Generations;
pub use line_position::LinePosition;
use siem_protocol::{BatchHeader, Digest, Kind, PROTOCOL};

use crate::{
    clock,
    fleet::Heartbeat,
    memory::Reserved,
    trust::{BatchSeal, ConfigRefusal, Event, EventKind},
};

/// Highest sequence number: the largest integer that every JSON reader represents exactly.
pub const MAX_SEQ: u64 = (1 << 53) - 1;
/// Number of entries that a batch may cover, lines and dead-lettered numbers together.
pub const MAX_ENTRIES: u64 = 200_000;
/// Number of refused configurations of a batch that are noted.
const MAX_REFUSALS: usize = 100;

/// Line of one entry in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Sequence number.
    pub seq: u64,
    /// Position in the text of the batch, without the newline.
    pub range: Range<usize>,
    /// Hash of the line.
    pub digest: Digest,
    /// Kind of the entry; `None` for a kind that the protocol does not define.
    pub kind: Option<Kind>,
    /// Number of bytes of a file that the entry accounts for: the `length` of a record, or the
    /// decoded bytes of a part.
    pub bytes: u64,
    /// The line of a file that the entry holds, in whole or in part; `None` for an event.
    pub origin: Option<LinePosition>,
}

/// A batch that conforms to the protocol. The [`Ledger`](crate::ledger::Ledger) decides whether it
/// fits the entries that are already stored.
#[derive(Debug)]
pub struct Batch {
    /// The header line.
    pub header: BatchHeader,
    /// Time of receipt.
    pub received_at: SystemTime,
    /// The seal in the header, as verified on arrival.
    pub seal: BatchSeal,
    /// Address of the sender, or of a proxy before the receiver.
    pub peer: Option<IpAddr>,
    text: Vec<u8>,
    lines: Vec<Line>,
    claims: Vec<Claim>,
    heartbeat: Option<Heartbeat>,
    ended: Option<EndedEpoch>,
    config_refusals: Vec<ConfigRefusal>,
    generations: Generations,
    chain: Vec<Digest>,
    reserved: Reserved,
}

/// Reason why a text is not a batch. Lines are counted from 1, the header line included.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The first line is not a header.
    #[error("line 1 is not a batch header")]
    Header(#[source] serde_json::Error),
    /// The protocol version is not supported.
    #[error("protocol version {0} is not supported, this receiver supports {PROTOCOL}")]
    Protocol(u64),
    /// A member of the header is missing, out of range, or contradicts another one.
    #[error("`{member}` of the batch header {why}")]
    Member {
        /// The member.
        member: &'static str,
        /// The problem with it.
        why: &'static str,
    },
    /// The batch covers too many entries.
    #[error("the batch covers more than {MAX_ENTRIES} entries")]
    TooMany,
    /// The number of lines differs from `count`.
    #[error("the batch has {found} entries, its header says {count}")]
    Count {
        /// The number in the header.
        count: u64,
        /// The number of lines.
        found: u64,
    },
    /// A line has no sequence number.
    #[error("line {line} is not a JSON object with a `seq`")]
    NoEntry {
        /// The line.
        line: usize,
    },
    /// A line has an unexpected sequence number.
    #[error("line {line} has seq {found}, expected {expected}")]
    Order {
        /// The line.
        line: usize,
        /// Its number.
        found: u64,
        /// The number that follows from the header and the previous lines.
        expected: u64,
    },
    /// A line has a number, but is not a JSON object with one `seq` and a `kind`.
    #[error("line {line}, entry {seq}, is not a JSON object with one `seq` and a `kind`")]
    Entry {
        /// The line.
        line: usize,
        /// Its number.
        seq: u64,
    },
}

impl Batch {
    /// Parses a decoded body and hashes each line once.
    ///
    /// # Errors
    /// [`BatchError`]: no part of the batch may be stored.
    pub fn parse(text: Vec<u8>, received_at: SystemTime) -> Result<Self, BatchError> {
        Self::parse_or_header(text, received_at).map_err(|(error, _)| error)
    }

    /// As [`Batch::parse`]. An error comes with the header, if that is valid.
    pub(crate) fn parse_or_header(
        text: Vec<u8>,
        received_at: SystemTime,
    ) -> Result<Self, (BatchError, Option<Box<BatchHeader>>)> {
        let end = memchr::memchr(b'\n', &text).unwrap_or(text.len());
        let header = header(&text[..end]).map_err(|error| (error, None))?;
        let first_line = text.len().min(end + 1);
        let mut found = Found::default();
        let lines = match lines(&text, first_line, &header, &mut found) {
            Ok(lines) => lines,
            Err(error) => return Err((error, Some(Box::new(header)))),
        };
        let chain = chain(&header, &lines);
        let Found { claims, ended, config_refusals, last_heartbeat, generations } = found;
        let heartbeat = last_heartbeat.and_then(|at| {
            let line = scan_entry(&text[lines[at].range.clone()])?;
            line.heartbeat()?.figures(&header.sent_at, &clock::text(received_at))
        });
        Ok(Self {
            header,
            received_at,
            seal: BatchSeal::None,
            peer: None,
            text,
            lines,
            claims,
            heartbeat,
            ended,
            config_refusals,
            generations,
            chain,
            reserved: Reserved::default(),
        })
    }

    /// Parses the header line at the start of a text, of which the rest may be missing.
    pub(crate) fn header_of(text: &[u8]) -> Option<BatchHeader> {
        header(&text[..memchr::memchr(b'\n', text)?]).ok()
    }

    /// Creates an event about the sender.
    pub(crate) fn event(&self, kind: EventKind) -> Event {
        let mut event = Event::new(kind, self.header.machine_id.clone());
        event.user.clone_from(&self.header.user);
        event.host.clone_from(&self.header.hostname);
        event.epoch = Some(self.header.epoch.clone());
        event.peer = self.peer;
        event.device = self.seal.valid().map(|seal| seal.device);
        event
    }

    /// Keeps the reserved memory for as long as the batch exists.
    pub(crate) fn with_memory(mut self, reserved: Reserved) -> Self {
        self.reserved = reserved;
        self
    }

    /// Lines of the entries, in the order sent.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Totals claimed by heartbeats of the batch, in the order of their lines.
    #[must_use]
    pub fn claims(&self) -> &[Claim] {
        &self.claims
    }

    /// Figures of the last heartbeat of the batch.
    #[must_use]
    pub fn heartbeat(&self) -> Option<&Heartbeat> {
        self.heartbeat.as_ref()
    }

    /// End of the epoch before, if an event of the batch reports it.
    pub(crate) fn ended(&self) -> Option<&EndedEpoch> {
        self.ended.as_ref()
    }

    /// Managed configurations that events of the batch refuse, at most 100.
    #[must_use]
    pub fn config_refusals(&self) -> &[ConfigRefusal] {
        &self.config_refusals
    }

    /// Generations of the files in the batch; an [`LinePosition`] refers to one by its index.
    #[must_use]
    pub fn generations(&self) -> &[String] {
        self.generations.names()
    }

    /// Reports whether a line of the batch belongs to `generation`.
    pub(crate) fn has_generation(&self, generation: &str) -> bool {
        self.generations.has(generation)
    }

    /// Bytes of `line` as received, without the newline.
    #[must_use]
    pub fn bytes(&self, line: &Line) -> &[u8] {
        &self.text[line.range.clone()]
    }

    /// Range of numbers that a regular batch covers; `None` for a redelivery.
    #[must_use]
    pub fn covers(&self) -> Option<(u64, u64)> {
        if self.header.redelivery {
            return None;
        }
        self.header.first_seq.zip(self.header.last_seq)
    }

    /// Returns `h(n)` for the numbers from `first` to `last` of a regular batch, computed from its
    /// header and lines.
    ///
    /// # Panics
    /// If the batch does not cover these numbers.
    #[must_use]
    pub fn chain(&self, first: u64, last: u64) -> &[Digest] {
        let start = self.header.first_seq.unwrap_or_default();
        let at = |seq: u64| usize::try_from(seq - start).expect("a batch fits in memory");
        &self.chain[at(first)..=at(last)]
    }

    /// The decoded text, with the header line.
    pub(crate) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Approximate memory size of the batch in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.text.len()
            + self.lines.len() * size_of::<Line>()
            + self.claims.len() * size_of::<Claim>()
            + self.generations.size()
            + self.chain.len() * 32
    }
}

/// Facts that the lines of a batch contain besides.
#[derive(Default)]
struct Found {
    claims: Vec<Claim>,
    ended: Option<EndedEpoch>,
    config_refusals: Vec<ConfigRefusal>,
    /// Index of the line with the last heartbeat.
    last_heartbeat: Option<usize>,
    generations: Generations,
}

fn lines(
    text: &[u8],
    start: usize,
    header: &BatchHeader,
    found: &mut Found,
) -> Result<Vec<Line>, BatchError> {
    let capacity = usize::try_from(header.count).unwrap_or_default().min(text.len() / 16);
    let mut lines = Vec::with_capacity(capacity);
    let mut numbers = Numbers::of(header);
    let mut at = start;
    while at < text.len() {
        let end = memchr::memchr(b'\n', &text[at..]).map_or(text.len(), |length| at + length);
        let number = lines.len() + 2;
        let entry = scan_entry(&text[at..end]).ok_or(BatchError::NoEntry { line: number })?;
        let seq = entry.seq;
        let Some(expected) = numbers.next() else {
            let found = lines.len() as u64 + count_lines(&text[at..]);
            return Err(BatchError::Count { count: header.count, found });
        };
        if seq != expected {
            return Err(BatchError::Order { line: number, found: seq, expected });
        }
        if !entry.is_valid {
            return Err(BatchError::Entry { line: number, seq });
        }
        found.claims.extend(entry.claim(&header.epoch));
        if entry.heartbeat().is_some() {
            found.last_heartbeat = Some(lines.len());
        }
        // An epoch starts once.
        found.ended = found.ended.take().or_else(|| entry.ended(&header.epoch));
        if found.config_refusals.len() < MAX_REFUSALS {
            found.config_refusals.extend(entry.config_refusal());
        }
        lines.push(Line {
            seq,
            range: at..end,
            digest: Digest::of(&text[at..end]),
            kind: entry.kind,
            bytes: entry.bytes(),
            origin: entry.origin().and_then(|origin| found.generations.origin(origin)),
        });
        at = end + 1;
    }
    let found = lines.len() as u64;
    if found != header.count {
        return Err(BatchError::Count { count: header.count, found });
    }
    Ok(lines)
}

fn count_lines(text: &[u8]) -> u64 {
    let newlines = memchr::memchr_iter(b'\n', text).count();
    (newlines + usize::from(text.last().is_some_and(|byte| *byte != b'\n'))) as u64
}

/// Sequence numbers that the lines of a batch must have, in order.
struct Numbers<'a> {
    seqs: std::slice::Iter<'a, u64>,
    next: u64,
    last: u64,
    dead: std::iter::Peekable<std::slice::Iter<'a, siem_protocol::DeadLettered>>,
}

impl<'a> Numbers<'a> {
    fn of(header: &'a BatchHeader) -> Self {
        Self {
            seqs: header.seqs.iter(),
            next: header.first_seq.unwrap_or(1),
            last: header.last_seq.unwrap_or(0),
            dead: header.dead_lettered.iter().peekable(),
        }
    }
}

impl Iterator for Numbers<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if let Some(seq) = self.seqs.next() {
            return Some(*seq);
        }
        while self.dead.next_if(|dead| dead.seq == self.next).is_some() {
            self.next += 1;
        }
        let seq = self.next;
        self.next += 1;
        (seq <= self.last).then_some(seq)
    }
}

/// Returns the number of a valid entry line: a JSON object with one `seq` and a `kind`.
pub(crate) fn seq_of(line: &[u8]) -> Option<u64> {
    scan_entry(line).filter(|entry| entry.is_valid).map(|entry| entry.seq)
}

/// Returns generation, offset and part of an entry's line; see [`LinePosition`].
pub(crate) fn origin_of(line: &[u8]) -> Option<(String, u64, u32)> {
    let entry = scan_entry(line)?;
    let (generation, offset, part) = entry.origin()?;
    Some((siem_protocol::json::string(generation)?.into_owned(), offset, part))
}

fn chain(header: &BatchHeader, lines: &[Line]) -> Vec<Digest> {
    let (Some(first), Some(last), Some(ends)) = (header.first_seq, header.last_seq, header.chain)
    else {
        return Vec::new();
    };
    let mut lines = lines.iter();
    let mut dead = header.dead_lettered.iter().peekable();
    let mut value = ends.before;
    (first..=last)
        .filter_map(|seq| {
            let digest = match dead.next_if(|dead| dead.seq == seq) {
                Some(dead) => dead.line_sha256,
                None => lines.next()?.digest,
            };
            value = value.chain(digest);
            Some(value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use siem_protocol::Chain;

    use super::*;
    use crate::testing::{BatchText, VECTOR};

    fn parse(text: &str) -> Result<Batch, BatchError> {
        Batch::parse(text.as_bytes().to_vec(), UNIX_EPOCH)
    }

    #[test]
    fn chain_equals_the_test_vectors() {
        let batch = parse(VECTOR).unwrap();
        assert_eq!(batch.covers(), Some((1, 4)));
        assert_eq!(batch.lines().iter().map(|line| line.seq).collect::<Vec<_>>(), [1, 2, 4]);
        let expected = [
            "e8ae3548ac976e7bc66f81b82d83df8b88ede855cfde904c8094de7b4c61a2f8",
            "52f4063db923f2871c9bd8c2b2cca5463568521b0c7d4f338be39e34b139dc70",
            "177c3fdf84152057f41166442676f127ee5a0480c7e94924f626e3a24e917061",
            "49cecf4e3424ff49958627bb425e5837223b43ce484ab06c9f2e09828a8bf4b2",
        ];
        assert_eq!(batch.chain(1, 4).iter().map(Digest::to_string).collect::<Vec<_>>(), expected);
        assert_eq!(
            batch.lines()[1].digest.to_string(),
            "4faf548c62d543ae813c3cde32e0dda14bc77ae24daa77972731a3dd22363c86"
        );
    }

    #[test]
    fn lines_are_unchanged_with_or_without_last_newline() {
        for text in [VECTOR, VECTOR.trim_end()] {
            let batch = parse(text).unwrap();
            let lines: Vec<_> = batch
                .lines()
                .iter()
                .map(|line| String::from_utf8(batch.bytes(line).to_vec()).unwrap())
                .collect();
            assert_eq!(lines, VECTOR.trim_end().lines().skip(1).collect::<Vec<_>>());
        }
    }

    #[test]
    fn line_without_number_is_named() {
        let lines = [
            "",
            "{}",
            "x",
            "\u{feff}{\"seq\":2",
            "{\"seq\":-2,\"kind\":\"event\"}",
            "{\"seq\":2.0,\"kind\":\"event\"}",
            "{\"seq\":\"2\",\"kind\":\"event\"}",
            "{\"seq\":99999999999999999,\"kind\":\"event\"}",
            "{\"data\":{\"seq\":2},\"kind\":\"event\"}",
        ];
        for line in lines {
            let text = BatchText::new(1, 3).line(2, line).text();
            let refused = parse(&text).unwrap_err();
            assert!(matches!(refused, BatchError::NoEntry { line: 3 }), "{line}: {refused}");
        }
    }

    /// JSON allows other white space and another order of members, and other agents may use them.
    #[test]
    fn entry_may_have_any_json_layout() {
        let lines = [
            r#"{"seq": 2, "kind": "event"}"#,
            r#"{"kind":"event","seq":2}"#,
            r#" {"k\u0069nd":"event","s\u0065q":2} "#,
            "{\"seq\":2,\"kind\":\"event\"}\r",
        ];
        for line in lines {
            let text = BatchText::new(1, 3).line(2, line).text();
            assert_eq!(parse(&text).unwrap().lines()[1].seq, 2, "{line}");
        }
    }

    #[test]
    fn entry_that_is_not_json_is_named() {
        let wrong = [
            r#"{"seq":2,"kind":"event","data":}"#,
            r#"{"seq":2,"kind":"event"}{}"#,
            r#"{"seq":2,"kind":"event","seq":3}"#,
            r#"{"seq":2,"kind":"event","s\u0065q":3}"#,
            r#"{"seq":2,"kind":""}"#,
            r#"{"seq":2}"#,
        ];
        for line in wrong {
            let text = BatchText::new(1, 3).line(2, line).text();
            let refused = parse(&text).unwrap_err();
            assert!(matches!(refused, BatchError::Entry { line: 3, seq: 2 }), "{line}: {refused}");
        }
    }

    #[test]
    fn line_with_wrong_number_is_named() {
        let text = BatchText::new(5, 8).line(6, r#"{"seq":7,"kind":"event"}"#).text();
        let refused = parse(&text).unwrap_err();
        assert!(matches!(refused, BatchError::Order { line: 3, found: 7, expected: 6 }));
    }

    #[test]
    fn other_counts_of_lines_are_rejected() {
        let text = BatchText::new(1, 3).text();
        let fewer: String = text.lines().take(3).flat_map(|line| [line, "\n"]).collect();
        assert!(matches!(parse(&fewer), Err(BatchError::Count { count: 3, found: 2 })));
        let more = format!("{text}{}\n{}\n", r#"{"seq":4,"kind":"event"}"#, "x");
        assert!(matches!(parse(&more), Err(BatchError::Count { count: 3, found: 5 })));
    }

    #[test]
    fn batch_of_dead_letters_only_is_accepted() {
        let mut batch = BatchText::new(3, 2);
        batch.header.first_seq = Some(3);
        batch.header.last_seq = Some(3);
        batch.header.count = 0;
        batch.header.chain = Some(Chain { before: Digest::ZERO, after: Digest::ZERO });
        batch.header.dead_lettered =
            vec![siem_protocol::DeadLettered { seq: 3, line_sha256: Digest::of(b"x") }];
        let batch = parse(&batch.text()).unwrap();
        assert_eq!(batch.chain(3, 3), [Digest::ZERO.chain(Digest::of(b"x"))]);
    }
}
