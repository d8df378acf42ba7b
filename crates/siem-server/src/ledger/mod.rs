//! Entries held of one epoch, and the changes by a batch. Policy only: no files, no clock.
//!
//! A store calls [`Ledger::plan`] for a batch, makes the resulting [`Change`] durable, and then
//! passes it to [`Ledger::apply`]. Applying the stored changes in order rebuilds the same ledger
//! after a restart.

mod change;
mod extents;
mod tally;

use std::collections::BTreeMap;

use siem_protocol::{ChainPoint, DeadLettered, Digest};

pub use change::{Break, BreakKind, Change, Plan, Refusal};
pub(crate) use change::{is_zero, number};
pub use extents::{Extent, Extents, Range};
use tally::Tally;
pub use tally::{Claimed, Comparison, Difference, Figure, TallyChange};

use crate::batch::{Batch, Line};

/// Reads the chain's values `h(n)` of the numbers that a store covers.
///
/// Each change adds one value for every number of its `new` ranges, in order; the position of a
/// value is the number of values added before it.
pub trait ChainValues {
    /// Reason why values could not be read.
    type Error;

    /// Reads `count` values from position `at`.
    ///
    /// # Errors
    /// If the values could not be read; the batch is then not planned.
    fn read(&mut self, at: u64, count: u64) -> Result<Vec<Digest>, Self::Error>;
}

impl ChainValues for &[Digest] {
    type Error = std::convert::Infallible;

    fn read(&mut self, at: u64, count: u64) -> Result<Vec<Digest>, Self::Error> {
        let start = usize::try_from(at).expect("the values lie in memory");
        let count = usize::try_from(count).expect("the values lie in memory");
        Ok(self[start..start + count].to_vec())
    }
}

/// Entries held of one epoch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// Numbers that are held or dead-lettered.
    covered: Extents,
    /// Dead-lettered numbers and the hashes of their lines.
    holes: BTreeMap<u64, Digest>,
    /// `h(n)` according to the batch that starts at n + 1, where no equal value is covered.
    claims: BTreeMap<u64, Digest>,
    breaks: Vec<Break>,
    begins_at: Option<ChainPoint>,
    /// Highest number covered so far.
    highest: u64,
    values: u64,
    accepted: u64,
    duplicates: u64,
    tally: Tally,
}

impl Ledger {
    /// Plans the changes by `batch`.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] if a number that is held has another chain value in the batch;
    /// [`Refusal::Values`] if `values` could not be read.
    pub fn plan<V: ChainValues>(
        &self,
        batch: &Batch,
        values: &mut V,
    ) -> Result<Plan, Refusal<V::Error>> {
        match batch.covers() {
            Some((first, last)) => self.plan_range(batch, Range { first, last }, values),
            None => self.plan_redelivery(batch, values).map_err(Refusal::Values),
        }
    }

    fn plan_range<V: ChainValues>(
        &self,
        batch: &Batch,
        range: Range,
        values: &mut V,
    ) -> Result<Plan, Refusal<V::Error>> {
        for Extent { range: held, at } in self.covered.overlaps(range) {
            let known = values.read(at, held.count()).map_err(Refusal::Values)?;
            if known != batch.chain(held.first, held.last) {
                return Err(Refusal::Conflict { expected_seq: self.next_seq() });
            }
        }
        let new = self.covered.missing(range);
        let mut change = Change { new, ..Change::default() };
        if self.is_unknown() {
            change.begins_at = batch.header.base;
        }
        self.check_before(batch, range, &mut change, values).map_err(Refusal::Values)?;
        self.check_after(batch, range, &mut change);
        let start = change.begins_at.map_or(0, |base| base.seq).max(self.next_seq() - 1);
        if range.first > start + 1 {
            change.gap = Some(Range { first: start + 1, last: range.first - 1 });
        }
        let is_new = |seq: u64| self.covered.at(seq).is_none();
        let dead = batch.header.dead_lettered.iter();
        change.holes = dead.filter(|dead| is_new(dead.seq)).cloned().collect();
        let mut store = Vec::new();
        let mut start = self.tally.start(self.next_seq() - 1, batch.claims());
        for (index, line) in batch.lines().iter().enumerate() {
            if self.holes.contains_key(&line.seq) {
                change.filled.push(line.seq);
            } else if !is_new(line.seq) {
                change.duplicates += 1;
                continue;
            }
            store.push(index);
            start.line(line);
        }
        change.accepted = store.len() as u64;
        change.tally = (!store.is_empty()).then(|| start.finish());
        Ok(Plan { change, store, accepted_seqs: None })
    }

