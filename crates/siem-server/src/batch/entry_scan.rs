//! Fields of an entry's line that the receiver needs, found in one pass over the line.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siem_protocol::{
    Digest, Kind, NulRun, json,
    names::event,
    nul_runs::{MAX_NUL_RUNS, check_runs, total_length},
};

use super::{EndedEpoch, MAX_SEQ};
use crate::{fleet::HeartbeatText, trust::ConfigRefusal};

/// Maximum length of a generation's name, as JSON, for the search in other epochs.
const MAX_GENERATION: usize = 256;

/// Number of entries of each kind, and of the bytes of files that they account for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Counts {
    /// Number of records.
    pub records: u64,
    /// Sum of their `length`.
    pub record_bytes: u64,
    /// Number of parts of large lines.
    pub parts: u64,
    /// Sum of their bytes, as they were in the file.
    pub part_bytes: u64,
    /// Number of events.
    pub events: u64,
}

impl Counts {
    /// Reports whether all counts are 0.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// Number of entries of all kinds.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.records.saturating_add(self.parts).saturating_add(self.events)
    }

    /// Counts one entry. An entry of an unknown kind is not counted.
    pub fn count(&mut self, kind: Option<Kind>, bytes: u64) {
        let (entries, sum) = match kind {
            Some(Kind::Record) => (&mut self.records, Some(&mut self.record_bytes)),
            Some(Kind::RecordPart) => (&mut self.parts, Some(&mut self.part_bytes)),
            Some(Kind::Event) => (&mut self.events, None),
            None => return,
        };
        *entries = entries.saturating_add(1);
        if let Some(sum) = sum {
            *sum = sum.saturating_add(bytes);
        }
    }

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        self.records = self.records.saturating_add(other.records);
        self.record_bytes = self.record_bytes.saturating_add(other.record_bytes);
        self.parts = self.parts.saturating_add(other.parts);
        self.part_bytes = self.part_bytes.saturating_add(other.part_bytes);
        self.events = self.events.saturating_add(other.events);
    }
}

/// Totals that an agent claims in a heartbeat for the numbers below the heartbeat's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Number of the heartbeat.
    pub seq: u64,
    /// Counts of the entries below it.
    pub counts: Counts,
    /// Number of entries that were carried over from an older epoch. They come first, and `counts`
    /// excludes them.
    #[serde(default)]
    pub uncounted: u64,
}

/// Fields of a line that has a `seq`.
#[derive(Debug, Default)]
pub(super) struct EntryScan<'a> {
    pub(super) seq: u64,
    /// True if the line is a valid entry.
    pub(super) is_valid: bool,
    pub(super) kind: Option<Kind>,
    length: u64,
    raw_base64: Option<&'a str>,
    nul_runs: Option<&'a str>,
    /// Number of bytes in the runs of NUL.
    nul_bytes: u64,
    is_edited: bool,
    generation: Option<&'a str>,
    offset: Option<u64>,
    part: u64,
    altered: bool,
    heartbeat: bool,
    at: Option<&'a str>,
    config_refused: bool,
    epoch_started: bool,
    data: Option<&'a str>,
}

