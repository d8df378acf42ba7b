//! Entries after the cursor that the receiver has decided about.
//!
//! A receiver that decides about each entry may accept some and leave others before them undecided.
//! The cursor stays before the first undecided entry, and the decided ones after it are left out of
//! the next batches. They are known in memory only, at most a batch of them: a crash, or another
//! task for the sink, sends those that were accepted once more.

use std::{collections::BTreeSet, mem, ops::RangeInclusive};

use siem_protocol::BatchHeader;

/// Numbers of the entries in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchNumbers {
    /// Number of each entry, in the order of the batch's lines.
    pub seqs: Vec<u64>,
    /// Last number that the batch covers. Its entry may be left out.
    pub last_seq: u64,
}

/// Entries of one epoch after the cursor that the receiver has decided about: accepted ones, and
/// dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecidedEntries {
    epoch: String,
    seqs: BTreeSet<u64>,
}

impl BatchNumbers {
    /// Numbers of a batch that covers a range without the entries that are left out.
    #[must_use]
    pub fn new(covered: RangeInclusive<u64>, is_left_out: impl Fn(u64) -> bool) -> Self {
        let last_seq = *covered.end();
        Self { seqs: covered.filter(|seq| !is_left_out(*seq)).collect(), last_seq }
    }
}

impl DecidedEntries {
    /// Returns whether an entry is decided.
    #[must_use]
    pub fn contains(&self, epoch: &str, seq: u64) -> bool {
        // Most of the time nothing is decided after the cursor.
        !self.seqs.is_empty() && self.epoch == epoch && self.seqs.contains(&seq)
    }

    /// Adds entries. Those of an earlier epoch are forgotten: they have other numbers now.
    pub fn add(&mut self, epoch: &str, seqs: impl IntoIterator<Item = u64>) {
        if self.epoch != epoch {
            *self = Self { epoch: epoch.to_owned(), seqs: BTreeSet::new() };
        }
        self.seqs.extend(seqs);
    }

    /// Returns the number up to which all entries after `seq` are decided, and forgets those.
    pub fn take_through(&mut self, epoch: &str, mut seq: u64) -> u64 {
        if self.epoch != epoch || self.seqs.is_empty() {
            return seq;
        }
        while self.seqs.contains(&(seq + 1)) {
            seq += 1;
        }
        self.seqs = mem::take(&mut self.seqs).split_off(&(seq + 1));
        seq
    }

    /// Returns the numbers of the entries in a batch with this header, which was assembled without
    /// the entries that are decided.
    #[must_use]
    pub fn numbers_in(&self, header: &BatchHeader) -> BatchNumbers {
        let first = header.first_seq.unwrap_or(1);
        let mut dead = header.dead_lettered.iter().map(|letter| letter.seq).peekable();
        let dead: BTreeSet<u64> =
            if dead.peek().is_none() { BTreeSet::new() } else { dead.collect() };
        let is_left_out = |seq| dead.contains(&seq) || self.contains(&header.epoch, seq);
        BatchNumbers::new(first..=header.last_seq.unwrap_or_default(), is_left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decided_entries_are_taken_up_to_the_first_undecided_one() {
        let mut decided = DecidedEntries::default();
        decided.add("e", [1, 2, 4, 5, 9]);
        assert_eq!(decided.take_through("e", 0), 2);
        assert!(!decided.contains("e", 2) && decided.contains("e", 4));
        assert_eq!(decided.take_through("e", 3), 5);
        assert_eq!(decided.take_through("e", 5), 5);
        assert!(decided.contains("e", 9));
    }

    #[test]
    fn decided_entries_of_an_earlier_epoch_are_forgotten() {
        let mut decided = DecidedEntries::default();
        decided.add("e", [1, 2]);
        assert!(!decided.contains("f", 1));
        assert_eq!(decided.take_through("f", 0), 0);
        decided.add("f", [7]);
        assert!(!decided.contains("e", 1) && decided.contains("f", 7));
    }
}