    /// Compares the chain before the batch with the known value of that number.
    fn check_before<V: ChainValues>(
        &self,
        batch: &Batch,
        range: Range,
        change: &mut Change,
        values: &mut V,
    ) -> Result<(), V::Error> {
        let begins_new = change.new.first().is_some_and(|new| new.first == range.first);
        let Some(ends) = batch.header.chain.filter(|_| begins_new) else { return Ok(()) };
        let before = range.first - 1;
        let known = match change.begins_at.filter(|base| base.seq == before) {
            Some(base) => Some(base.hash),
            None => self.value_before(range.first, values)?,
        };
        if known != Some(ends.before) {
            change.claims.push(ChainPoint { seq: before, hash: ends.before });
        }
        if let Some(expected) = known.filter(|known| *known != ends.before) {
            let kind = BreakKind::Before;
            change.breaks.push(Break { seq: range.first, kind, expected, found: ends.before });
        }
        Ok(())
    }

    /// Compares the values of the batch with those that later numbers were built upon, and its last
    /// value with its header.
    fn check_after(&self, batch: &Batch, range: Range, change: &mut Change) {
        for new in &change.new {
            let Some(&claimed) = self.claims.get(&new.last) else { continue };
            let found = batch.chain(new.last, new.last)[0];
            if found == claimed {
                change.settled.push(new.last);
            } else if self.covered.at(new.last + 1).is_some() {
                let (seq, kind) = (new.last + 1, BreakKind::Join);
                change.breaks.push(Break { seq, kind, expected: claimed, found });
            }
        }
        let found = batch.chain(range.last, range.last)[0];
        if let Some(ends) = batch.header.chain.filter(|ends| ends.after != found) {
            let (seq, kind) = (range.last, BreakKind::After);
            change.breaks.push(Break { seq, kind, expected: ends.after, found });
        }
    }

    /// Returns `h(seq - 1)` according to the batch that brought `seq`, or would bring it.
    fn value_before<V: ChainValues>(
        &self,
        seq: u64,
        values: &mut V,
    ) -> Result<Option<Digest>, V::Error> {
        if let Some(claimed) = self.claims.get(&(seq - 1)) {
            return Ok(Some(*claimed));
        }
        self.value(seq - 1, values)
    }

    /// Returns the covered value `h(seq)`.
    fn value<V: ChainValues>(&self, seq: u64, values: &mut V) -> Result<Option<Digest>, V::Error> {
        if let Some(at) = self.covered.at(seq) {
            return Ok(values.read(at, 1)?.first().copied());
        }
        let base = self.begins_at.filter(|base| base.seq == seq).map(|base| base.hash);
        Ok(base.or((seq == 0).then_some(Digest::ZERO)))
    }

    fn plan_redelivery<V: ChainValues>(
        &self,
        batch: &Batch,
        values: &mut V,
    ) -> Result<Plan, V::Error> {
        let mut change = Change::default();
        let mut store = Vec::new();
        let mut accepted_seqs = Vec::new();
        // All entries of a redelivery are below the last one held, so none of them is a claim.
        let mut start = self.tally.start(self.next_seq() - 1, &[]);
        for (index, line) in batch.lines().iter().enumerate() {
            if self.holes.get(&line.seq) == Some(&line.digest) {
                change.filled.push(line.seq);
                store.push(index);
                start.line(line);
            } else if self.holds(line, values)? {
                change.duplicates += 1;
            } else {
                continue;
            }
            accepted_seqs.push(line.seq);
        }
        change.accepted = store.len() as u64;
        change.tally = (!store.is_empty()).then(|| start.finish());
        Ok(Plan { change, store, accepted_seqs: Some(accepted_seqs) })
    }

    /// Reports whether exactly this line is held.
    fn holds<V: ChainValues>(&self, line: &Line, values: &mut V) -> Result<bool, V::Error> {
        if self.covered.at(line.seq).is_none() || self.holes.contains_key(&line.seq) {
            return Ok(false);
        }
        let before = self.value_before(line.seq, values)?;
        let value = self.value(line.seq, values)?;
        Ok(before.map(|before| before.chain(line.digest)) == value)
    }

    /// Applies a change. The values of its `new` numbers start at the position [`Ledger::values`]
    /// as it was before the call.
    pub fn apply(&mut self, change: &Change) {
        if self.begins_at.is_none() {
            self.begins_at = change.begins_at;
        }
        for lost in &change.lost {
            self.covered.remove(*lost);
            self.holes.retain(|seq, _| *seq < lost.first || *seq > lost.last);
        }
        for seq in &change.settled {
            self.claims.remove(seq);
        }
        self.claims.extend(change.claims.iter().map(|claim| (claim.seq, claim.hash)));
        for new in &change.new {
            // The record that says that they were lost before may be damaged.
            self.covered.remove(*new);
            self.covered.insert(*new, self.values);
            self.values += new.count();
            self.highest = self.highest.max(new.last);
        }
        let holes = change.holes.iter().map(|hole| (hole.seq, hole.line_sha256));
        self.holes.extend(holes);
        for seq in &change.filled {
            self.holes.remove(seq);
        }
        self.breaks.extend(change.breaks.iter().cloned());
        self.tally(change);
        self.accepted += change.accepted;
        self.duplicates += change.duplicates;
    }

