//! Original positions of an epoch's lines: generation, offset and part of each, exactly, in two to
//! four bytes for most.
//!
//! ```text
//! group:  magic 4 | length u32 | check 8 | body
//! body:   lines_at | lines_bytes | block …
//! block:  length of name | name of the generation | count | length | (offset - last one, part) …
//! ```
//! Numbers in a body are varints. Each batch that stores lines has a group with the range of the file
//! of lines that it covers. A group for a range that an earlier group covered replaces that one and
//! all after it: a repair writes one for the lines that are left.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use siem_protocol::Digest;

const MAGIC: &[u8; 4] = b"str1";
const FIXED: usize = 16;
/// No group is larger: a longer one is damaged.
const LARGEST: u32 = 1 << 28;

/// A group to write.
#[derive(Debug, Default)]
pub(super) struct GroupWriter<'a> {
    blocks: BTreeMap<&'a str, Block>,
}

#[derive(Debug, Default)]
struct Block {
    count: u64,
    last: u64,
    bytes: Vec<u8>,
}

impl<'a> GroupWriter<'a> {
    /// Adds the position of a line.
    pub(super) fn add(&mut self, generation: &'a str, offset: u64, part: u32) {
        let block = self.blocks.entry(generation).or_default();
        put(&mut block.bytes, zigzag(offset.wrapping_sub(block.last)));
        put(&mut block.bytes, part.into());
        (block.count, block.last) = (block.count + 1, offset);
    }

    /// Encodes the group for the lines from `lines_at` to `lines_at + lines_bytes`.
    pub(super) fn finish(self, lines_at: u64, lines_bytes: u64) -> io::Result<Vec<u8>> {
        let mut group = vec![0; FIXED];
        put(&mut group, lines_at);
        put(&mut group, lines_bytes);
        for (generation, block) in self.blocks {
            put(&mut group, generation.len() as u64);
            group.extend_from_slice(generation.as_bytes());
            put(&mut group, block.count);
            put(&mut group, block.bytes.len() as u64);
            group.extend_from_slice(&block.bytes);
        }
        let length = u32::try_from(group.len() - FIXED).map_err(io::Error::other)?;
        let check = check(&group[FIXED..]);
        group[..4].copy_from_slice(MAGIC);
        group[4..8].copy_from_slice(&length.to_le_bytes());
        group[8..FIXED].copy_from_slice(&check);
        Ok(group)
    }
}

/// A decoded group.
#[derive(Debug)]
pub(super) struct Group {
    /// Position of the lines that it covers.
    pub(super) lines_at: u64,
    /// Their size in bytes.
    pub(super) lines_bytes: u64,
    /// Its own length in bytes.
    pub(super) length: u64,
    body: Vec<u8>,
    blocks: usize,
}

/// Positions of one generation's lines within a group.
#[derive(Debug)]
pub(super) struct Starts<'a> {
    pub(super) generation: &'a str,
    /// Position of the encoded data, from the group's first byte.
    pub(super) at: u64,
    pub(super) bytes: &'a [u8],
}

impl Group {
    /// Reads the next group; `None` at the end, or if no complete group follows.
    pub(super) fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut fixed = Vec::new();
        from.by_ref().take(FIXED as u64).read_to_end(&mut fixed)?;
        let Some((head, expected)) = fixed.split_first_chunk::<8>() else { return Ok(None) };
        let (magic, length) = head.split_at(4);
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
        if magic != MAGIC || length > LARGEST {
            return Ok(None);
        }
        let mut body = Vec::new();
        from.by_ref().take(length.into()).read_to_end(&mut body)?;
        if body.len() as u64 != u64::from(length) || check(&body) != *expected {
            return Ok(None);
        }
        let mut rest = body.as_slice();
        let (Some(lines_at), Some(lines_bytes)) = (get(&mut rest), get(&mut rest)) else {
            return Ok(None);
        };
        let blocks = body.len() - rest.len();
        let length = (FIXED + body.len()) as u64;
        Ok(Some(Self { lines_at, lines_bytes, length, body, blocks }))
    }

    /// Decodes the group by generation.
    pub(super) fn starts(&self) -> impl Iterator<Item = Starts<'_>> {
        let mut rest = &self.body[self.blocks..];
        std::iter::from_fn(move || {
            let name = take(&mut rest)?;
            get(&mut rest)?;
            let bytes = take(&mut rest)?;
            let at = (FIXED + self.body.len() - rest.len() - bytes.len()) as u64;
            Some(Starts { generation: std::str::from_utf8(name).ok()?, at, bytes })
        })
    }
}

/// Decodes offset and part of each line in a block.
pub(super) fn decode(mut bytes: &[u8]) -> impl Iterator<Item = (u64, u32)> {
    let mut offset = 0u64;
    std::iter::from_fn(move || {
        offset = offset.wrapping_add(unzigzag(get(&mut bytes)?));
        let part = u32::try_from(get(&mut bytes)?).ok()?;
        Some((offset, part))
    })
}

fn check(body: &[u8]) -> [u8; 8] {
    let digest = Digest::of(body);
    let mut check = [0; 8];
    check.copy_from_slice(&digest.as_bytes()[..8]);
    check
}

fn put(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    to.push(number.to_le_bytes()[0]);
}

fn get(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Takes a byte string with its length in front.
fn take<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(get(from)?).ok()?;
    let (bytes, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(bytes)
}

/// Encodes a difference modulo 2^64 such that small differences become small numbers.
fn zigzag(difference: u64) -> u64 {
    let sign = difference.cast_signed() >> 63;
    (difference << 1) ^ sign.cast_unsigned()
}

fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(group: &[u8]) -> Vec<(String, u64, u32)> {
        let group = Group::read(&mut &group[..]).unwrap().unwrap();
        let starts = group.starts().flat_map(|starts| {
            let name = starts.generation.to_owned();
            decode(starts.bytes).map(move |(offset, part)| (name.clone(), offset, part))
        });
        starts.collect()
    }

    proptest! {
        #[test]
        fn group_reads_back_unless_cut_or_changed(
            mut starts in prop::collection::vec(("[ab]", any::<u64>(), any::<u32>()), 0..20),
            place in (any::<u64>(), any::<u64>()),
            at in any::<prop::sample::Index>()
        ) {
            let mut writer = GroupWriter::default();
            for (generation, offset, part) in &starts {
                writer.add(generation, *offset, *part);
            }
            let bytes = writer.finish(place.0, place.1).unwrap();
            let group = Group::read(&mut bytes.as_slice()).unwrap().unwrap();
            prop_assert_eq!((group.lines_at, group.lines_bytes), place);
            prop_assert_eq!(group.length, bytes.len() as u64);
            for starts in group.starts() {
                let at = usize::try_from(starts.at).unwrap();
                prop_assert_eq!(&bytes[at..at + starts.bytes.len()], starts.bytes);
            }
            starts.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(read(&bytes), starts);
            let at = at.index(bytes.len());
            prop_assert!(Group::read(&mut &bytes[..at]).unwrap().is_none());
            let mut changed = bytes;
            changed[at] ^= 1;
            prop_assert!(Group::read(&mut changed.as_slice()).unwrap().is_none());
        }
    }

    #[test]
    fn consecutive_lines_cost_few_bytes() {
        let mut writer = GroupWriter::default();
        for line in 0..1000 {
            writer.add("9c41", line * 700, 0);
        }
        assert!(writer.finish(0, 0).unwrap().len() < 3100);
    }
}
