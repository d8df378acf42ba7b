//! A value of the outbox: several frames in one.
//!
//! Four bytes, little endian: how long the heads are, and in the highest bit that a checksum
//! follows. Eight bytes: XXH3 of all that is behind them. A JSON array of the frames' heads, then
//! the bodies. JSON, because heads outlive a version of the agent. The checksum, because redb holds
//! a page against its own only when it opens the file, and what rots later would be shipped.

use xxhash_rust::xxh3::xxh3_64;

use crate::frame::{Frame, FrameHead};

/// The most that a value holds, unless one frame is larger: redb stores a value just under a power
/// of two in half the space that one just above takes.
pub(super) const MAX_STORED: usize = (1 << 20) - (4 << 10);

/// Says that there is a checksum: values of schema 1 have none.
const CHECKED: u32 = 1 << 31;

/// About what a head takes in a value.
const HEAD: usize = 512;

/// Cuts frames into runs that make one value each.
pub(super) fn runs(mut frames: &[Frame]) -> impl Iterator<Item = &[Frame]> {
    std::iter::from_fn(move || {
        if frames.is_empty() {
            return None;
        }
        let mut stored = 0;
        let fitting = frames.iter().position(|frame| {
            stored += frame.body.len() + HEAD;
            stored > MAX_STORED
        });
        let (run, rest) = frames.split_at(fitting.unwrap_or(frames.len()).max(1));
        frames = rest;
        Some(run)
    })
}

/// Encodes frames.
pub(super) fn encode(frames: &[Frame]) -> Vec<u8> {
    let heads: Vec<&FrameHead> = frames.iter().map(|frame| &frame.head).collect();
    let heads = serde_json::to_vec(&heads).expect("heads can be written as JSON");
    let bodies: usize = frames.iter().map(|frame| frame.body.len()).sum();
    let mut value = Vec::with_capacity(12 + heads.len() + bodies);
    let length = u32::try_from(heads.len()).expect("a value holds a few thousand frames at most");
    value.extend_from_slice(&(length | CHECKED).to_le_bytes());
    value.extend_from_slice(&[0; 8]);
    value.extend_from_slice(&heads);
    frames.iter().for_each(|frame| value.extend_from_slice(&frame.body));
    let checksum = xxh3_64(&value[12..]);
    value[4..12].copy_from_slice(&checksum.to_le_bytes());
    value
}

/// The heads of a value alone, for somebody who will decode it before believing it; `None` when
/// they can't be read.
pub(super) fn heads(value: &[u8]) -> Option<Vec<FrameHead>> {
    let (_, heads, _) = split(value)?;
    let heads: Vec<FrameHead> = serde_json::from_slice(heads).ok()?;
    heads.iter().all(can_be).then_some(heads)
}

/// What the checksum is of, if there is one, the heads and the bodies.
fn split(value: &[u8]) -> Option<(Option<u64>, &[u8], &[u8])> {
    let (length, mut rest) = value.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length);
    let mut checksum = None;
    if length & CHECKED != 0 {
        let (first, checked) = rest.split_first_chunk::<8>()?;
        (checksum, rest) = (Some(u64::from_le_bytes(*first)), checked);
    }
    let (heads, bodies) = rest.split_at_checked((length & !CHECKED) as usize)?;
    Some((checksum, heads, bodies))
}

/// The frames of a value, each body borrowed; `None` when the value is damaged.
pub(super) fn decode(value: &[u8]) -> Option<impl Iterator<Item = (FrameHead, &[u8])>> {
    let (checksum, heads, mut bodies) = split(value)?;
    if checksum.is_some_and(|checksum| checksum != xxh3_64(&value[12..])) {
        return None;
    }
    let heads: Vec<FrameHead> = serde_json::from_slice(heads).ok()?;
    let stored = heads.iter().try_fold(0_usize, |sum, head| sum.checked_add(head.stored))?;
    if stored != bodies.len() || !heads.iter().all(can_be) {
        return None;
    }
    Some(heads.into_iter().map(move |head| {
        let (body, rest) = bodies.split_at(head.stored);
        bodies = rest;
        (head, body)
    }))
}

/// Whether a head has entries, and their numbers can be counted.
fn can_be(head: &FrameHead) -> bool {
    let next = head.first_seq.checked_add(head.count);
    head.first_seq > 0 && head.count > 0 && next.is_some_and(|next| next < u64::MAX)
}

#[cfg(test)]
mod tests {
    use siem_protocol::Digest;

    use super::*;
    use crate::{
        frame::{Codec, Encoder, FrameBuilder},
        platform::Timestamp,
    };

    #[test]
    fn decodes_what_it_encodes_and_notices_damage() {
        let mut encoder = Encoder::new(Codec::Zstd);
        let frames: Vec<Frame> = (1..=3_u64)
            .map(|seq| {
                let mut builder = FrameBuilder::default();
                let chain = builder.push(Digest::ZERO, false, |raw| raw.extend_from_slice(b"x"));
                let sealed = builder.seal(seq + 1, chain, Digest::ZERO, Timestamp(seq));
                let mut frame = sealed.unwrap();
                encoder.encode(&mut frame);
                frame
            })
            .collect();
        let value = encode(&frames);
        let back: Vec<Frame> = decode(&value)
            .unwrap()
            .map(|(head, body)| Frame { head, body: body.to_vec() })
            .collect();
        assert_eq!(back, frames);
        for length in 0..value.len() {
            assert!(decode(&value[..length]).is_none(), "{length}");
        }
        for at in 0..value.len() {
            let mut rotten = value.clone();
            rotten[at] ^= 0x10;
            assert!(decode(&rotten).is_none(), "{at}");
        }
    }
}
