//! What a line tells of itself, found in one pass over it.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siem_protocol::{Kind, json, names::event};

use super::MAX_SEQ;

/// How long a generation's name may be, as JSON, to be looked for in other epochs.
const MAX_GENERATION: usize = 256;

/// How many entries of each kind, and how many bytes of the machine's files they stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Counts {
    /// Entries that are a record.
    pub records: u64,
    /// The sum of their `length`.
    pub record_bytes: u64,
    /// Entries that are a part of a large line.
    pub parts: u64,
    /// The sum of the bytes in these parts, as they were in the file.
    pub part_bytes: u64,
    /// Entries that are an event.
    pub events: u64,
}

impl Counts {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// How many entries there are.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.records.saturating_add(self.parts).saturating_add(self.events)
    }

    /// Counts one entry. One of a kind that the protocol does not know counts nowhere.
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

    /// Adds what `other` has.
    pub fn add(&mut self, other: &Self) {
        self.records = self.records.saturating_add(other.records);
        self.record_bytes = self.record_bytes.saturating_add(other.record_bytes);
        self.parts = self.parts.saturating_add(other.parts);
        self.part_bytes = self.part_bytes.saturating_add(other.part_bytes);
        self.events = self.events.saturating_add(other.events);
    }
}

/// What an agent says, in a heartbeat, that it has numbered below the heartbeat's own number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The heartbeat's number.
    pub seq: u64,
    /// What lies below it.
    pub counts: Counts,
    /// How many entries were taken over from an older epoch. They come first, and `counts` leaves
    /// them out.
    #[serde(default)]
    pub uncounted: u64,
}

/// What a line that has a `seq` looks like.
#[derive(Debug, Default)]
pub(super) struct Look<'a> {
    pub(super) seq: u64,
    /// Whether all of it is as an entry must be.
    pub(super) whole: bool,
    pub(super) kind: Option<Kind>,
    length: u64,
    raw_base64: Option<&'a str>,
    generation: Option<&'a str>,
    offset: Option<u64>,
    part: u64,
    heartbeat: bool,
    data: Option<&'a str>,
}

/// Looks at a line, even at one that goes wrong behind its number. Of a member given twice the
/// last one counts.
pub(super) fn look(line: &[u8]) -> Option<Look<'_>> {
    let (text, readable) = match std::str::from_utf8(line) {
        Ok(text) => (text, true),
        Err(_) => (line.utf8_chunks().next()?.valid(), false),
    };
    let mut look = Look::default();
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
                look.kind = kind(&name);
            }
            "length" => look.length = number(value).unwrap_or_default(),
            "raw_base64" => look.raw_base64 = Some(value),
            "generation" => look.generation = Some(value),
            "offset" => look.offset = number(value),
            "part" => look.part = number(value).unwrap_or_default(),
            "event" => {
                look.heartbeat = json::string(value).is_some_and(|it| it == event::HEARTBEAT)
            }
            "data" => look.data = Some(value),
            _ => {}
        }
    });
    look.whole = readable && seqs == 1 && has_kind && shape.is_some_and(|shape| shape.object);
    look.seq = seq?;
    Some(look)
}

impl Look<'_> {
    /// How many bytes of a file the entry stands for.
    pub(super) fn bytes(&self) -> u64 {
        match self.kind {
            Some(Kind::Record) => self.length,
            Some(Kind::RecordPart) => self.raw_base64.map_or(0, decoded_length),
            Some(Kind::Event) | None => 0,
        }
    }

    /// Where in which generation of a file, as JSON, the entry's line began, and which part of it it is: 0
    /// for a whole line.
    pub(super) fn origin(&self) -> Option<(&str, u64, u32)> {
        let part = match self.kind? {
            Kind::Record => 0,
            Kind::RecordPart => u32::try_from(self.part).ok()?,
            Kind::Event => return None,
        };
        // Nobody needs a longer name, and names are held in memory.
        let generation = self.generation.filter(|name| name.len() <= MAX_GENERATION)?;
        Some((generation, self.offset?, part))
    }

    /// What the line claims, if it is a heartbeat of `epoch` in the shape that is known. One that
    /// was taken over from an older epoch says so by its own `epoch`.
    pub(super) fn claim(&self, epoch: &str) -> Option<Claim> {
        if !self.heartbeat || self.kind != Some(Kind::Event) {
            return None;
        }
        let data: Heartbeat<'_> = serde_json::from_str(self.data?).ok()?;
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

/// The part of a heartbeat's `data` that is compared.
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

/// How many bytes a JSON string of padded base64 stands for; nothing is decoded.
fn decoded_length(value: &str) -> u64 {
    let Some(text) = json::string(value) else { return 0 };
    let padding = text.bytes().rev().take(2).take_while(|byte| *byte == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding) as u64
}

/// A number as JSON writes it: digits only.
fn number(value: &str) -> Option<u64> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|seq| digits && *seq <= MAX_SEQ)
}

#[cfg(test)]
mod tests {
    use siem_protocol::{
        Content,
        entry::{PartLine, PathText},
    };

    use super::*;

    #[test]
    fn counts_the_bytes_of_a_part_without_decoding_it() {
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
                bytes: &bytes,
            };
            part.write(9, &mut line);
            let look = look(&line).unwrap();
            assert_eq!((look.kind, look.bytes()), (Some(Kind::RecordPart), length as u64));
            assert_eq!(look.origin(), Some(("\"g\"", 7, 3)));
        }
        assert_eq!(decoded_length(r#""\/\/8=""#), 2);
        assert!(matches!(Content::of(b"\xff"), Content::Bytes(_)));
    }

    fn claim(data: &str) -> Option<Claim> {
        let line = format!(
            r#"{{"seq":5,"kind":"event","source":"agent","event":"heartbeat","data":{data}}}"#
        );
        look(line.as_bytes()).unwrap().claim("e")
    }

    #[test]
    fn reads_the_figures_of_a_heartbeat_and_ignores_all_else_in_it() {
        let data = r#"{"lag":{"x":[1]},"epoch":"e","totals":{"shipped":{"lines":3,"bytes":99},
            "parts":{"parts":2,"lines":1,"bytes":50},"events":4,"uncounted":6,"blank":{"lines":1,"bytes":2},
            "filtered":{"meta":{"is_meta":{"lines":1,"bytes":2}}}},"dead_lettered":{"siem":{"entries":1}}}"#;
        let counts = Counts { records: 3, record_bytes: 99, parts: 2, part_bytes: 50, events: 4 };
        assert_eq!(claim(data), Some(Claim { seq: 5, counts, uncounted: 6 }));
        let absent = Some(Claim { seq: 5, ..Claim::default() });
        assert_eq!(claim(r#"{"epoch":"e","totals":{}}"#), absent);
    }

    #[test]
    fn a_heartbeat_of_another_shape_or_epoch_claims_nothing() {
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
        assert_eq!(look(other.as_bytes()).unwrap().claim("e"), None);
    }
}
