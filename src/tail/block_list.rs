//! The hashes of the blocks of a file, as they are stored.
//!
//! Blocks have 64 KiB at first. When a file has more than [`MAX_BLOCKS`], their size doubles: the hash
//! of the larger block is that of the two hashes before it, so that nothing is read again. A list is
//! thus a row of hash trees over blocks of 64 KiB.

use ai_agent_stage::BlockUpdate;
use xxhash_rust::xxh3::xxh3_64;

/// Size of the smallest block in bytes.
pub(super) const SMALLEST: u64 = 64 << 10;

/// Largest number of blocks of a file.
pub(super) const MAX_BLOCKS: usize = 4096;

/// Hash of a block of zeros, such as a hole. Nothing is computed for it.
pub(super) const ZEROS: u64 = 0;
/// Hash of a block that was not read as a whole, or whose bytes were altered while it became part of
/// a larger one. The next verification sets it.
pub(super) const UNKNOWN: u64 = 1;
/// Hash of a block that is known to have been altered after it was read.
pub(super) const ALTERED: u64 = 2;

/// Version of the stored form.
const VERSION: u8 = 1;
/// Size of the stored form without hashes.
const HEAD: usize = 10;

/// Converts a hash value so that it differs from the special ones.
pub(super) fn plain_hash(hash: u64) -> u64 {
    if hash <= ALTERED { hash + ALTERED + 1 } else { hash }
}

/// Returns the hash of a block that consists of two others.
fn combine(first: u64, second: u64) -> u64 {
    for special in [ALTERED, UNKNOWN] {
        if first == special || second == special {
            return special;
        }
    }
    if (first, second) == (ZEROS, ZEROS) {
        return ZEROS;
    }
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..].copy_from_slice(&second.to_le_bytes());
    plain_hash(xxh3_64(&bytes))
}

/// A block of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Number of the smallest block that it starts with.
    pub(super) first: u64,
    /// Number of times that its size was doubled.
    pub(super) level: u8,
    pub(super) hash: u64,
}

impl Block {
    /// Number of smallest blocks in it.
    pub(super) fn count(self) -> u64 {
        1 << self.level
    }

    /// Offset of its first byte.
    pub(super) fn start(self) -> u64 {
        self.first * SMALLEST
    }

    /// Offset of the first byte after it.
    pub(super) fn end(self) -> u64 {
        self.first.saturating_add(self.count()).saturating_mul(SMALLEST)
    }
}

/// The hashes of the blocks of a file from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BlockList {
    /// Number of smallest blocks that the list covers.
    len: u64,
    /// Number of times that the size of `hashes` was doubled.
    level: u8,
    /// Hashes of whole blocks.
    hashes: Vec<u64>,
    /// Hashes of smaller blocks at the end, which together make less than a whole block: one for each
    /// bit of `len` below `level`, the largest first.
    pending: Vec<u64>,
}

impl BlockList {
    /// Creates an empty list whose blocks have the size of `level`.
    pub(super) fn of_level(level: u8) -> Self {
        Self { level, ..Self::default() }
    }

    /// Number of smallest blocks that the list covers.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Hash of the first whole block.
    pub(super) fn first_hash(&self) -> Option<u64> {
        self.hashes.first().copied()
    }

    /// Adds `count` smallest blocks with the same hash. Many are added at once as larger blocks.
    pub(super) fn push(&mut self, hash: u64, mut count: u64) {
        while count > 0 {
            if self.hashes.len() == MAX_BLOCKS {
                self.double();
            }
            let aligned = if self.len == 0 { 63 } else { self.len.trailing_zeros() };
            let level = aligned.min(count.ilog2()).min(u32::from(self.level));
            let level = u8::try_from(level).unwrap_or(self.level);
            let larger = (0..level).fold(hash, |hash, _| combine(hash, hash));
            self.add(larger, level);
            count -= 1 << level;
        }
    }

    /// Adds a block of `level` at a multiple of its size.
    fn add(&mut self, mut hash: u64, mut level: u8) {
        let added = 1_u64 << level;
        while level < self.level && self.len >> level & 1 == 1 {
            hash = combine(self.pending.pop().unwrap_or(UNKNOWN), hash);
            level += 1;
        }
        match level == self.level {
            true => self.hashes.push(hash),
            false => self.pending.push(hash),
        }
        self.len = self.len.saturating_add(added);
    }

