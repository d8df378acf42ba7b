//! Table of the retry policy: from the outcome of a batch to the step that follows.

use std::time::Duration;

use crate::stages::sink::{Delivery, Rest};

/// Result for the entries of a batch that have no result of their own: for all of them, unless the
/// receiver decided about single entries.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) kind: Kind,
    /// Delay that the receiver or the sink requested.
    pub(super) after: Option<Duration>,
    /// Description of the failure, or response of the receiver.
    pub(super) text: String,
    /// HTTP status of a refusal.
    pub(super) status: u16,
    /// Time waited for a response.
    pub(super) waited: Duration,
    /// Number of refused entries, or next number that the receiver expects.
    pub(super) number: Option<u64>,
}

/// Kind of an [`Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Acknowledged,
    Unidentified,
    Unprocessed,
    InTransit,
    Retry,
    Slow,
    Hold,
    TooLarge,
    Invalid,
    Conflict,
}

/// Number of entries that an outcome is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    Any,
    Zero,
    One,
    Many,
}

/// Step after a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Move the cursor past the batch.
    Advance,
    /// Report that entries were refused, and move the cursor past the batch.
    ReportAndAdvance,
    /// Send the rest at once if the receiver decided about an entry, otherwise back off.
    Continue,
    /// Deliver again when there are new entries, or after the requested time.
    Recheck,
    /// Send again after a wait.
    BackOff,
    /// Send smaller batches, after a wait.
    SmallerBatches,
    /// Send again with more time, after a wait.
    MoreTime,
    /// Raise an alarm and send again after a wait.
    Alarm,
    /// Halve the batch and those that follow.
    LowerLimit,
    /// Halve the batch until the refused entry is alone.
    Halve,
    /// Store the entry as a dead letter, unless too many were refused in a row.
    DeadLetter,
    /// Raise an alarm, since the receiver refuses a batch without entries.
    RefusesAll,
    /// Renumber the entries under a new epoch.
    Renumber,
}

/// The policy. Each outcome has one row for each number of entries.
pub(super) const STEPS: [(Kind, Count, Step); 16] = [
    (Kind::Acknowledged, Count::Any, Step::Advance),
    (Kind::Unidentified, Count::Any, Step::ReportAndAdvance),
    (Kind::Unprocessed, Count::Any, Step::Continue),
    (Kind::InTransit, Count::Any, Step::Recheck),
    (Kind::Retry, Count::Any, Step::BackOff),
    (Kind::Slow, Count::Zero, Step::MoreTime),
    (Kind::Slow, Count::One, Step::MoreTime),
    (Kind::Slow, Count::Many, Step::SmallerBatches),
    (Kind::Hold, Count::Any, Step::Alarm),
    (Kind::TooLarge, Count::Zero, Step::RefusesAll),
    (Kind::TooLarge, Count::One, Step::DeadLetter),
    (Kind::TooLarge, Count::Many, Step::LowerLimit),
    (Kind::Invalid, Count::Zero, Step::RefusesAll),
    (Kind::Invalid, Count::One, Step::DeadLetter),
    (Kind::Invalid, Count::Many, Step::Halve),
    (Kind::Conflict, Count::Any, Step::Renumber),
];

/// Returns the step of the [table](STEPS) for an outcome that is about `entries` entries.
pub(super) fn step(kind: Kind, entries: usize) -> Step {
    let count = match entries {
        0 => Count::Zero,
        1 => Count::One,
        _ => Count::Many,
    };
    let row = STEPS
        .iter()
        .find(|(of, counts, _)| *of == kind && (*counts == Count::Any || *counts == count));
    // A test checks that there is a row for everything.
    row.map_or(Step::Alarm, |(_, _, step)| *step)
}

impl Outcome {
    pub(super) fn new(kind: Kind) -> Self {
        let (after, text, status) = (None, String::new(), 0);
        Self { kind, after, text, status, waited: Duration::ZERO, number: None }
    }

    fn failure(kind: Kind, after: Option<Duration>, reason: String) -> Self {
        Self { after, text: reason, ..Self::new(kind) }
    }

    fn refusal(status: u16, answer: String) -> Self {
        /// HTTP status of a refusal for size.
        const TOO_LARGE: u16 = 413;

        let kind = if status == TOO_LARGE { Kind::TooLarge } else { Kind::Invalid };
        Self { status, text: answer, ..Self::new(kind) }
    }
}

impl From<Rest> for Outcome {
    fn from(rest: Rest) -> Self {
        match rest {
            Rest::Unprocessed => Self::new(Kind::Unprocessed),
            Rest::InTransit { recheck } => {
                Self { after: Some(recheck), ..Self::new(Kind::InTransit) }
            }
            Rest::Retry { after, reason } => Self::failure(Kind::Retry, after, reason),
            Rest::Slow { waited, reason } => {
                Self { waited, ..Self::failure(Kind::Slow, None, reason) }
            }
            Rest::Hold { after, reason } => Self::failure(Kind::Hold, after, reason),
            Rest::Refused { status, answer } => Self::refusal(status, answer),
        }
    }
}

/// The results of single entries are left out.
impl From<Delivery> for Outcome {
    fn from(delivery: Delivery) -> Self {
        match delivery {
            Delivery::Acknowledged => Self::new(Kind::Acknowledged),
            Delivery::PerEntry { rest, .. } => rest.into(),
            Delivery::Unidentified { refused, answer } => {
                let number = Some(refused);
                Self { number, text: answer, ..Self::new(Kind::Unidentified) }
            }
            Delivery::Retry { after, reason } => Rest::Retry { after, reason }.into(),
            Delivery::Slow { waited, reason } => Rest::Slow { waited, reason }.into(),
            Delivery::Hold { after, reason } => Rest::Hold { after, reason }.into(),
            Delivery::Refused { status, answer } => Rest::Refused { status, answer }.into(),
            Delivery::Conflict { expected } => {
                Self { number: expected, ..Self::new(Kind::Conflict) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_one_row_for_each_outcome_and_count() {
        let kinds = [
            Kind::Acknowledged,
            Kind::Unidentified,
            Kind::Unprocessed,
            Kind::InTransit,
            Kind::Retry,
            Kind::Slow,
            Kind::Hold,
            Kind::TooLarge,
            Kind::Invalid,
            Kind::Conflict,
        ];
        for kind in kinds {
            for count in [Count::Zero, Count::One, Count::Many] {
                let rows = STEPS
                    .iter()
                    .filter(|(of, counts, _)| *of == kind && [Count::Any, count].contains(counts));
                assert_eq!(rows.count(), 1, "{kind:?} {count:?}");
            }
        }
    }
}
