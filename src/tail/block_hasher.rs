//! Hashes of the blocks of a file, computed while it is read.
//!
//! The hash is XXH3 with a seed for each generation, derived from the random part of its id. A
//! cryptographic hash would cost more for every byte that is read and gain nothing: only a program that
//! may read the outbox can construct other bytes with an equal hash, and that program could as well
//! replace the stored hashes.

use std::io;

use ai_agent_stage::{BlockUpdate, GenerationId};
use siem_protocol::nul_runs::{NulRun, Segment, segments};
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use super::block_list::{ALTERED, SMALLEST, UNKNOWN, ZEROS, plain_hash};
use crate::platform::file::ReadAt;

/// Size of the smallest block.
const BLOCK: usize = SMALLEST as usize;

/// Returns the seed of the hashes of a generation: random, as most of the id is.
pub(super) fn seed(generation: &GenerationId) -> u64 {
    xxh3_64(generation.0.as_bytes())
}

/// Returns the hash of the partial block before `offset` if its bytes were not hashed.
pub(super) fn unknown_tail(offset: u64) -> u64 {
    if offset.is_multiple_of(SMALLEST) { ZEROS } else { UNKNOWN }
}

/// Returns the hash of at most one smallest block.
pub(super) fn hash(bytes: &[u8], seed: u64) -> u64 {
    match is_zeros(bytes) {
        true => ZEROS,
        false => plain_hash(xxh3_64_with_seed(bytes, seed)),
    }
}

fn is_zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Hashes the bytes of a generation in the order in which they are handed over.
pub(super) struct BlockHasher {
    seed: u64,
    /// End of the hashed bytes.
    offset: u64,
    partial: PartialBlock,
    /// Number of the first block in `whole`.
    first: u64,
    /// Hashes of whole blocks, each with the number of consecutive blocks that have it.
    whole: Vec<(u64, u64)>,
}

/// Bytes after the last whole block.
enum PartialBlock {
    /// Their hash. They are read again before others are added.
    Stored(u64),
    /// The state of their hash, and whether all are zeros.
    Hashing(Box<Xxh3>, bool),
    /// The block will have this special hash.
    Fixed(u64),
}

impl BlockHasher {
    /// Creates a hasher that continues at `offset`. `tail` is the hash of the bytes from the end of the
    /// last whole block up to there.
    pub(super) fn new(seed: u64, tail: u64, offset: u64) -> Self {
        let partial = match tail {
            UNKNOWN | ALTERED => PartialBlock::Fixed(tail),
            tail => PartialBlock::Stored(tail),
        };
        let mut hasher =
            Self { seed, offset, partial, first: offset / SMALLEST, whole: Vec::new() };
        if hasher.filled() == 0 {
            hasher.start_block();
        }
        hasher
    }

    /// Number of bytes after the last whole block.
    fn filled(&self) -> usize {
        usize::try_from(self.offset % SMALLEST).unwrap_or_default()
    }

    fn start_block(&mut self) {
        self.partial = PartialBlock::Hashing(Box::new(Xxh3::with_seed(self.seed)), true);
    }

    /// Reads the bytes after the last whole block again if their hash has to be continued. If they
    /// differ from those that were read before, the block counts as altered; returns false then.
    ///
    /// # Errors
    /// Errors of reading the file, and a file that is too short.
    pub(super) fn resume(&mut self, file: &dyn ReadAt) -> io::Result<bool> {
        let PartialBlock::Stored(stored) = self.partial else { return Ok(true) };
        let mut bytes = vec![0; self.filled()];
        let start = self.offset - bytes.len() as u64;
        let filled = file.fill_at(&mut bytes, start)?;
        if filled < bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let is_same = hash(&bytes, self.seed) == stored;
        if is_same {
            self.start_block();
            self.add(&bytes);
        } else {
            self.partial = PartialBlock::Fixed(ALTERED);
        }
        Ok(is_same)
    }

    /// Hashes the next bytes.
    pub(super) fn extend(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let filled = self.filled();
            let (next, rest) = bytes.split_at(bytes.len().min(BLOCK - filled));
            self.offset += next.len() as u64;
            match (next.len() == BLOCK, filled + next.len() == BLOCK) {
                (true, _) => self.push(hash(next, self.seed), 1),
                (false, is_whole) => {
                    self.add(next);
                    if is_whole {
                        self.push(self.tail(), 1);
                        self.start_block();
                    }
                }
            }
            bytes = rest;
        }
    }

    /// Hashes `size` bytes of a line, or of a part of one: its data with its runs of NUL in between,
    /// and its ending.
    pub(super) fn extend_scanned(&mut self, data: &[u8], runs: &[NulRun], size: u64) {
        let before = self.offset;
        for segment in segments(data, runs).into_iter().flatten() {
            match segment {
                Segment::Data(bytes) => self.extend(bytes),
                Segment::Nuls(count) => self.extend_zeros(count),
            }
        }
        match size.saturating_sub(self.offset - before) {
            0 => {}
            1 => self.extend(b"\n"),
            _ => self.extend(b"\r\n"),
        }
    }

    /// Hashes `count` zeros, such as a hole, without reading them.
    pub(super) fn extend_zeros(&mut self, mut count: u64) {
        let zeros = [0; 4096];
        while count > 0 {
            let whole = count / SMALLEST;
            if self.filled() == 0 && whole > 0 {
                self.push(ZEROS, whole);
                self.offset = self.offset.saturating_add(whole * SMALLEST);
                count -= whole * SMALLEST;
                continue;
            }
            let missing = count.min((BLOCK - self.filled()) as u64);
            let next = usize::try_from(missing).map_or(zeros.len(), |len| len.min(zeros.len()));
            self.extend(&zeros[..next]);
            count -= next as u64;
        }
    }

    /// Adds bytes to the partial block.
    fn add(&mut self, bytes: &[u8]) {
        match &mut self.partial {
            PartialBlock::Hashing(state, zeros) => {
                state.update(bytes);
                *zeros = *zeros && is_zeros(bytes);
            }
            // Bytes before it were not read again: the block cannot be verified.
            PartialBlock::Stored(_) => self.partial = PartialBlock::Fixed(UNKNOWN),
            PartialBlock::Fixed(_) => {}
        }
    }

    fn push(&mut self, hash: u64, count: u64) {
        match self.whole.last_mut() {
            Some((last, sum)) if *last == hash => *sum += count,
            _ => self.whole.push((hash, count)),
        }
    }

    /// Returns the hash of the bytes after the last whole block.
    pub(super) fn tail(&self) -> u64 {
        match &self.partial {
            PartialBlock::Hashing(_, true) => ZEROS,
            PartialBlock::Hashing(state, false) => plain_hash(state.digest()),
            PartialBlock::Stored(hash) | PartialBlock::Fixed(hash) => *hash,
        }
    }

    /// Returns the hashes of the blocks that were completed since the last call.
    pub(super) fn take_update(&mut self) -> Option<BlockUpdate> {
        let hashes = std::mem::take(&mut self.whole);
        let first = std::mem::replace(&mut self.first, self.offset / SMALLEST);
        (!hashes.is_empty()).then_some(BlockUpdate::Append { first, hashes })
    }
}