    /// Doubles the size of the blocks. The number of blocks is even.
    fn double(&mut self) {
        let pairs = self.hashes.chunks_exact(2);
        self.hashes = pairs.map(|pair| combine(pair[0], pair[1])).collect();
        self.level += 1;
    }

    /// Returns the blocks in the order of the file.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Block> {
        let level = self.level;
        let whole = self.hashes.iter().zip(0_u64..);
        let whole =
            whole.map(move |(hash, index)| Block { first: index << level, level, hash: *hash });
        let mut first = (self.hashes.len() as u64) << level;
        let levels = (0..level).rev().filter(|level| self.len >> level & 1 == 1);
        let pending = self.pending.iter().zip(levels).map(move |(hash, level)| {
            let block = Block { first, level, hash: *hash };
            first += block.count();
            block
        });
        whole.chain(pending)
    }

    /// Replaces the hash of a block. If it has become part of a larger one, that is not verified until
    /// its hash is known: the old one would be found to differ again.
    fn replace(&mut self, block: Block) {
        let contains = |own: &Block| own.first <= block.first && block.end() <= own.end();
        let Some((index, own)) = self.blocks().enumerate().find(|(_, own)| contains(own)) else {
            return;
        };
        let new = if own.level == block.level { block.hash } else { UNKNOWN };
        let whole = self.hashes.len();
        let hash = match index.checked_sub(whole) {
            Some(index) => self.pending.get_mut(index),
            None => self.hashes.get_mut(index),
        };
        if let Some(hash) = hash {
            *hash = new;
        }
    }

    /// Applies an update of a source. If blocks before those of the update are missing, because an
    /// older agent read them or a store was lost, they are not verified.
    fn apply(&mut self, update: &BlockUpdate) {
        match update {
            BlockUpdate::Append { first, hashes } => {
                if self.len != *first {
                    *self = Self::default();
                    self.push(UNKNOWN, *first);
                }
                hashes.iter().for_each(|(hash, count)| self.push(*hash, *count));
            }
            BlockUpdate::Replace { first, level, hash } => {
                self.replace(Block { first: *first, level: *level, hash: *hash });
            }
        }
    }

    /// Serializes the list.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + 8 * (self.hashes.len() + self.pending.len()));
        bytes.extend_from_slice(&[VERSION, self.level]);
        bytes.extend_from_slice(&self.len.to_le_bytes());
        for hash in self.hashes.iter().chain(&self.pending) {
            bytes.extend_from_slice(&hash.to_le_bytes());
        }
        bytes
    }

    /// Deserializes the output of [`BlockList::encode`]; `None` for another version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let ([VERSION, level], rest) = bytes.split_first_chunk::<2>()? else { return None };
        let (len, rest) = rest.split_first_chunk::<8>()?;
        let (level, len) = (*level, u64::from_le_bytes(*len));
        let whole = usize::try_from(len.checked_shr(level.into())?).ok()?;
        let (hashes, odd) = rest.as_chunks::<8>();
        let mut hashes: Vec<u64> = hashes.iter().map(|hash| u64::from_le_bytes(*hash)).collect();
        let below = (len & ((1 << level) - 1)).count_ones() as usize;
        if !odd.is_empty() || whole > MAX_BLOCKS || hashes.len() != whole + below {
            return None;
        }
        let pending = hashes.split_off(whole);
        Some(Self { len, level, hashes, pending })
    }
}

