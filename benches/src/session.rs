//! A synthetic session file: the kinds, sizes and order of its records are realistic, the words are
//! not.

use std::fmt::Write as _;

use ai_agent::internals::tail::{FileKey, GenerationId, Origin, Piece};

const WORDS: [&str; 16] = [
    "the",
    "reader",
    "commits",
    "offset",
    "fn",
    "self",
    "match",
    "error",
    "größe",
    "src/lib.rs:42",
    "let",
    "0x1f",
    "and",
    "then",
    "returns",
    "\\\"quoted\\\"",
];

/// Returns complete lines of at least `bytes` bytes in total, the same at each call.
#[must_use]
pub fn session(bytes: usize) -> Vec<u8> {
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let (mut text, mut number) = (String::new(), 0);
    while text.len() < bytes {
        record(&mut text, number, &mut random);
        number += 1;
    }
    text.into_bytes()
}

/// Appends one line: of a hundred, 23 are `progress`, 6 snapshots, 10 of sub-agents, and one is a duplicate.
fn record(text: &mut String, number: u64, random: &mut Random) {
    let kind = random.below(100);
    // A duplicate has the number of the previous record.
    let uuid = if kind == 99 { number.saturating_sub(1) } else { number };
    // 200 bytes to 13 KB, half of them under 1.6 KB.
    let size = 200 << (random.below(4) + random.below(4));
    let side = random.below(10) == 0;
    let head = format!(
        r#"{{"parentUuid":"00000000-0000-4000-8000-{number:012x}","isSidechain":{side},"userType":"external","cwd":"/home/dev/shop","sessionId":"6f1f7c1e-0000-4000-8000-000000000001","version":"2.1.7","gitBranch":"main","#
    );
    let tail = format!(
        r#","uuid":"00000000-0000-4000-9000-{uuid:012x}","timestamp":"2026-11-21T20:00:00.000Z"}}"#
    );
    let mut words = String::new();
    while words.len() < size {
        words.push_str(WORDS[random.below(16)]);
        words.push_str(if random.below(12) == 0 { "\\n    " } else { " " });
    }
    let body = match kind {
        0..23 => {
            format!(r#""type":"progress","data":{{"type":"bash_progress","output":"{words}"}}"#)
        }
        23..29 => format!(r#""type":"file-history-snapshot","snapshot":{{"files":"{words}"}}"#),
        29..50 => format!(
            r#""message":{{"role":"assistant","content":[{{"type":"text","text":"ok"}},{{"type":"tool_use","id":"toolu_{number}","name":"Bash","input":{{"command":"{words}"}}}}],"usage":{{"input_tokens":3}}}},"type":"assistant""#
        ),
        50..72 => format!(
            r#""type":"user","message":{{"role":"user","content":[{{"tool_use_id":"toolu_{number}","type":"tool_result","content":"{words}"}}]}},"toolUseResult":{{"stdout":"{words}","interrupted":false}}"#
        ),
        72..75 => format!(
            r#""type":"user","isMeta":true,"message":{{"role":"user","content":"{words}"}}"#
        ),
        _ => format!(
            r#""message":{{"role":"assistant","content":[{{"type":"text","text":"{words}"}}]}},"type":"assistant""#
        ),
    };
    writeln!(text, "{head}{body}{tail}").expect("a string takes every write");
}

/// Splits a session into pieces, as the tail does.
#[must_use]
pub fn pieces(session: &[u8]) -> Vec<Piece<'_>> {
    let mut offset = 0;
    session
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| {
            let size = line.len() as u64;
            let bytes = line.strip_suffix(b"\n").unwrap_or(line);
            offset += size;
            Piece::line(offset - size, bytes, size)
        })
        .collect()
}

/// Returns the origin of the pieces.
#[must_use]
pub fn origin() -> Origin {
    let path =
        "/home/dev/.claude/projects/-home-dev-shop/6f1f7c1e-0000-4000-8000-000000000001.jsonl";
    Origin::new(FileKey(1), path, GenerationId("5e".repeat(16)))
}

/// Xorshift: the same numbers on every system.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits fit") % most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_lines_of_json_objects() {
        let session = session(100_000);
        let pieces = pieces(&session);
        assert!(pieces.len() > 20);
        for piece in pieces {
            let Piece::Line { bytes, .. } = piece else { panic!("{piece:?}") };
            let record = ai_agent::internals::stages::Record::from_line(bytes);
            assert!(record.is_object() && record.kind().is_some() && record.uuid().is_some());
        }
    }
}
