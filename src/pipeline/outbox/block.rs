//! Encoding of a block: several frames in one value of the store.
//!
//! A block starts with four bytes, little endian: the length of the frame heads, and in the highest
//! bit a flag that a checksum follows. Then eight bytes: XXH3 of everything behind them. Then a
//! JSON array of the frame heads, and finally the bodies. The heads are JSON because they outlive a
//! version of the agent. The block has a checksum of its own because redb verifies its pages only
//! when it opens the file, and bytes that change later would be sent.

use xxhash_rust::xxh3::xxh3_64;

use crate::frame::{Frame, FrameHead};

/// Largest size of a block with more than one frame. redb stores a value just under a power of two
/// in half the space of one just above it.
pub(super) const MAX_BLOCK_BYTES: usize = (1 << 20) - (4 << 10);

/// Flag of a block with a checksum. Blocks of schema 1 have none.
const HAS_CHECKSUM: u32 = 1 << 31;

/// Size of the length field and the checksum.
const PREFIX: usize = 12;

/// Approximate size of one frame head in a block.
const HEAD_BYTES: usize = 512;

/// Splits frames into runs that make one block each.
pub(super) fn runs(mut frames: &[Frame]) -> impl Iterator<Item = &[Frame]> {
    std::iter::from_fn(move || {
        if frames.is_empty() {
            return None;
        }
        let mut stored = 0;
        let fitting = frames.iter().position(|frame| {
            stored += frame.body.len() + HEAD_BYTES;
            stored > MAX_BLOCK_BYTES
        });
        let (run, rest) = frames.split_at(fitting.unwrap_or(frames.len()).max(1));
        frames = rest;
        Some(run)
    })
}

/// Encodes frames as one block.
pub(super) fn encode(frames: &[Frame]) -> Vec<u8> {
    let heads: Vec<&FrameHead> = frames.iter().map(|frame| &frame.head).collect();
    let heads = serde_json::to_vec(&heads).expect("heads can be written as JSON");
    let bodies: usize = frames.iter().map(|frame| frame.body.len()).sum();
    let mut block = Vec::with_capacity(PREFIX + heads.len() + bodies);
    let length = u32::try_from(heads.len()).expect("a block holds a few thousand frames at most");
    block.extend_from_slice(&(length | HAS_CHECKSUM).to_le_bytes());
    block.extend_from_slice(&[0; 8]);
    block.extend_from_slice(&heads);
    frames.iter().for_each(|frame| block.extend_from_slice(&frame.body));
    let checksum = xxh3_64(&block[PREFIX..]);
    block[4..PREFIX].copy_from_slice(&checksum.to_le_bytes());
    block
}

/// Decodes the heads of a block without verifying its checksum: the caller decodes the block before
/// it relies on them. `None` when they cannot be read.
pub(super) fn heads(block: &[u8]) -> Option<Vec<FrameHead>> {
    let (_, heads, _) = split(block)?;
    let heads: Vec<FrameHead> = serde_json::from_slice(heads).ok()?;
    heads.iter().all(is_valid).then_some(heads)
}

/// Returns the checksum, if the block has one, the heads and the bodies.
fn split(block: &[u8]) -> Option<(Option<u64>, &[u8], &[u8])> {
    let (length, mut rest) = block.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length);
    let mut checksum = None;
    if length & HAS_CHECKSUM != 0 {
        let (first, checked) = rest.split_first_chunk::<8>()?;
        (checksum, rest) = (Some(u64::from_le_bytes(*first)), checked);
    }
    let (heads, bodies) = rest.split_at_checked((length & !HAS_CHECKSUM) as usize)?;
    Some((checksum, heads, bodies))
}

/// Decodes the frames of a block, each body borrowed; `None` when the block is damaged.
pub(super) fn decode(block: &[u8]) -> Option<impl Iterator<Item = (FrameHead, &[u8])>> {
    let (checksum, heads, mut bodies) = split(block)?;
    if checksum.is_some_and(|checksum| checksum != xxh3_64(&block[PREFIX..])) {
        return None;
    }
    let heads: Vec<FrameHead> = serde_json::from_slice(heads).ok()?;
    let stored = heads.iter().try_fold(0_usize, |sum, head| sum.checked_add(head.stored))?;
    if stored != bodies.len() || !heads.iter().all(is_valid) {
        return None;
    }
    Some(heads.into_iter().map(move |head| {
        let (body, rest) = bodies.split_at(head.stored);
        bodies = rest;
        (head, body)
    }))
}

/// Returns true if a head has entries, and its sequence numbers do not overflow.
fn is_valid(head: &FrameHead) -> bool {
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
    fn block_decodes_to_its_frames_unless_it_is_damaged() {
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
        let block = encode(&frames);
        let decoded: Vec<Frame> = decode(&block)
            .unwrap()
            .map(|(head, body)| Frame { head, body: body.to_vec() })
            .collect();
        assert_eq!(decoded, frames);
        for length in 0..block.len() {
            assert!(decode(&block[..length]).is_none(), "{length}");
        }
        for at in 0..block.len() {
            let mut damaged = block.clone();
            damaged[at] ^= 0x10;
            assert!(decode(&damaged).is_none(), "{at}");
        }
    }
}
