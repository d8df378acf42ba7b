//! Detection of lines that arrived before in another epoch of their machine.
//!
//! After an outbox was damaged or restored, an agent starts a new epoch and reads files again from
//! the last position known to be acknowledged. Lines that arrive again are stored, since they
//! belong to the new epoch's chain, and their numbers are noted. For a machine with one epoch
//! nothing is read.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{
    epoch::Stem,
    index_record::scan,
    starts::{self, Group},
};
use crate::{
    batch::{Batch, Line},
    ledger::Range,
    regular_file::open_regular_file,
};

/// Approximate memory limit for the directories of other epochs.
const MEMORY: usize = 64 << 20;
/// Number of decoded blocks kept while a batch is checked.
const DECODED: usize = 64;

/// Numbers whose lines another epoch also has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RepeatedLines {
    /// The other epoch.
    pub(super) of: String,
    /// The numbers, in the epoch of the note.
    pub(super) seqs: Vec<Range>,
}

impl RepeatedLines {
    /// Returns the number of elements.
    pub(super) fn count(&self) -> u64 {
        self.seqs.iter().map(|range| range.count()).sum()
    }
}

/// Another epoch of a batch's machine.
#[derive(Debug)]
pub(super) struct OtherEpoch {
    pub(super) epoch: String,
    pub(super) stem: Stem,
    /// End position of its lines.
    pub(super) lines_end: u64,
}

/// Cache of the directories of epochs.
#[derive(Debug)]
pub(super) struct Repeats {
    root: PathBuf,
    directories: HashMap<Stem, Directory>,
    clock: u64,
    memory: usize,
}

/// Positions of the generations' starts in an epoch's index.
#[derive(Debug)]
struct Directory {
    file: File,
    generations: HashMap<String, Vec<Block>>,
    /// Position up to which the index was read.
    read: u64,
    /// Position up to which the epoch's lines are known.
    lines_end: u64,
    size: usize,
    used: u64,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    lines_at: u64,
    at: u64,
    length: usize,
    first: u64,
    last: u64,
}

impl Repeats {
    /// Creates the cache for the files below `root`.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, directories: HashMap::new(), clock: 0, memory: MEMORY }
    }

    /// Returns which of the lines to store `others` also have. Their indexes must be written.
    pub(super) fn find(
        &mut self,
        batch: &Batch,
        store: &[usize],
        others: &[OtherEpoch],
    ) -> io::Result<Vec<RepeatedLines>> {
        let mut open: Vec<&Line> = store.iter().map(|index| &batch.lines()[*index]).collect();
        open.retain(|line| line.origin.is_some());
        let mut found = Vec::new();
        for other in others {
            if open.is_empty() {
                break;
            }
            let mut seqs: Vec<Range> = Vec::new();
            let mut search = self.directory(other)?.search();
            let mut failed = None;
            open.retain(|line| match search.holds(batch, line) {
                Ok(held) => {
                    if held {
                        push(&mut seqs, line.seq);
                    }
                    !held
                }
                Err(error) => {
                    failed = Some(error);
                    true
                }
            });
            if let Some(error) = failed {
                self.directories.remove(&other.stem);
                return Err(error);
            }
            if !seqs.is_empty() {
                found.push(RepeatedLines { of: other.epoch.clone(), seqs });
            }
        }
        Ok(found)
    }

    /// Returns the directory of an epoch, read up to the end of its lines.
    fn directory(&mut self, other: &OtherEpoch) -> io::Result<&mut Directory> {
        self.clock += 1;
        self.evict(&other.stem);
        let mut directory = match self.directories.remove(&other.stem) {
            Some(known) => known,
            None => Directory::new(open_regular_file(&other.stem.index(&self.root))?),
        };
        if directory.lines_end != other.lines_end {
            directory.read_appended()?;
        }
        if directory.lines_end != other.lines_end {
            let error = "the index does not cover all lines of the epoch";
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        directory.used = self.clock;
        Ok(self.directories.entry(other.stem.clone()).or_insert(directory))
    }

    /// Evicts the least recently used directories until the others fit.
    fn evict(&mut self, keep: &Stem) {
        while self.directories.values().map(|it| it.size).sum::<usize>() > self.memory {
            let others = self.directories.iter().filter(|(stem, _)| *stem != keep);
            let Some((stem, _)) = others.min_by_key(|(_, it)| it.used) else { return };
            let stem = stem.clone();
            self.directories.remove(&stem);
        }
    }
}