/// Scans a line, also one that is malformed after its number. If a member occurs twice, the last
/// one counts.
pub(super) fn scan_entry(line: &[u8]) -> Option<EntryScan<'_>> {
    let (text, readable) = match std::str::from_utf8(line) {
        Ok(text) => (text, true),
        Err(_) => (line.utf8_chunks().next()?.valid(), false),
    };
    let mut entry = EntryScan::default();
    let (mut seq, mut seqs, mut has_kind) = (None, 0, false);
    let shape = json::members(text, |member| {
        let key = match member.key.contains('\\') {
            true => json::unescape(member.key).unwrap_or_default(),
            false => Cow::Borrowed(member.key),
        };
        let value = member.value;
        match key.as_ref() {
            "seq" => {
                seq = seq.or_else(|| number(value));
                seqs += 1;
            }
            "kind" => {
                let name = json::string(value).unwrap_or_default();
                has_kind = !name.is_empty();
                entry.kind = kind(&name);
            }
            "length" => entry.length = size(value).unwrap_or_default(),
            "raw_base64" => entry.raw_base64 = Some(value),
            "nul_runs" => entry.nul_runs = Some(value),
            "cut" | "masked" => entry.is_edited = true,
            "generation" => entry.generation = Some(value),
            "offset" => entry.offset = number(value),
            "altered" => entry.altered = value == "true",
            "part" => entry.part = number(value).unwrap_or_default(),
            "event" => {
                let name = json::string(value).unwrap_or_default();
                entry.heartbeat = name == event::HEARTBEAT;
                entry.config_refused = name == event::CONFIG_REFUSED;
                entry.epoch_started = name == event::EPOCH_STARTED;
            }
            "at" => entry.at = Some(value),
            "data" => entry.data = Some(value),
            _ => {}
        }
    });
    entry.is_valid = readable
        && seqs == 1
        && has_kind
        && shape.is_some_and(|shape| shape.object)
        && entry.has_valid_runs();
    entry.seq = seq?;
    Some(entry)
}

impl EntryScan<'_> {
    /// Checks the runs of NUL against the data and the length of the line, and counts their bytes.
    fn has_valid_runs(&mut self) -> bool {
        let Some(text) = self.nul_runs else { return true };
        let Some(runs) = nul_runs(text) else { return false };
        let data = (!self.is_edited).then(|| self.data_length());
        let Ok(length) = check_runs(&runs, data) else { return false };
        self.nul_bytes = total_length(&runs);
        let is_whole_line = self.kind == Some(Kind::Record) && !self.is_edited;
        self.raw_base64.is_some() && (!is_whole_line || length == self.length)
    }

    /// Number of bytes in `raw_base64`.
    fn data_length(&self) -> u64 {
        self.raw_base64.map_or(0, decoded_length)
    }

    /// Number of bytes of a file that the entry accounts for.
    pub(super) fn bytes(&self) -> u64 {
        match self.kind {
            Some(Kind::Record) => self.length,
            Some(Kind::RecordPart) => self.data_length().saturating_add(self.nul_bytes),
            Some(Kind::Event) | None => 0,
        }
    }

    /// Generation of the file (as JSON), offset of the line, and number of the part: 0 for a whole
    /// line. A line that is sent again because it was altered has none: it repeats no other.
    pub(super) fn origin(&self) -> Option<(&str, u64, u32)> {
        if self.altered {
            return None;
        }
        let part = match self.kind? {
            Kind::Record => 0,
            Kind::RecordPart => u32::try_from(self.part).ok()?,
            Kind::Event => return None,
        };
        // Longer names are not needed, and names are kept in memory.
        let generation = self.generation.filter(|name| name.len() <= MAX_GENERATION)?;
        Some((generation, self.offset?, part))
    }

    /// Returns the heartbeat that the line holds.
    pub(super) fn heartbeat(&self) -> Option<HeartbeatText<'_>> {
        if !self.heartbeat || self.kind != Some(Kind::Event) {
            return None;
        }
        Some(HeartbeatText { seq: self.seq, at: self.at, data: self.data? })
    }

    /// Returns the claim of a heartbeat of `epoch` in the known format. A heartbeat that was
    /// carried over from an older epoch names that epoch.
    pub(super) fn claim(&self, epoch: &str) -> Option<Claim> {
        let data: Heartbeat<'_> = serde_json::from_str(self.heartbeat()?.data).ok()?;
        let Totals { shipped, parts, events, uncounted } = data.totals;
        let counts = Counts {
            records: shipped.lines,
            record_bytes: shipped.bytes,
            parts: parts.parts,
            part_bytes: parts.bytes,
            events,
        };
        (data.epoch == epoch).then_some(Claim { seq: self.seq, counts, uncounted })
    }
}

