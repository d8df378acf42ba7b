//! Counts of the entries of an epoch, for the comparison with the agent's claims.
//!
//! The totals of a heartbeat cover exactly the numbers below its own. The entries are therefore
//! counted in two parts, those below the last claim and those from it on; a late entry is added to
//! the part that its number belongs to.

use std::slice;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::batch::{Claim, Counts, Line};

/// Counts of an epoch, and the claims that they are compared with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    /// The claim with which the comparison starts, if the entries below it are unknown.
    baseline: Option<Claim>,
    /// The last claim.
    claim: Option<Claim>,
    /// Entries from the baseline to the last claim.
    below: Counts,
    /// Entries from the last claim on.
    above: Counts,
    /// Set if the counts do not include all entries held: the next claim becomes the baseline.
    is_incomplete: bool,
}

/// Changes of the counts by a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TallyChange {
    /// New entries below the last claim before the batch.
    #[serde(skip_serializing_if = "Counts::is_zero")]
    pub below: Counts,
    /// New entries from that claim on, and below the claims of the batch itself.
    #[serde(skip_serializing_if = "Counts::is_zero")]
    pub above: Counts,
    /// Claims of the batch: the first one, which may become the baseline, and the last one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Claimed>,
}

/// A claim, and the entries of its batch from the claim to the next one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// The claim.
    pub claim: Claim,
    /// The entries.
    pub behind: Counts,
}

/// Counts the lines of a batch that are stored.
pub(super) struct TallyBuilder<'a> {
    tally: &'a Tally,
    highest: u64,
    claims: slice::Iter<'a, Claim>,
    change: TallyChange,
}

/// Last claim of an agent about an epoch, compared with the entries held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Comparison {
    /// First number that is compared. It is above 1 if the epoch carried over entries of an older
    /// one, if it started at a base, or if the receiver had to reset its own counts: the first
    /// claim is then the baseline for later ones.
    pub from: u64,
    /// Number of the heartbeat with the claim: numbers below it are compared.
    pub below: u64,
    /// Entries between the two, according to the agent.
    pub claimed: Counts,
    /// Entries held between the two.
    pub held: Counts,
    /// Number of entries between the two that never arrived or were dead-lettered.
    pub missing: u64,
    /// Entries held from the heartbeat's number on, which no claim covers yet.
    pub not_compared: Counts,
    /// Kind of the difference.
    pub difference: Difference,
    /// The figures that cannot be right, if the difference is unexplained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong: Vec<Figure>,
}

/// Kinds of differences between entries and claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// All figures are equal.
    None,
    /// The difference is the number of missing entries.
    Missing,
    /// Missing numbers do not explain the difference.
    Unexplained,
}

/// A figure of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// All entries, of any kind.
    Entries,
    /// Records.
    Records,
    /// Bytes of the records.
    RecordBytes,
    /// Parts.
    Parts,
    /// Bytes of the parts.
    PartBytes,
    /// Events.
    Events,
}

impl Tally {
    /// Starts to count the lines of a batch. `highest` is the highest number covered before it.
    pub(super) fn start<'a>(&'a self, highest: u64, claims: &'a [Claim]) -> TallyBuilder<'a> {
        TallyBuilder { tally: self, highest, claims: claims.iter(), change: TallyChange::default() }
    }

    /// Applies a change. `based` is true if the epoch started at a base.
    pub(super) fn apply(&mut self, change: &TallyChange, based: bool) {
        self.below.add(&change.below);
        self.above.add(&change.above);
        for Claimed { claim, behind } in &change.claims {
            let begins =
                self.claim.is_none() && (self.is_incomplete || based || claim.uncounted > 0);
            let above = std::mem::take(&mut self.above);
            if begins {
                (self.baseline, self.below) = (Some(*claim), Counts::default());
            } else {
                self.below.add(&above);
            }
            self.claim = Some(*claim);
            self.above = *behind;
        }
    }

    /// Resets the counts, after entries were lost or arrived uncounted.
    pub(super) fn reset(&mut self) {
        *self = Self { is_incomplete: true, ..Self::default() };
    }

    fn from(&self) -> u64 {
        self.baseline.map_or(1, |baseline| baseline.seq)
    }

    /// Reports whether a change can affect the comparison.
    pub(super) fn affects_comparison(change: &TallyChange) -> bool {
        !change.claims.is_empty() || !change.below.is_zero()
    }