impl std::fmt::Debug for BlockHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockHasher").field("offset", &self.offset).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: u64 = 11;

    fn start() -> BlockHasher {
        BlockHasher::new(SEED, ZEROS, 0)
    }

    /// Returns the hashes of `content` by a simple algorithm.
    fn expected(content: &[u8]) -> (Vec<u64>, u64) {
        let (whole, rest) = content.as_chunks::<BLOCK>();
        (whole.iter().map(|block| hash(block, SEED)).collect(), hash(rest, SEED))
    }

    fn hashes(updates: &[BlockUpdate]) -> Vec<u64> {
        let mut all = Vec::new();
        for update in updates {
            let BlockUpdate::Append { first, hashes } = update else { panic!("{update:?}") };
            assert_eq!(*first, all.len() as u64);
            hashes.iter().for_each(|(hash, count)| (0..*count).for_each(|_| all.push(*hash)));
        }
        all
    }

    #[test]
    fn altered_bytes_before_the_checkpoint_are_found_on_resume() {
        let mut content = vec![b'x'; BLOCK + 1000];
        let mut hasher = start();
        hasher.extend(&content);
        let (tail, offset) = (hasher.tail(), content.len() as u64);
        let mut hasher = BlockHasher::new(SEED, tail, offset);
        assert!(hasher.resume(&&content[..]).unwrap());
        content[BLOCK + 500] = 0;
        let mut hasher = BlockHasher::new(SEED, tail, offset);
        assert!(!hasher.resume(&&content[..]).unwrap());
        assert_eq!(hasher.tail(), ALTERED);
        hasher.extend(&vec![b'x'; BLOCK]);
        assert_eq!(hashes_of_one(&mut hasher), [(ALTERED, 1)]);
        assert!(hasher.tail() > ALTERED, "the next block is an ordinary one");
        let short = &content[..BLOCK];
        BlockHasher::new(SEED, tail, offset).resume(&short).unwrap_err();
    }

    fn hashes_of_one(hasher: &mut BlockHasher) -> Vec<(u64, u64)> {
        match hasher.take_update() {
            Some(BlockUpdate::Append { hashes, .. }) => hashes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn block_that_was_partly_read_by_an_older_agent_is_unknown() {
        let mut hasher = BlockHasher::new(SEED, unknown_tail(100), 100);
        assert!(hasher.resume(&&[][..]).unwrap());
        hasher.extend(&vec![b'x'; 2 * BLOCK - 100]);
        assert_eq!(hashes_of_one(&mut hasher), [(UNKNOWN, 1), (hash(&[b'x'; BLOCK], SEED), 1)]);
    }

    #[test]
    fn huge_hole_costs_nothing() {
        let mut hasher = start();
        hasher.extend(b"x");
        hasher.extend_zeros((1 << 62) - 1);
        let hashes = hashes_of_one(&mut hasher);
        assert_eq!(hashes[1], (ZEROS, (1 << 62) / SMALLEST - 1));
        assert_eq!((hashes.len(), hasher.tail()), (2, ZEROS));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn hashes_do_not_depend_on_the_pieces_read(
            runs in prop::collection::vec((0_u8..3, 1_usize..150_000, any::<bool>()), 1..6),
            is_sparse in any::<bool>(),
        ) {
            let (mut content, mut hasher, mut updates) = (Vec::new(), start(), Vec::new());
            for (byte, len, is_reopened) in runs {
                let next = vec![byte; len];
                match byte == 0 && is_sparse {
                    true => hasher.extend_zeros(len as u64),
                    false => hasher.extend(&next),
                }
                content.extend_from_slice(&next);
                updates.extend(hasher.take_update());
                if is_reopened {
                    hasher = BlockHasher::new(SEED, hasher.tail(), content.len() as u64);
                    prop_assert!(hasher.resume(&&content[..]).unwrap());
                }
            }
            prop_assert_eq!((hashes(&updates), hasher.tail()), expected(&content));
        }
    }
}