fn push(ranges: &mut Vec<Range>, seq: u64) {
    match ranges.last_mut() {
        Some(range) if range.last + 1 == seq => range.last = seq,
        _ => ranges.push(Range { first: seq, last: seq }),
    }
}

impl Directory {
    fn new(file: File) -> Self {
        Self { file, generations: HashMap::new(), read: 0, lines_end: 0, size: 0, used: 0 }
    }

    /// Reads the records appended since.
    fn read_appended(&mut self) -> io::Result<()> {
        let mut groups = Vec::new();
        let end = scan(&self.file, self.read, |at, head, _| {
            if head.starts_length() > 0 {
                groups.push((at + head.starts_at(), head.starts_length()));
            }
            Ok(())
        })?;
        for (at, length) in groups {
            let mut file = &self.file;
            file.seek(SeekFrom::Start(at))?;
            // A damaged group is as if its lines had no position.
            if let Some(group) = Group::read(&mut file.take(length))? {
                self.add(at, &group);
            }
        }
        self.read = end.end;
        Ok(())
    }

    fn add(&mut self, at: u64, group: &Group) {
        if group.lines_at < self.lines_end {
            // A repair found which lines are left: its group replaces the earlier ones.
            for blocks in self.generations.values_mut() {
                blocks.retain(|block| block.lines_at < group.lines_at);
            }
        }
        for starts in group.starts() {
            let offsets = || starts::decode(starts.bytes).map(|(offset, _)| offset);
            let block = Block {
                lines_at: group.lines_at,
                at: at + starts.at,
                length: starts.bytes.len(),
                first: offsets().min().unwrap_or_default(),
                last: offsets().max().unwrap_or_default(),
            };
            self.size += size_of::<Block>();
            match self.generations.get_mut(starts.generation) {
                Some(blocks) => blocks.push(block),
                None => {
                    self.size += starts.generation.len() + 64;
                    self.generations.insert(starts.generation.to_owned(), vec![block]);
                }
            }
        }
        self.lines_end = group.lines_at + group.lines_bytes;
    }

    fn search(&mut self) -> Search<'_> {
        Search { directory: self, decoded: HashMap::new() }
    }
}

/// Search for the lines of one batch.
struct Search<'a> {
    directory: &'a mut Directory,
    /// Decoded blocks, each sorted.
    decoded: HashMap<u64, Vec<(u64, u32)>>,
}

impl Search<'_> {
    fn holds(&mut self, batch: &Batch, line: &Line) -> io::Result<bool> {
        let Some(origin) = line.origin else { return Ok(false) };
        let name =
            usize::try_from(origin.generation).ok().and_then(|at| batch.generations().get(at));
        let blocks = name.and_then(|name| self.directory.generations.get(name));
        for block in blocks.into_iter().flatten() {
            if origin.offset < block.first || origin.offset > block.last {
                continue;
            }
            if !self.decoded.contains_key(&block.at) {
                if self.decoded.len() >= DECODED {
                    self.decoded.clear();
                }
                self.decoded.insert(block.at, read(&self.directory.file, block)?);
            }
            let starts = self.decoded.get(&block.at);
            if starts.is_some_and(|it| it.binary_search(&(origin.offset, origin.part)).is_ok()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn read(mut file: &File, block: &Block) -> io::Result<Vec<(u64, u32)>> {
    let mut bytes = vec![0; block.length];
    file.seek(SeekFrom::Start(block.at))?;
    file.read_exact(&mut bytes)?;
    let mut starts: Vec<_> = starts::decode(&bytes).collect();
    starts.sort_unstable();
    Ok(starts)
}

#[cfg(test)]
mod tests;
