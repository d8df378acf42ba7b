//! Requests to the receiver with any body.
//!
//! The low two bits of the first byte select the encoding in the header. With bit 2 the rest is plain
//! text and is encoded here, because mutations of encoded text would fail its checksums. With bit 3
//! the rest up to the first newline is the value of the header `X-Siem-Machine-Id`.

use std::io::Write as _;

use ai_agent::internals::protocol::Digest;
use siem_server::{
    Limits,
    batch::{Batch, MAX_ENTRIES, MAX_SEQ},
    read_body,
};

const ENCODINGS: [&str; 4] = ["identity", "zstd", "gzip", "br"];
/// Statuses with which the receiver may refuse a body.
const REFUSALS: [u16; 4] = [400, 413, 415, 422];

/// Fails if the receiver accepts an invalid batch, or reads another text than was sent.
pub fn run(data: &[u8]) {
    let Some((&how, mut body)) = data.split_first() else { return };
    let mut machine = None;
    if how & 8 != 0 {
        let end = body.iter().position(|byte| *byte == b'\n').unwrap_or(body.len());
        machine = Some(&body[..end]);
        body = &body[body.len().min(end + 1)..];
    }
    let encoding = ENCODINGS[usize::from(how & 3)];
    if how & 4 == 0 {
        let read = read(encoding, machine, body);
        if encoding == "identity" {
            check(body, &read);
        }
        return;
    }
    let plain = read("identity", machine, body);
    check(body, &plain);
    let encoded = read(encoding, machine, &encode(encoding, body));
    if ENCODINGS[..3].contains(&encoding) {
        let seen = |read: &Result<Batch, u16>| read.as_ref().map(|b| b.lines().to_vec()).ok();
        assert_eq!(seen(&plain), seen(&encoded));
        assert_eq!(plain.err(), encoded.err());
    } else {
        assert!(matches!(encoded, Err(415 | 400)));
    }
}

fn read(encoding: &str, machine: Option<&[u8]>, body: &[u8]) -> Result<Batch, u16> {
    let mut limits = Limits::default();
    (limits.compressed, limits.decoded) = (1 << 20, 1 << 20);
    let headers = [("content-encoding", encoding.as_bytes())];
    let headers = headers.into_iter().chain(machine.map(|value| ("x-siem-machine-id", value)));
    let read = read_body(headers, body, &limits);
    if let Err(status) = &read {
        assert!(REFUSALS.contains(status), "{status}");
    }
    read
}

fn encode(encoding: &str, text: &[u8]) -> Vec<u8> {
    match encoding {
        "zstd" => {
            let (one, two) = text.split_at(text.len() / 2);
            [one, two].map(|half| zstd::bulk::compress(half, 1).unwrap()).concat()
        }
        "gzip" => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(text).unwrap();
            gzip.finish().unwrap()
        }
        _ => text.to_vec(),
    }
}

/// Checks the rules of the protocol for every batch.
fn check(text: &[u8], read: &Result<Batch, u16>) {
    let Ok(batch) = read else { return };
    let header = &batch.header;
    let mut lines = text.split(|byte| *byte == b'\n');
    let head = lines.next().unwrap_or_default();
    assert!(head.trim_ascii_start().starts_with(b"{"), "the header line is not an object");
    let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    assert_eq!(header.count, lines.len() as u64);
    assert_eq!(batch.lines().len(), lines.len());
    for (line, text) in batch.lines().iter().zip(lines) {
        assert_eq!(batch.bytes(line), text);
        assert_eq!(line.digest, Digest::of(text));
        let entry: serde_json::Map<String, serde_json::Value> = match serde_json::from_slice(text) {
            Ok(entry) => entry,
            // Valid JSON that serde_json's values cannot represent.
            Err(_) => continue,
        };
        assert_eq!(entry["seq"], line.seq);
        assert!(entry["kind"].is_string());
        let generation = line.origin.map(|o| &*batch.generations()[o.generation as usize]);
        assert!(generation.is_none_or(|name| entry["generation"] == name));
    }
    let mut seqs: Vec<_> = batch.lines().iter().map(|line| line.seq).collect();
    let Some((first, last)) = batch.covers() else {
        assert_eq!(seqs, header.seqs);
        return;
    };
    seqs.extend(header.dead_lettered.iter().map(|dead| dead.seq));
    seqs.sort_unstable();
    assert!(last <= MAX_SEQ && last - first < MAX_ENTRIES);
    assert_eq!(seqs, (first..=last).collect::<Vec<_>>());
    assert_eq!(batch.chain(first, last).len(), seqs.len());
}
