//! Damaged and malicious bodies: reading them never panics, and a batch that is accepted is valid.

use crate::common::{BatchText, Outbox, VECTOR, encoded};
use proptest::{prelude::*, sample::Index};
use siem_protocol::{ChainPoint, Digest, Encoding};
use siem_server::{Limits, batch::Batch, ledger::Ledger, read_body};

const ENCODINGS: [Encoding; 3] = [Encoding::Zstd, Encoding::Gzip, Encoding::Identity];

fn read(body: &[u8], encoding: &str) -> Result<Batch, u16> {
    let mut limits = Limits::default();
    (limits.compressed, limits.decoded) = (1 << 20, 1 << 20);
    let headers = [("content-encoding", encoding.as_bytes())];
    read_body(headers, body, &limits)
}

/// Batches with all members that a batch may have.
fn texts() -> Vec<String> {
    let mut outbox = Outbox::new("e-1");
    outbox.record("g", 0, 40).part("h", 0, 1).event().heartbeat().carried_over().heartbeat();
    let base = ChainPoint { seq: 1, hash: Digest::ZERO };
    vec![
        VECTOR.to_owned(),
        outbox.batch(1, 6).text(),
        outbox.batch(2, 6).dead(&[3]).with(|header| header.base = Some(base)).text(),
        outbox.redelivery(&[2, 4]).text(),
        BatchText::new(1, 2).dead(&[1, 2]).text(),
    ]
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Cut(Index, usize),
    Insert(Index, Vec<u8>),
    /// Repeats a piece of the body.
    Double(Index, Index, usize),
    /// Changes the value of a member.
    Value(Index, Vec<u8>),
    /// Removes a line, or replaces it by another one.
    Line(Index, Option<Index>),
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..6),
        prop::sample::select(vec![
            "\n",
            "{}",
            "\"",
            "\\u0000",
            "\\ud800",
            "-1",
            "9007199254740993",
            "1e999",
            "null",
            "[[[[",
            "\"seq\":1,",
            "\"data\":{\"epoch\":\"e-1\",\"totals\":{}},",
            "18446744073709551616",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (any::<Index>(), 1usize..40).prop_map(|(at, length)| Damage::Cut(at, length)),
        (any::<Index>(), piece()).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (any::<Index>(), piece()).prop_map(|(at, bytes)| Damage::Value(at, bytes)),
        any::<(Index, Option<Index>)>().prop_map(|(at, other)| Damage::Line(at, other)),
        (any::<Index>(), any::<Index>(), 1usize..200)
            .prop_map(|(from, to, length)| Damage::Double(from, to, length)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let end = |at: usize, length: usize| (at + length).min(bytes.len());
    match damage {
        Damage::Flip(at, bit) => {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        Damage::Cut(at, length) => {
            let at = at.index(bytes.len());
            bytes.drain(at..end(at, *length));
        }
        Damage::Insert(at, piece) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, piece.iter().copied());
        }
        Damage::Double(from, to, length) => {
            let from = from.index(bytes.len());
            let piece = bytes[from..end(from, *length)].to_vec();
            let to = to.index(bytes.len());
            bytes.splice(to..to, piece);
        }
        Damage::Value(at, piece) => {
            let all: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at] == b':').collect();
            if all.is_empty() {
                return;
            }
            let start = all[at.index(all.len())] + 1;
            let rest = &bytes[start..];
            let length = rest.iter().position(|byte| matches!(byte, b',' | b'}' | b'\n'));
            let end = start + length.unwrap_or(rest.len());
            bytes.splice(start..end, piece.iter().copied());
        }
        Damage::Line(at, other) => {
            let mut lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
            let other = other.map(|other| lines[other.index(lines.len())]);
            let at = at.index(lines.len());
            lines.splice(at..=at, other);
            *bytes = lines.concat();
        }
    }
}

/// An accepted batch is valid, and a ledger can process it.
fn check(batch: &Batch) -> Result<(), TestCaseError> {
    prop_assert_eq!(batch.lines().len() as u64, batch.header.count);
    for line in batch.lines() {
        let bytes = batch.bytes(line);
        prop_assert_eq!(Digest::of(bytes), line.digest);
        prop_assert!(!bytes.contains(&b'\n'));
        let generation = line.origin.map(|origin| origin.generation as usize);
        prop_assert!(generation.is_none_or(|at| at < batch.generations().len()));
    }
    if let Some((first, last)) = batch.covers() {
        prop_assert_eq!(batch.chain(first, last).len() as u64, last - first + 1);
    }
    let mut ledger = Ledger::default();
    let plan = ledger.plan(batch, &mut [].as_slice()).unwrap();
    ledger.apply(&plan.change);
    prop_assert!(ledger.held() <= batch.header.count);
    if let Some(found) = ledger.comparison() {
        prop_assert!(found.held.entries() + found.missing <= found.below);
    }
    Ok(())
}

#[test]
fn whole_bodies_are_read_in_every_encoding() {
    for text in texts() {
        for encoding in ENCODINGS {
            let batch = read(&encoded(text.as_bytes(), encoding), encoding.as_str()).unwrap();
            check(&batch).unwrap();
        }
    }
    let body = VECTOR.as_bytes();
    assert_eq!(read(body, "br").unwrap_err(), 415);
    assert_eq!(read(body, "zstd").unwrap_err(), 400);
    assert_eq!(read(&vec![b' '; (1 << 20) + 1], "identity").unwrap_err(), 413);
    let limits = Limits::default();
    let other_host = [(siem_protocol::names::header::HOSTNAME, b"other".as_slice())];
    assert_eq!(read_body(other_host, body, &limits).unwrap_err(), 400);
    assert_eq!(read_body([("a b", b"".as_slice())], body, &limits).unwrap_err(), 400);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn damaged_bodies_never_panic(
        text in 0usize..5, encoding in 0usize..3, inside in any::<bool>(),
        damage in prop::collection::vec(damage(), 1..5)
    ) {
        let (mut bytes, encoding) = (texts().swap_remove(text).into_bytes(), ENCODINGS[encoding]);
        if !inside {
            bytes = encoded(&bytes, encoding);
        }
        for damage in &damage {
            apply(&mut bytes, damage);
        }
        if inside {
            bytes = encoded(&bytes, encoding);
        }
        if let Ok(batch) = read(&bytes, encoding.as_str()) {
            check(&batch)?;
        }
    }
}
