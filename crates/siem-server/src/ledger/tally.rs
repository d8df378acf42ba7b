//! What is held of an epoch, counted so that it can be compared with what the agent claims.
//!
//! A heartbeat's totals cover exactly the numbers below its own. So the entries held are counted
//! in two parts, below the last claim and from it on, and a late entry goes to the part that its
//! number belongs to.

use std::slice;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::batch::{Claim, Counts, Line};

/// The counts of an epoch, and the claims that they are held against.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    /// The claim that comparing begins with, where nothing is known of what lies below it.
    baseline: Option<Claim>,
    /// The last claim.
    claim: Option<Claim>,
    /// What is held from the baseline to the last claim.
    below: Counts,
    /// What is held from the last claim on.
    above: Counts,
    /// Set when the counts are not those of all entries held: the next claim is a baseline.
    anew: bool,
}

/// What a batch adds to the counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TallyChange {
    /// New entries below the claim that was the last one before the batch.
    #[serde(skip_serializing_if = "Counts::is_zero")]
    pub below: Counts,
    /// New entries from that claim on, and below those of the batch itself.
    #[serde(skip_serializing_if = "Counts::is_zero")]
    pub above: Counts,
    /// The batch's own claims: the first one, which may be a baseline, and the last one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Claimed>,
}

/// A claim, and the entries of its batch that come from it on, up to the next claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// The claim.
    pub claim: Claim,
    /// The entries.
    pub behind: Counts,
}

/// Counts the lines of a batch that are stored.
pub(super) struct Counting<'a> {
    tally: &'a Tally,
    highest: u64,
    claims: slice::Iter<'a, Claim>,
    change: TallyChange,
}

/// What an agent claimed last of an epoch, and what is held of that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Comparison {
    /// Numbers from here on are compared. More than 1 when the epoch took over entries of an older
    /// one or began at a base, and when the receiver's own counts began anew: the first claim then
    /// is what the later ones are measured from.
    pub from: u64,
    /// The number of the heartbeat that claims: numbers below it are compared.
    pub below: u64,
    /// What the agent numbered between the two.
    pub claimed: Counts,
    /// What is held between the two.
    pub held: Counts,
    /// How many numbers between the two never came, or were dead-lettered.
    pub missing: u64,
    /// What is held from the heartbeat's number on, not yet compared with anything.
    pub not_compared: Counts,
    /// How claim and holdings differ.
    pub difference: Difference,
    /// When that is unexplained: the figures that cannot be right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong: Vec<Figure>,
}

/// How what is held differs from what was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// Not at all: every figure is equal.
    None,
    /// By exactly as many entries as there are numbers missing.
    Missing,
    /// In a way that no missing number accounts for.
    Unexplained,
}

/// A figure of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// All entries, of whatever kind.
    Entries,
    /// Records.
    Records,
    /// Their bytes.
    RecordBytes,
    /// Parts.
    Parts,
    /// Their bytes.
    PartBytes,
    /// Events.
    Events,
}

impl Tally {
    /// Begins to count the lines of a batch. `highest` is the highest number covered before it.
    pub(super) fn counting<'a>(&'a self, highest: u64, claims: &'a [Claim]) -> Counting<'a> {
        Counting { tally: self, highest, claims: claims.iter(), change: TallyChange::default() }
    }

    /// Takes a change in. `based` says that the epoch began at a base.
    pub(super) fn apply(&mut self, change: &TallyChange, based: bool) {
        self.below.add(&change.below);
        self.above.add(&change.above);
        for Claimed { claim, behind } in &change.claims {
            let begins = self.claim.is_none() && (self.anew || based || claim.uncounted > 0);
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

    /// Forgets all counts: entries were lost, or came uncounted.
    pub(super) fn begin_anew(&mut self) {
        *self = Self { anew: true, ..Self::default() };
    }

    fn from(&self) -> u64 {
        self.baseline.map_or(1, |baseline| baseline.seq)
    }

    /// Whether what a change adds may make for another comparison.
    pub(super) fn compared_anew(change: &TallyChange) -> bool {
        !change.claims.is_empty() || !change.below.is_zero()
    }

    /// Compares. `missing` tells how many numbers from one up to, and without, another are not
    /// held. `None` before the first claim.
    pub(super) fn compare(&self, missing: impl FnOnce(u64, u64) -> u64) -> Option<Comparison> {
        let claim = self.claim?;
        let from = self.from();
        let missing = missing(from, claim.seq);
        let base = self.baseline.map(|baseline| baseline.counts).unwrap_or_default();
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

impl Counting<'_> {
    /// Counts a line that is stored. Of a batch proper they come in order.
    pub(super) fn line(&mut self, line: &Line) {
        // The claims of lines that were held before are passed over.
        while self.claims.as_slice().first().is_some_and(|claim| claim.seq < line.seq) {
            self.claims.next();
        }
        // A claim below what is held would have to be compared with a part of what is below it.
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

    /// Keeps the first claim and the last one: those between say nothing that the last does not.
    fn claim(&mut self, claim: Claim) {
        if let [first, last] = self.change.claims.as_mut_slice() {
            first.behind.add(&last.behind);
            self.change.claims.pop();
        }
        self.change.claims.push(Claimed { claim, behind: Counts::default() });
    }

    pub(super) fn done(self) -> TallyChange {
        self.change
    }
}

/// The figures that cannot be right when `missing` numbers are not held.
fn wrong(claimed: &Counts, base: &Counts, held: &Counts, missing: u64) -> Vec<Figure> {
    let surplus = |of: fn(&Counts) -> u64| {
        i128::from(of(claimed)) - i128::from(of(base)) - i128::from(of(held))
    };
    let entries = surplus(|it| it.records) + surplus(|it| it.parts) + surplus(|it| it.events);
    let mut wrong = Vec::new();
    if entries != i128::from(missing) {
        wrong.push(Figure::Entries);
    }
    // What is missing may be of any kind; nothing may be held that was not claimed, and where no
    // entry of a kind is missing its bytes are all there.
    let mut check = |figure, surplus: i128, may_miss: bool| {
        if surplus < 0 || (surplus > 0 && !may_miss) {
            wrong.push(figure);
        }
    };
    let (records, parts) = (surplus(|it| it.records), surplus(|it| it.parts));
    check(Figure::Records, records, missing > 0);
    check(Figure::RecordBytes, surplus(|it| it.record_bytes), records > 0 && missing > 0);
    check(Figure::Parts, parts, missing > 0);
    check(Figure::PartBytes, surplus(|it| it.part_bytes), parts > 0 && missing > 0);
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
