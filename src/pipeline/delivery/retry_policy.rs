//! Decides the next step after a batch: a pure function of its outcome and of earlier outcomes.
//!
//! A delivery consists of the results of single entries, if the receiver decided about them, and an
//! outcome for the others. The outcome and the number of the others determine the step, in
//! [a table](steps::STEPS).

mod steps;
#[cfg(test)]
mod tests;

use std::{mem, time::Duration};

use self::steps::{Outcome, Step};
use super::ahead::BatchNumbers;
use crate::stages::sink::{Delivery, EntryResult, problem_summary};
use config_text::Time;

/// First wait after a failure, before jitter.
const BASE: Duration = Duration::from_millis(500);
/// Longest wait, before jitter.
const CAP: Duration = Duration::from_secs(300);
/// Number of single entries refused without a success in between after which the receiver is taken
/// to be at fault.
const REFUSALS: u32 = 10;
/// Number of successes after which a larger batch is tried again where one took too long: each failure
/// costs a whole `timeout`.
const SLOW_TRIAL: u32 = 16;
/// Longest time for the delivery of one entry, unless the sink's `timeout` is longer: enough for the
/// largest entry at 100 kbit/s. After a receiver has hung, nothing waits longer than this for a new
/// attempt.
const PATIENCE: Duration = Duration::from_secs(900);
/// Maximum number of entries in any batch.
const ANY_BATCH: u64 = 10_000;

/// Stores the outcomes of one sink's batches and decides the next step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Failures since the last success.
    failures: u32,
    /// Entries permanently refused since the last one that was accepted.
    refusals: u32,
    /// Last number of a refused batch: an entry up to it is refused.
    suspect: Option<u64>,
    /// Maximum size of batches after one was too large or too slow.
    limit: Option<Limit>,
    /// Time for the next attempt, after a single entry was too slow.
    patience: Option<Duration>,
}

/// Entries that an outcome is about.
#[derive(Clone, Copy, Debug)]
struct Remaining {
    count: usize,
    /// Number of the last one.
    last_seq: u64,
}

/// Maximum number of entries in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    most: u64,
    /// Number of successes in a row after which twice as many entries are tried.
    trial: u32,
    successes: u32,
}

/// Next step after a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextAction {
    /// Move the cursor past the batch.
    Advance,
    /// Report that the receiver refused entries without saying which, and move the cursor past the
    /// batch.
    ReportAndAdvance {
        /// Number of refused entries.
        refused: u64,
        /// Response of the receiver.
        answer: String,
    },
    /// Store what the receiver decided about single entries, move the cursor past those before the
    /// first undecided one, and take another step.
    Decide {
        /// Results in the order of the batch's entries. Those that are refused become dead letters.
        entries: Vec<EntryResult>,
        /// The other step.
        then: Box<NextAction>,
    },
    /// Send at once what is not decided: the batch, up to [`RetryPolicy::border`].
    Again,
    /// Deliver again when there are new entries, or after a time. Nothing is wrong.
    Recheck {
        /// The time.
        after: Duration,
    },
    /// Send again after a wait.
    Wait {
        /// Length of the wait.
        delay: Duration,
        /// True if a person should check the problem: waiting may not solve it.
        alarm: bool,
        /// Description of the failure.
        reason: String,
    },
    /// Renumber the unacknowledged entries under a new epoch, or [hold](RetryPolicy::hold) if that is
    /// not allowed yet.
    Renumber,
    /// Store the batch's only entry, which is permanently refused, as a dead letter.
    DeadLetter {
        /// The HTTP status.
        status: u16,
        /// Response of the receiver.
        answer: String,
    },
}

impl RetryPolicy {
    /// Returns the last number that the batch after `acknowledged` may cover, or `None` for no limit.
    ///
    /// After a refusal the batch is halved until the refused entry is alone.
    #[must_use]
    pub fn border(&self, acknowledged: u64) -> Option<u64> {
        let suspect = self.suspect.filter(|suspect| *suspect > acknowledged).map(|suspect| {
            let rest = suspect - acknowledged;
            if rest == 1 { suspect } else { acknowledged + rest.div_ceil(2) }
        });
        let most = self.limit.map(|limit| acknowledged.saturating_add(limit.most));
        suspect.into_iter().chain(most).min()
    }