    /// Compares the entries with the last claim. `missing` returns how many numbers from one up to,
    /// and excluding, another are not held. Returns `None` before the first claim.
    pub(super) fn compare(&self, missing: impl FnOnce(u64, u64) -> u64) -> Option<Comparison> {
        let claim = self.claim?;
        let from = self.from();
        let missing = missing(from, claim.seq);
        let base = self.base();
        let wrong = wrong(&claim.counts, &base, &self.below, missing);
        let difference = match (wrong.is_empty(), missing) {
            (false, _) => Difference::Unexplained,
            (true, 0) => Difference::None,
            (true, _) => Difference::Missing,
        };
        Some(Comparison {
            from,
            below: claim.seq,
            claimed: less(&claim.counts, &base),
            held: self.below,
            missing,
            not_compared: self.above,
            difference,
            wrong,
        })
    }
}

impl Tally {
    /// Reports whether [`compare`](Self::compare) finds a difference that missing numbers do not explain.
    pub(super) fn is_unexplained(&self, missing: impl FnOnce(u64, u64) -> u64) -> bool {
        self.claim.is_some_and(|claim| {
            let missing = missing(self.from(), claim.seq);
            !wrong(&claim.counts, &self.base(), &self.below, missing).is_empty()
        })
    }

    fn base(&self) -> Counts {
        self.baseline.map(|baseline| baseline.counts).unwrap_or_default()
    }
}

impl TallyBuilder<'_> {
    /// Counts a line that is stored. The lines of a regular batch come in order.
    pub(super) fn line(&mut self, line: &Line) {
        // Claims of lines that were already stored are skipped.
        while self.claims.as_slice().first().is_some_and(|claim| claim.seq < line.seq) {
            self.claims.next();
        }
        // A claim below the highest number covered would have to be compared with only some of the
        // entries below it.
        let own = self.claims.as_slice().first().filter(|claim| claim.seq == line.seq);
        if let Some(claim) = own.filter(|claim| claim.seq > self.highest) {
            self.claim(*claim);
        }
        let counts = match self.change.claims.last_mut() {
            Some(claimed) => &mut claimed.behind,
            None if line.seq < self.tally.from() => return,
            None if self.tally.claim.is_some_and(|claim| line.seq < claim.seq) => {
                &mut self.change.below
            }
            None => &mut self.change.above,
        };
        counts.count(line.kind, line.bytes);
    }

    /// Keeps the first claim and the last one: those between add no information.
    fn claim(&mut self, claim: Claim) {
        if let [first, last] = self.change.claims.as_mut_slice() {
            first.behind.add(&last.behind);
            self.change.claims.pop();
        }
        self.change.claims.push(Claimed { claim, behind: Counts::default() });
    }

    pub(super) fn finish(self) -> TallyChange {
        self.change
    }
}

/// Returns the figures that cannot be right if `missing` numbers are not held.
fn wrong(claimed: &Counts, base: &Counts, held: &Counts, missing: u64) -> Vec<Figure> {
    let surplus = |of: fn(&Counts) -> u64| {
        i128::from(of(claimed)) - i128::from(of(base)) - i128::from(of(held))
    };
    let entries = surplus(|it| it.records) + surplus(|it| it.parts) + surplus(|it| it.events);
    let mut wrong = Vec::new();
    if entries != i128::from(missing) {
        wrong.push(Figure::Entries);
    }
    // The missing entries can be of any kind. No figure may exceed the claim, and if no entry of a
    // kind is missing, all of its bytes must be there.
    let mut check = |figure, surplus: i128, may_miss: bool| {
        if surplus < 0 || (surplus > 0 && !may_miss) {
            wrong.push(figure);
        }
    };
    // A sum of bytes that has reached the maximum, as those of three sparse lines of 8 EiB do, is known no
    // more.
    let bytes = |of: fn(&Counts) -> u64| {
        let is_known = [claimed, base, held].into_iter().all(|counts| of(counts) < u64::MAX);
        if is_known { surplus(of) } else { 0 }
    };
    let (records, parts) = (surplus(|it| it.records), surplus(|it| it.parts));
    check(Figure::Records, records, missing > 0);
    check(Figure::RecordBytes, bytes(|it| it.record_bytes), records > 0 && missing > 0);
    check(Figure::Parts, parts, missing > 0);
    check(Figure::PartBytes, bytes(|it| it.part_bytes), parts > 0 && missing > 0);
    check(Figure::Events, surplus(|it| it.events), missing > 0);
    wrong
}

fn less(counts: &Counts, base: &Counts) -> Counts {
    Counts {
        records: counts.records.saturating_sub(base.records),
        record_bytes: counts.record_bytes.saturating_sub(base.record_bytes),
        parts: counts.parts.saturating_sub(base.parts),
        part_bytes: counts.part_bytes.saturating_sub(base.part_bytes),
        events: counts.events.saturating_sub(base.events),
    }
}

#[cfg(test)]
mod tests;