    fn tally(&mut self, change: &Change) {
        match &change.tally {
            Some(tally) => self.tally.apply(tally, self.begins_at.is_some()),
            // The change was written by a version that did not count entries.
            None if change.accepted > 0 => self.tally.reset(),
            None => {}
        }
        if !change.lost.is_empty() {
            self.tally.reset();
        }
    }

    /// The agent's last claim, compared with the entries held; `None` before its first claim.
    #[must_use]
    pub fn comparison(&self) -> Option<Comparison> {
        self.tally.compare(|from, below| self.not_held(from, below))
    }

    /// Reports whether the entries held differ from the agent's last claim without an explanation.
    pub(crate) fn is_unexplained(&self) -> bool {
        self.tally.is_unexplained(|from, below| self.not_held(from, below))
    }

    /// Returns how many numbers from one up to, and excluding, another are not held.
    fn not_held(&self, from: u64, below: u64) -> u64 {
        if below <= from {
            return 0;
        }
        let gaps = self.covered.count_missing(Range { first: from, last: below - 1 });
        gaps + self.holes.range(from..below).count() as u64
    }

    /// Reports whether a change can affect the comparison.
    pub(crate) fn affects_comparison(change: &Change) -> bool {
        change.tally.as_ref().is_some_and(Tally::affects_comparison)
    }

    /// Returns true if no entry of the epoch has been stored.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.values == 0 && self.begins_at.is_none()
    }

    /// Returns the number after the highest one covered so far.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.begins_at.map_or(0, |base| base.seq).max(self.highest) + 1
    }

    /// Number of chain values added so far.
    #[must_use]
    pub fn values(&self) -> u64 {
        self.values
    }

    /// Position of `h(seq)` among the values; `None` if the number is not covered.
    #[must_use]
    pub fn place(&self, seq: u64) -> Option<u64> {
        self.covered.at(seq)
    }

    /// Numbers that are covered: held or dead-lettered.
    #[must_use]
    pub fn covered(&self) -> Vec<Range> {
        self.covered.ranges()
    }

    /// Numbers below the highest one that never arrived.
    #[must_use]
    pub fn gaps(&self) -> Vec<Range> {
        let first = self.begins_at.map_or(0, |base| base.seq) + 1;
        let last = self.next_seq() - 1;
        if last < first { Vec::new() } else { self.covered.missing(Range { first, last }) }
    }

    /// Number of the numbers below the highest one that never arrived.
    #[must_use]
    pub fn missing(&self) -> u64 {
        let base = self.begins_at.map_or(0, |base| base.seq);
        // A number below the base may arrive nevertheless, and is no part of this range.
        match self.covered.first() {
            Some(first) if first <= base => self.gaps().into_iter().map(Range::count).sum(),
            _ => (self.next_seq() - 1).saturating_sub(base).saturating_sub(self.covered.count()),
        }
    }

    /// Numbers of a range that are not covered.
    pub(crate) fn lacks(&self, range: Range) -> Vec<Range> {
        self.covered.missing(range)
    }

    /// Value of the chain that the number after this one was built upon, as far as no equal one is covered.
    pub(crate) fn claim(&self, seq: u64) -> Option<Digest> {
        self.claims.get(&seq).copied()
    }

    /// Hash of the line of a dead-lettered number that was not redelivered.
    pub(crate) fn hole(&self, seq: u64) -> Option<Digest> {
        self.holes.get(&seq).copied()
    }

    /// Dead-lettered numbers that were not redelivered.
    pub fn holes(&self) -> impl Iterator<Item = DeadLettered> + '_ {
        self.holes.iter().map(|(&seq, &line_sha256)| DeadLettered { seq, line_sha256 })
    }

    /// Number of the dead-lettered numbers that were not redelivered.
    pub(crate) fn hole_count(&self) -> u64 {
        self.holes.len() as u64
    }

    /// Breaks of the chain, in the order found.
    #[must_use]
    pub fn breaks(&self) -> &[Break] {
        &self.breaks
    }

    /// Start of a sink that was added later.
    #[must_use]
    pub fn begins_at(&self) -> Option<ChainPoint> {
        self.begins_at
    }

    /// Number of lines held.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.covered.count() - self.holes.len() as u64
    }

    /// Number of lines that arrived again.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Returns `h(seq - 1)`, with which a rebuild of the chain's values starts; see
    /// [`ChainValues`].
    ///
    /// # Errors
    /// If `values` could not be read.
    pub(crate) fn start_of<V: ChainValues>(
        &self,
        new: Range,
        change: &Change,
        values: &mut V,
    ) -> Result<Option<Digest>, V::Error> {
        let before = new.first - 1;
        let own = change.claims.iter().find(|claim| claim.seq == before).map(|claim| claim.hash);
        let base = change.begins_at.filter(|base| base.seq == before).map(|base| base.hash);
        match own.or(base) {
            Some(value) => Ok(Some(value)),
            None => self.value_before(new.first, values),
        }
    }
}

#[cfg(test)]
mod tests;