impl EntryScan<'_> {
    /// Returns the end of the epoch before `epoch`, if the entry reports it.
    pub(super) fn ended(&self, epoch: &str) -> Option<EndedEpoch> {
        let is_start = self.epoch_started && self.kind == Some(Kind::Event);
        EndedEpoch::parse(self.seq, self.data.filter(|_| is_start)?, epoch)
    }

    /// Returns the refusal of a managed configuration that the entry reports.
    pub(super) fn config_refusal(&self) -> Option<ConfigRefusal> {
        #[derive(Deserialize)]
        struct Data {
            from: String,
            reason: String,
            #[serde(default)]
            hash: Option<Digest>,
        }
        if !self.config_refused || self.kind != Some(Kind::Event) {
            return None;
        }
        let data: Data = serde_json::from_str(self.data?).ok()?;
        let Data { from, reason, hash } = data;
        (from == "server").then_some(ConfigRefusal { hash, reason })
    }
}

/// Members of a heartbeat's `data` that are compared.
#[derive(Deserialize)]
struct Heartbeat<'a> {
    #[serde(borrow)]
    epoch: Cow<'a, str>,
    totals: Totals,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Totals {
    shipped: Shipped,
    parts: Parts,
    events: u64,
    uncounted: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Shipped {
    lines: u64,
    bytes: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Parts {
    parts: u64,
    bytes: u64,
}

fn kind(name: &str) -> Option<Kind> {
    match name {
        "record" => Some(Kind::Record),
        "record_part" => Some(Kind::RecordPart),
        "event" => Some(Kind::Event),
        _ => None,
    }
}

/// Parses runs of NUL, at most as many as an entry may have.
fn nul_runs(text: &str) -> Option<Vec<NulRun>> {
    /// Length of the longest run in JSON, with its comma.
    const MAX_RUN: usize = "[18446744073709551615,18446744073709551615],".len();

    let is_short = text.len() <= MAX_NUL_RUNS * MAX_RUN + 2;
    is_short.then(|| serde_json::from_str(text).ok()).flatten()
}

/// Number of bytes encoded by a JSON string of padded base64, without decoding it.
fn decoded_length(value: &str) -> u64 {
    let Some(text) = json::string(value) else { return 0 };
    let padding = text.bytes().rev().take(2).take_while(|byte| *byte == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding) as u64
}

/// Parses a number in JSON notation that other programs read exactly.
fn number(value: &str) -> Option<u64> {
    size(value).filter(|seq| *seq <= MAX_SEQ)
}

/// Parses a number of bytes of a file in JSON notation: digits only.
fn size(value: &str) -> Option<u64> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use siem_protocol::{
        Content,
        entry::{PartLine, PathText},
    };

    use super::*;

    #[test]
    fn bytes_of_a_part_are_counted_without_decoding() {
        let path = PathText::new(std::path::Path::new("/p"));
        for length in 0..50 {
            let bytes = vec![0xff; length];
            let mut line = Vec::new();
            let part = PartLine {
                source: "claude-sessions",
                path: &path,
                generation: "g",
                offset: 7,
                part: 3,
                read_at: "",
                enriched: "",
                whole: None,
                incomplete: false,
                nul_runs: &[],
                bytes: &bytes,
            };
            part.write(9, &mut line);
            let entry = scan_entry(&line).unwrap();
            assert_eq!((entry.kind, entry.bytes()), (Some(Kind::RecordPart), length as u64));
            assert_eq!(entry.origin(), Some(("\"g\"", 7, 3)));
        }
        assert_eq!(decoded_length(r#""\/\/8=""#), 2);
        assert!(matches!(Content::of(b"\xff"), Content::Bytes(_)));
    }

    #[test]
    fn runs_of_nul_are_counted_and_checked() {
        let scan = |members: &str| {
            let line = format!(r#"{{"seq":9,"generation":"g","offset":7,{members}}}"#);
            let entry = scan_entry(line.as_bytes()).unwrap();
            (entry.is_valid, entry.bytes())
        };
        let part = |runs: &str| {
            scan(&format!(r#""kind":"record_part","part":1,"nul_runs":{runs},"raw_base64":"YWI=""#))
        };
        assert_eq!(part("[]"), (true, 2));
        assert_eq!(part("[[0,4096],[4097,5000]]"), (true, 9098));
        assert_eq!(part("[[2,9223372036854775805]]"), (true, (1 << 63) - 1));
        let many: Vec<_> = (0..65).map(|n| format!("[{},4096]", n * 4097)).collect();
        for refused in [
            "7",
            "null",
            "[[0]]",
            "[[0,4095]]",
            "[[3,4096]]",
            "[[0,4096],[4096,4096]]",
            "[[0,18446744073709551615]]",
            "[[-1,4096]]",
            &format!("[{}]", many.join(",")),
            &format!("[{}]", " ".repeat(5000)),
        ] {
            assert!(!part(refused).0, "{refused}");
        }
        let record = |length: u64, more: &str| {
            let runs = r#""nul_runs":[[1,4096]]"#;
            scan(&format!(r#""kind":"record","length":{length},{more}{runs},"raw_base64":"YWI=""#))
        };
        assert_eq!(record(4098, ""), (true, 4098));
        assert!(!record(4097, "").0, "another length");
        assert_eq!(record(9000, r#""cut":[{"by":"x","bytes":9}],"#), (true, 9000));
        assert!(!scan(r#""kind":"record","length":4096,"nul_runs":[[0,4096]],"record":{}"#).0);
    }

    #[test]
    fn altered_line_repeats_no_other() {
        let line = |altered: &str| {
            format!(
                r#"{{"seq":5,"kind":"record","generation":"g","offset":7{altered},"record":1}}"#
            )
        };
        let (first, again) = (line(""), line(siem_protocol::entry::ALTERED));
        assert_eq!(scan_entry(first.as_bytes()).unwrap().origin(), Some(("\"g\"", 7, 0)));
        assert_eq!(scan_entry(again.as_bytes()).unwrap().origin(), None);
    }

    fn claim(data: &str) -> Option<Claim> {
        let line = format!(
            r#"{{"seq":5,"kind":"event","source":"agent","event":"heartbeat","data":{data}}}"#
        );
        scan_entry(line.as_bytes()).unwrap().claim("e")
    }

    #[test]
    fn claim_ignores_other_members_of_a_heartbeat() {
        let data = r#"{"lag":{"x":[1]},"epoch":"e","totals":{"shipped":{"lines":3,"bytes":99},
            "parts":{"parts":2,"lines":1,"bytes":50},"events":4,"uncounted":6,"blank":{"lines":1,"bytes":2},
            "filtered":{"meta":{"is_meta":{"lines":1,"bytes":2}}}},"dead_lettered":{"siem":{"entries":1}}}"#;
        let counts = Counts { records: 3, record_bytes: 99, parts: 2, part_bytes: 50, events: 4 };
        assert_eq!(claim(data), Some(Claim { seq: 5, counts, uncounted: 6 }));
        let absent = Some(Claim { seq: 5, ..Claim::default() });
        assert_eq!(claim(r#"{"epoch":"e","totals":{}}"#), absent);
    }

    #[test]
    fn heartbeat_of_other_shape_or_epoch_has_no_claim() {
        for data in [
            "{}",
            "null",
            "7",
            r#"{"epoch":"e"}"#,
            r#"{"totals":{}}"#,
            r#"{"epoch":"other","totals":{}}"#,
            r#"{"epoch":"e","totals":[1]}"#,
            r#"{"epoch":"e","totals":{"events":-1}}"#,
            r#"{"epoch":"e","totals":{"events":"4"}}"#,
            r#"{"epoch":"e","totals":{"shipped":{"lines":1.5}}}"#,
        ] {
            assert_eq!(claim(data), None, "{data}");
        }
        let other = r#"{"seq":5,"kind":"event","event":"canary","data":{"epoch":"e","totals":{}}}"#;
        assert_eq!(scan_entry(other.as_bytes()).unwrap().claim("e"), None);
    }
}