    /// Returns the time for the next attempt if it is longer than usual.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        self.patience
    }

    /// Decides the next step after `delivery` of a batch with the entries `batch`. `jitter` is a random
    /// number from 0 to 1.
    pub fn next(&mut self, delivery: Delivery, batch: &BatchNumbers, jitter: f64) -> NextAction {
        match delivery {
            Delivery::PerEntry { entries, rest } if entries.len() == batch.seqs.len() => {
                self.next_for_entries(entries, rest.into(), batch, jitter)
            }
            Delivery::PerEntry { entries, .. } => {
                let (results, sent) = (entries.len(), batch.seqs.len());
                let reason = format!("the sink returned {results} results for {sent} entries");
                self.hold(reason, jitter)
            }
            delivery => {
                let rest = Remaining { count: batch.seqs.len(), last_seq: batch.last_seq };
                self.step(delivery.into(), rest, false, jitter)
            }
        }
    }

    /// Decides about single entries, and about the others by `outcome`.
    fn next_for_entries(
        &mut self,
        mut entries: Vec<EntryResult>,
        outcome: Outcome,
        batch: &BatchNumbers,
        jitter: f64,
    ) -> NextAction {
        let withheld = self.withhold_refusals(&mut entries);
        let is_undecided = |(_, entry): &(usize, &EntryResult)| **entry == EntryResult::Undecided;
        let undecided: Vec<usize> =
            entries.iter().enumerate().filter(is_undecided).map(|(at, _)| at).collect();
        let has_progress = undecided.len() < entries.len();
        if has_progress {
            (self.failures, self.patience) = (0, None);
        }
        let then = match (withheld, undecided.last()) {
            (Some((status, answer)), _) => self.refuses_all(status, Some(&answer), jitter),
            (None, None) => {
                self.limit = self.limit.and_then(Limit::grown);
                self.suspect = self.suspect.filter(|suspect| *suspect > batch.last_seq);
                NextAction::Again
            }
            (None, Some(last)) => {
                let rest = Remaining { count: undecided.len(), last_seq: batch.seqs[*last] };
                self.step(outcome, rest, has_progress, jitter)
            }
        };
        let then = match (then, undecided.as_slice()) {
            (NextAction::DeadLetter { status, answer }, [only]) => {
                entries[*only] = EntryResult::Refused { status, answer };
                NextAction::Again
            }
            (then, _) => then,
        };
        NextAction::Decide { entries, then: Box::new(then) }
    }

    /// Counts refused entries. Those after the last that may become a dead letter are left undecided;
    /// returns the first of them.
    fn withhold_refusals(&mut self, entries: &mut [EntryResult]) -> Option<(u16, String)> {
        let mut withheld = None;
        for entry in &mut *entries {
            match entry {
                EntryResult::Accepted
                | EntryResult::Misfiled { .. }
                | EntryResult::Unidentified { .. }
                    if withheld.is_none() =>
                {
                    self.refusals = 0;
                }
                EntryResult::Refused { .. } if self.refusals >= REFUSALS => {
                    let refused = mem::replace(entry, EntryResult::Undecided);
                    if let EntryResult::Refused { status, answer } = refused {
                        withheld.get_or_insert((status, answer));
                    }
                }
                EntryResult::Refused { .. } => self.refusals += 1,
                _ => {}
            }
        }
        let is_accepted = |entry: &EntryResult| {
            matches!(entry, EntryResult::Accepted | EntryResult::Misfiled { .. })
        };
        if withheld.is_some() && entries.iter().any(is_accepted) {
            // The receiver accepts others: after the alarm, the next ones may become dead letters.
            self.refusals = 0;
        }
        withheld
    }

    /// Takes the step for `outcome`, which is about the entries `rest`.
    fn step(
        &mut self,
        outcome: Outcome,
        rest: Remaining,
        has_progress: bool,
        jitter: f64,
    ) -> NextAction {
        let Outcome { kind, after, text, status, waited, number } = outcome;
        match steps::step(kind, rest.count) {
            Step::Advance => {
                self.succeed(rest);
                NextAction::Advance
            }
            Step::ReportAndAdvance => {
                self.succeed(rest);
                let refused = number.unwrap_or_default().min(rest.count as u64);
                NextAction::ReportAndAdvance { refused, answer: text }
            }
            Step::Continue if has_progress => NextAction::Again,
            Step::Continue => {
                self.wait(None, false, "the receiver processed no entry".to_owned(), jitter)
            }
            Step::Recheck => NextAction::Recheck { after: after.unwrap_or_default() },
            Step::BackOff => self.wait(after, false, text, jitter),
            Step::SmallerBatches => {
                self.limit = Some(Limit::new(rest.count as u64 / 2, SLOW_TRIAL));
                self.wait(None, false, text, jitter)
            }
            Step::MoreTime => self.more_time(waited, &text, jitter),
            Step::Alarm => self.wait(after, true, text, jitter),
            Step::LowerLimit => {
                tracing::debug!(status, lines = rest.count, answer = text, "batch too large");
                // Its entries are valid: the batches that follow would be too large as well.
                self.limit = Some(Limit::new(rest.count as u64 / 2, 1));
                NextAction::Again
            }
            Step::Halve => {
                let lines = rest.count;
                tracing::debug!(status, lines, answer = text, "batch refused: it is halved");
                self.suspect = Some(rest.last_seq);
                NextAction::Again
            }
            Step::DeadLetter if self.refusals < REFUSALS => {
                self.refusals += 1;
                NextAction::DeadLetter { status, answer: text }
            }
            Step::DeadLetter | Step::RefusesAll => {
                let summary = problem_summary(text.as_bytes());
                self.refuses_all(status, summary.as_deref(), jitter)
            }
            Step::Renumber => {
                tracing::error!(
                    code = "receiver_conflict",
                    expected = number,
                    "the receiver has other entries under these numbers: was the state directory \
                     restored from a backup?"
                );
                self.suspect = None;
                NextAction::Renumber
            }
        }
    }

    /// Records that the receiver accepted a whole batch.
    fn succeed(&mut self, batch: Remaining) {
        (self.failures, self.patience) = (0, None);
        // A batch without entries, which only names dead letters, proves nothing: a receiver that
        // refuses every entry accepts it, too.
        if batch.count > 0 {
            self.refusals = 0;
            self.limit = self.limit.and_then(Limit::grown);
        }
        self.suspect = self.suspect.filter(|suspect| *suspect > batch.last_seq);
    }

    /// Gives the next attempt more time: a single entry cannot be halved.
    fn more_time(&mut self, waited: Duration, reason: &str, jitter: f64) -> NextAction {
        self.limit = Some(Limit::new(1, SLOW_TRIAL));
        let patience = waited.saturating_mul(2).min(PATIENCE).max(waited);
        self.patience = Some(patience);
        let is_longest = patience == waited;
        let reason = if is_longest {
            format!("{reason}; this is the longest time for an attempt")
        } else {
            format!("{reason}; the next attempt has {}", Time(patience))
        };
        self.wait(None, is_longest, reason, jitter)
    }

    /// Holds delivery: more dead letters would empty the outbox.
    fn refuses_all(&mut self, status: u16, summary: Option<&str>, jitter: f64) -> NextAction {
        let summary = summary.map(|text| format!(" ({text})")).unwrap_or_default();
        let reason = format!(
            "the receiver refuses every entry with {status}{summary}: fix the receiver, then send \
             the dead letters again with `ai-agent deadletter retry --all`"
        );
        self.wait(None, true, reason, jitter)
    }

    /// Sets the number of entries that were permanently refused since the last accepted one.
    pub fn resume(&mut self, refusals: u32) {
        self.refusals = refusals;
    }

    /// Returns the number of entries that were permanently refused since the last accepted one.
    #[must_use]
    pub fn refusals(&self) -> u32 {
        self.refusals
    }

    /// Holds delivery for a reason of the agent's own.
    pub fn hold(&mut self, reason: String, jitter: f64) -> NextAction {
        self.wait(None, true, reason, jitter)
    }

    fn wait(
        &mut self,
        after: Option<Duration>,
        alarm: bool,
        reason: String,
        jitter: f64,
    ) -> NextAction {
        let delay = after.unwrap_or_else(|| backoff(self.failures, jitter));
        self.failures = self.failures.saturating_add(1);
        NextAction::Wait { delay, alarm, reason }
    }
}

impl Limit {
    fn new(most: u64, trial: u32) -> Self {
        Self { most, trial, successes: 0 }
    }

    /// Returns the limit after a success: it grows until there is none.
    fn grown(self) -> Option<Self> {
        let successes = self.successes + 1;
        if successes < self.trial {
            return Some(Self { successes, ..self });
        }
        let most = self.most * 2;
        (most < ANY_BATCH).then_some(Self { most, successes: 0, ..self })
    }
}

/// Exponential backoff with full jitter: a random wait up to a bound that doubles.
/// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>
fn backoff(failures: u32, jitter: f64) -> Duration {
    let bound = BASE.saturating_mul(2_u32.saturating_pow(failures)).min(CAP);
    bound.mul_f64(jitter.clamp(0.0, 1.0))
}