/// Returns the stored hashes of a file's blocks after `updates`. Invalid hashes are those of another
/// version, and count as none.
#[must_use]
pub fn updated_blocks(stored: Option<&[u8]>, updates: &[BlockUpdate]) -> Vec<u8> {
    let mut list = stored.and_then(BlockList::decode).unwrap_or_default();
    updates.iter().for_each(|update| list.apply(update));
    list.encode()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(hashes: impl IntoIterator<Item = u64>) -> BlockList {
        let mut list = BlockList::default();
        hashes.into_iter().for_each(|hash| list.push(hash, 1));
        list
    }

    fn append(first: u64, hashes: &[(u64, u64)]) -> BlockUpdate {
        BlockUpdate::Append { first, hashes: hashes.to_vec() }
    }

    #[test]
    fn blocks_double_when_there_are_too_many() {
        let all = MAX_BLOCKS as u64;
        let (full, over) = (list(10..10 + all), list(10..11 + all));
        assert_eq!(
            (full.blocks().count(), over.blocks().count()),
            (MAX_BLOCKS, MAX_BLOCKS / 2 + 1)
        );
        let (first, last) = (over.blocks().next().unwrap(), over.blocks().last().unwrap());
        assert_eq!(first, Block { first: 0, level: 1, hash: combine(10, 11) });
        assert_eq!(last, Block { first: all, level: 0, hash: 10 + all });
        let larger = list(10..10 + 8 * all);
        assert_eq!((larger.blocks().count(), larger.level), (MAX_BLOCKS, 3));
    }

    #[test]
    fn list_of_the_largest_file_is_small_and_fast() {
        let blocks = (1_u64 << 63) / SMALLEST;
        let list = [append(0, &[(7, 1), (ZEROS, blocks - 2), (8, 1)])];
        let list = BlockList::decode(&updated_blocks(None, &list)).unwrap();
        assert_eq!(list.len(), blocks);
        assert!(list.blocks().count() <= MAX_BLOCKS);
        let data: Vec<_> = list.blocks().filter(|block| block.hash != ZEROS).collect();
        assert_eq!(data.len(), 2, "{data:?}");
        assert_eq!(data[1].end(), 1 << 63);
    }

    #[test]
    fn blocks_that_were_not_read_are_unknown() {
        let stored = updated_blocks(None, &[append(3, &[(9, 1)])]);
        let hashes = |stored: &[u8]| {
            let list = BlockList::decode(stored).unwrap();
            list.blocks().map(|block| block.hash).collect::<Vec<_>>()
        };
        assert_eq!(hashes(&stored), [UNKNOWN, UNKNOWN, UNKNOWN, 9]);
        let after_a_gap = updated_blocks(Some(&stored), &[append(5, &[(9, 1)])]);
        assert_eq!(hashes(&after_a_gap), [UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, 9]);
        assert_eq!(hashes(&updated_blocks(Some(&[9, 9]), &[append(0, &[(9, 1)])])), [9]);
    }

    #[test]
    fn replaced_hash_is_that_of_the_same_block_only() {
        let replace = |first, level| BlockUpdate::Replace { first, level, hash: 99 };
        let mut list = list(10..16);
        list.apply(&replace(2, 0));
        list.apply(&replace(2, 1));
        list.apply(&replace(7, 0));
        let hashes: Vec<_> = list.blocks().map(|block| block.hash).collect();
        assert_eq!(hashes, [10, 11, 99, 13, 14, 15]);
        let mut merged = BlockList::of_level(1);
        (10..16).for_each(|hash| merged.push(hash, 1));
        merged.apply(&replace(2, 0));
        let hashes: Vec<_> = merged.blocks().map(|block| block.hash).collect();
        assert_eq!(hashes, [combine(10, 11), UNKNOWN, combine(14, 15)]);
    }

    proptest! {
        /// A hash depends on the hashes of the smallest blocks only, not on how they were added.
        #[test]
        fn list_is_the_same_however_blocks_are_added(
            runs in prop::collection::vec((prop_oneof![0_u64..3, 3_u64..9], 1_u64..3000), 1..8),
            cut in 0_usize..8,
        ) {
            let all: Vec<u64> = runs
                .iter()
                .flat_map(|(hash, count)| std::iter::repeat_n(*hash, usize::try_from(*count).unwrap()))
                .collect();
            let one_by_one = list(all.iter().copied());
            let (before, after) = runs.split_at(cut.min(runs.len()));
            let first = before.iter().map(|(_, count)| count).sum();
            let stored = updated_blocks(None, &[append(0, before)]);
            let stored = updated_blocks(Some(&stored), &[append(first, after)]);
            prop_assert_eq!(&BlockList::decode(&stored).unwrap(), &one_by_one);
            let mut next = 0;
            for block in one_by_one.blocks() {
                prop_assert_eq!(block.first, next);
                next += block.count();
                let mut part = BlockList::of_level(block.level);
                let own = usize::try_from(block.first).unwrap()..usize::try_from(next).unwrap();
                all[own].iter().for_each(|hash| part.push(*hash, 1));
                prop_assert_eq!(part.first_hash(), Some(block.hash));
            }
            prop_assert_eq!(next, one_by_one.len());
        }

        #[test]
        fn invalid_list_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Some(list) = BlockList::decode(&bytes) {
                prop_assert_eq!(list.encode(), bytes);
            }
        }
    }
}
