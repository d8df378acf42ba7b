//! Decides the next step after a batch: a pure function of its outcome and of earlier outcomes.

use std::time::Duration;

use crate::{
    stages::sink::{Delivery, problem_summary},
    units::Time,
};

/// First wait after a failure, before jitter.
const BASE: Duration = Duration::from_millis(500);
/// Longest wait, before jitter.
const CAP: Duration = Duration::from_secs(300);
/// Number of single entries refused without a success in between after which the receiver is taken
/// to be at fault.
const REFUSALS: u32 = 10;
/// HTTP status of a refusal for size.
const TOO_LARGE: u16 = 413;
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
    /// Send again at once: [`RetryPolicy::border`] has moved.
    Again,
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

    /// Decides the next step after `delivery` of a batch of `lines` entries that ends with `last_seq`.
    /// `jitter` is a random number from 0 to 1.
    pub fn next(
        &mut self,
        delivery: Delivery,
        last_seq: u64,
        lines: u64,
        jitter: f64,
    ) -> NextAction {
        match delivery {
            Delivery::Acknowledged => {
                self.patience = None;
                self.failures = 0;
                // A batch without entries, which only names dead letters, proves nothing: a receiver
                // that refuses every entry accepts it, too.
                if lines > 0 {
                    self.refusals = 0;
                    self.limit = self.limit.and_then(Limit::grown);
                }
                self.suspect = self.suspect.filter(|suspect| *suspect > last_seq);
                NextAction::Advance
            }
            Delivery::PerEntry { .. } | Delivery::Unidentified { .. } => {
                self.wait(None, true, "unexpected result of a delivery".to_owned(), jitter)
            }
            Delivery::Retry { after, reason } => self.wait(after, false, reason, jitter),
            Delivery::Slow { waited, reason } => {
                self.limit = Some(Limit::new((lines / 2).max(1), SLOW_TRIAL));
                if lines > 1 {
                    return self.wait(None, false, reason, jitter);
                }
                // A single entry cannot be halved, and needs more time to arrive.
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
            Delivery::Hold { after, reason } => self.wait(after, true, reason, jitter),
            Delivery::Conflict { expected } => {
                tracing::error!(
                    code = "receiver_conflict",
                    expected,
                    "the receiver has other entries under these numbers: was the state directory \
                     restored from a backup?"
                );
                self.suspect = None;
                NextAction::Renumber
            }
            Delivery::Refused { status, answer } if lines > 1 => {
                tracing::debug!(status, lines, answer, "batch refused: it is halved");
                if status == TOO_LARGE {
                    // Its entries are valid: the batches that follow would be too large as well.
                    self.limit = Some(Limit::new(lines / 2, 1));
                } else {
                    self.suspect = Some(last_seq);
                }
                NextAction::Again
            }
            Delivery::Refused { status, answer } => {
                if lines == 0 || self.refusals >= REFUSALS {
                    let summary =
                        problem_summary(answer.as_bytes()).map(|text| format!(" ({text})"));
                    let reason = format!(
                        "the receiver refuses every entry with {status}{}: fix the receiver, then \
                         send the dead letters again with `ai-agent deadletter retry --all`",
                        summary.unwrap_or_default()
                    );
                    return self.wait(None, true, reason, jitter);
                }
                self.refusals += 1;
                NextAction::DeadLetter { status, answer }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Delivery {
        Delivery::Refused { status: 422, answer: "no".into() }
    }

    fn retry(after: Option<u64>) -> Delivery {
        Delivery::Retry { after: after.map(Duration::from_secs), reason: "down".into() }
    }

    fn slow() -> Delivery {
        slow_after(60)
    }

    fn slow_after(seconds: u64) -> Delivery {
        Delivery::Slow { waited: Duration::from_secs(seconds), reason: "slow".into() }
    }

    fn delay(next: NextAction) -> Duration {
        let NextAction::Wait { delay, .. } = next else { panic!("{next:?}") };
        delay
    }

    fn hold() -> Delivery {
        Delivery::Hold { after: None, reason: "401".into() }
    }

    /// The table in the documentation of delivery, for a sink without earlier outcomes.
    #[test]
    fn each_outcome_has_its_action() {
        let wait = |seconds: f64, alarm, reason: &str| NextAction::Wait {
            delay: Duration::from_secs_f64(seconds),
            alarm,
            reason: reason.to_owned(),
        };
        let refused = |status| Delivery::Refused { status, answer: "no".into() };
        let dead_letter = |status| NextAction::DeadLetter { status, answer: "no".into() };
        let hold_for =
            Delivery::Hold { after: Some(Duration::from_secs(9)), reason: "portal".into() };
        let all = "the receiver refuses every entry with 422: fix the receiver, then send the dead \
                   letters again with `ai-agent deadletter retry --all`";
        let rows = [
            ("accepted", Delivery::Acknowledged, 5, NextAction::Advance),
            ("only dead letters, accepted", Delivery::Acknowledged, 0, NextAction::Advance),
            ("no response, or 5xx", retry(None), 5, wait(0.5, false, "down")),
            ("no response in time", slow(), 5, wait(0.5, false, "slow")),
            (
                "no response in time to one",
                slow(),
                1,
                wait(0.5, false, "slow; the next attempt has 2m"),
            ),
            (
                "no response to one in the longest time",
                slow_after(900),
                1,
                wait(0.5, true, "slow; this is the longest time for an attempt"),
            ),
            ("a wait is requested", retry(Some(7)), 5, wait(7.0, false, "down")),
            ("401, 403, 404, …", hold(), 5, wait(0.5, true, "401")),
            ("the same with a wait", hold_for, 5, wait(9.0, true, "portal")),
            ("422 for many", refused(422), 5, NextAction::Again),
            ("413 for many", refused(413), 5, NextAction::Again),
            ("422 for one", refused(422), 1, dead_letter(422)),
            ("413 for one", refused(413), 1, dead_letter(413)),
            ("422 for only dead letters", refused(422), 0, wait(0.5, true, all)),
            ("409", Delivery::Conflict { expected: Some(3) }, 5, NextAction::Renumber),
        ];
        for (what, delivery, lines, expected) in rows {
            assert_eq!(RetryPolicy::default().next(delivery, 10, lines, 1.0), expected, "{what}");
        }
    }

    #[test]
    fn waits_double_up_to_a_cap_until_a_success() {
        let mut policy = RetryPolicy::default();
        let waits: Vec<u64> = (0..12)
            .map(|_| delay(policy.next(retry(None), 1, 1, 1.0)).as_millis() as u64)
            .collect();
        assert_eq!(waits[..4], [500, 1000, 2000, 4000]);
        assert_eq!(waits[11], 300_000);
        assert_eq!(policy.next(Delivery::Acknowledged, 1, 1, 1.0), NextAction::Advance);
        assert_eq!(delay(policy.next(retry(None), 1, 1, 1.0)).as_millis(), 500);
        assert_eq!(delay(policy.next(retry(None), 1, 1, 0.0)).as_millis(), 0);
    }

    #[test]
    fn wait_does_not_overflow() {
        let mut policy = RetryPolicy { failures: u32::MAX, ..RetryPolicy::default() };
        assert_eq!(delay(policy.next(retry(None), 1, 1, 1.0)), CAP);
    }

    #[test]
    fn requested_wait_has_precedence() {
        let next = RetryPolicy::default().next(retry(Some(7)), 1, 1, 0.5);
        assert_eq!(delay(next), Duration::from_secs(7));
    }

    #[test]
    fn only_a_hold_raises_an_alarm() {
        let mut policy = RetryPolicy::default();
        let alarm = |next| matches!(next, NextAction::Wait { alarm: true, .. });
        assert!(!alarm(policy.next(retry(None), 1, 1, 0.5)));
        let hold = Delivery::Hold { after: None, reason: "401".into() };
        assert!(alarm(policy.next(hold, 1, 1, 0.5)));
        assert!(alarm(policy.hold("too soon".into(), 0.5)));
        assert_eq!(
            policy.next(Delivery::Conflict { expected: Some(3) }, 1, 1, 0.5),
            NextAction::Renumber
        );
    }

    /// Plays a receiver that refuses one entry among many. Returns the number of requests and the
    /// dead letters.
    fn isolate(count: u64, poisoned: u64) -> (u64, Vec<u64>) {
        let mut policy = RetryPolicy::default();
        let (mut acknowledged, mut requests, mut dead_letters) = (0, 0, Vec::new());
        while acknowledged < count {
            let last = policy.border(acknowledged).unwrap_or(count);
            let dead =
                dead_letters.iter().filter(|seq| (acknowledged + 1..=last).contains(*seq)).count();
            let lines = last - acknowledged - dead as u64;
            let bad =
                (acknowledged + 1..=last).contains(&poisoned) && !dead_letters.contains(&poisoned);
            requests += 1;
            let delivery = if bad { refused() } else { Delivery::Acknowledged };
            match policy.next(delivery, last, lines, 0.5) {
                NextAction::Advance => acknowledged = last,
                NextAction::Again => {}
                NextAction::DeadLetter { .. } => dead_letters.push(last),
                NextAction::Wait { .. } | NextAction::Renumber => panic!(),
            }
        }
        (requests, dead_letters)
    }

    #[test]
    fn refused_entry_is_found_in_a_logarithm_of_requests() {
        for count in [1, 2, 3, 7, 100, 1000] {
            for poisoned in [1, 2, count / 2 + 1, count - 1, count] {
                if !(1..=count).contains(&poisoned) {
                    continue;
                }
                let (requests, dead_letters) = isolate(count, poisoned);
                assert_eq!(dead_letters, [poisoned], "{poisoned} of {count}");
                let bound = 2 * u64::from(count.ilog2()) + 4;
                assert!(requests <= bound, "{poisoned} of {count}: {requests} > {bound}");
            }
        }
    }

    /// Sends `count` entries to a receiver that accepts `limit` at a time. Returns the number of
    /// requests.
    fn squeeze(count: u64, limit: u64) -> u64 {
        let mut policy = RetryPolicy::default();
        let (mut acknowledged, mut requests) = (0, 0);
        while acknowledged < count {
            let last = policy.border(acknowledged).unwrap_or(count).min(count);
            let lines = last - acknowledged;
            requests += 1;
            let too_large = Delivery::Refused { status: 413, answer: "too large".into() };
            let delivery = if lines > limit { too_large } else { Delivery::Acknowledged };
            match policy.next(delivery, last, lines, 0.5) {
                NextAction::Advance => acknowledged = last,
                NextAction::Again => {}
                next => panic!("{next:?}"),
            }
        }
        requests
    }

    /// Halving as after a 422 searched for the size again with each batch, down to single entries.
    #[test]
    fn receiver_with_a_small_limit_gets_few_requests() {
        for (count, limit) in [(1000, 1), (1000, 3), (1000, 300), (1000, 999), (5000, 64)] {
            let requests = squeeze(count, limit);
            let bound = 12 + 4 * count.div_ceil(limit);
            assert!(requests <= bound, "{count} by {limit}: {requests} > {bound}");
        }
    }

    /// Regression: over an uplink that needed longer than `timeout`, the same batch was sent forever.
    #[test]
    fn slow_batches_are_halved_and_grow_again_slowly() {
        const FITTING: u64 = 70;
        let (mut policy, mut acknowledged, mut slow_ones, mut largest) =
            (RetryPolicy::default(), 0, 0, 0);
        while acknowledged < 20_000 {
            let last = policy.border(acknowledged).unwrap_or(acknowledged + 1000);
            let lines = last - acknowledged;
            let delivery = if lines > FITTING { slow() } else { Delivery::Acknowledged };
            match policy.next(delivery, last, lines, 0.5) {
                NextAction::Advance => (acknowledged, largest) = (last, largest.max(lines)),
                NextAction::Wait { alarm: false, .. } => slow_ones += 1,
                next => panic!("{next:?}"),
            }
        }
        assert_eq!(largest, 62);
        assert!(slow_ones <= 4 + 20_000 / 62 / 16, "{slow_ones}");
        // A single entry cannot be halved; once the network is fast again, batches grow.
        for _ in 0..20 {
            policy.next(slow(), acknowledged, policy.border(0).unwrap_or(1000), 0.5);
        }
        assert_eq!(policy.border(0), Some(1));
        for _ in 0..14 * SLOW_TRIAL {
            policy.next(Delivery::Acknowledged, acknowledged, 1, 0.5);
        }
        assert_eq!(policy.border(0), None);
    }

    /// Regression: an entry that took longer than `timeout` was sent forever with that `timeout`.
    #[test]
    fn slow_entry_gets_more_time_until_it_arrives() {
        let of = |policy: &RetryPolicy| policy.patience().map(|patience| patience.as_secs());
        // Timeout of the sink, and times of the attempts after the first.
        let rows: [(u64, &[u64]); 4] = [
            (60, &[120, 240, 480, 900, 900, 900]),
            (7, &[14, 28, 56, 112, 224, 448, 896, 900, 900]),
            (800, &[900, 900]),
            (3600, &[3600, 3600]),
        ];
        for (timeout, given) in rows {
            let mut policy = RetryPolicy::default();
            let mut waited = timeout;
            for expected in given {
                let next = policy.next(slow_after(waited), 8, 1, 0.5);
                // Raises an alarm once more time does not help; the entry is never dropped.
                let alarmed = *expected == waited;
                assert!(
                    matches!(next, NextAction::Wait { alarm, .. } if alarm == alarmed),
                    "{next:?}"
                );
                assert_eq!(of(&policy), Some(*expected), "{timeout}");
                assert_eq!(policy.border(7), Some(8), "it is sent alone");
                waited = timeout.max(*expected);
            }
            // Another failure does not reset the time, a success does.
            policy.next(retry(None), 8, 1, 0.5);
            assert_eq!(of(&policy), Some(waited));
            assert_eq!(policy.next(Delivery::Acknowledged, 8, 1, 0.5), NextAction::Advance);
            assert_eq!(of(&policy), None);
            assert_eq!(policy.refusals(), 0);
        }
        let mut policy = RetryPolicy::default();
        policy.next(slow(), 8, 2, 0.5);
        assert_eq!(of(&policy), None, "the batch can be halved");
    }

    #[test]
    fn failure_for_an_hour_causes_few_requests() {
        for delivery in [hold, || retry(None)] {
            let (mut policy, mut waited, mut requests) =
                (RetryPolicy::default(), Duration::ZERO, 0);
            while waited < Duration::from_secs(3600) {
                waited += delay(policy.next(delivery(), 1, 1, 0.5));
                requests += 1;
            }
            assert!(requests < 50, "{requests}");
        }
    }

    #[test]
    fn eleventh_refusal_in_a_row_holds_delivery() {
        let mut policy = RetryPolicy::default();
        for seq in 1..=10 {
            assert!(matches!(policy.next(refused(), seq, 1, 0.5), NextAction::DeadLetter { .. }));
        }
        assert!(matches!(policy.next(refused(), 11, 1, 0.5), NextAction::Wait { alarm: true, .. }));
        policy.next(Delivery::Acknowledged, 11, 1, 0.5);
        assert!(matches!(policy.next(refused(), 12, 1, 0.5), NextAction::DeadLetter { .. }));
    }

    /// Regression: a receiver that refused everything got ten more entries after each restart.
    #[test]
    fn refusals_before_a_restart_are_counted() {
        let mut before = RetryPolicy::default();
        for seq in 1..=7 {
            before.next(refused(), seq, 1, 0.5);
        }
        let mut policy = RetryPolicy::default();
        policy.resume(before.refusals());
        for seq in 8..=10 {
            assert!(matches!(policy.next(refused(), seq, 1, 0.5), NextAction::DeadLetter { .. }));
        }
        assert!(matches!(policy.next(refused(), 11, 1, 0.5), NextAction::Wait { alarm: true, .. }));
    }

    /// A receiver refused every entry and accepted the batches that only named them: one entry after
    /// the other became a dead letter.
    #[test]
    fn batch_of_dead_letters_only_is_not_a_success() {
        let mut policy = RetryPolicy::default();
        for seq in 1..=10 {
            assert!(matches!(policy.next(refused(), seq, 1, 0.5), NextAction::DeadLetter { .. }));
            assert_eq!(policy.next(Delivery::Acknowledged, seq, 0, 0.5), NextAction::Advance);
        }
        assert!(matches!(policy.next(refused(), 11, 1, 0.5), NextAction::Wait { alarm: true, .. }));
    }
}
