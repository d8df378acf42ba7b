use super::*;
use crate::stages::sink::Rest;

/// Decides about a batch of `lines` entries that ends with `last_seq`.
fn next(
    policy: &mut RetryPolicy,
    delivery: Delivery,
    last_seq: u64,
    lines: u64,
    jitter: f64,
) -> NextAction {
    let first = (last_seq + 1).saturating_sub(lines);
    let numbers = BatchNumbers { seqs: (first..first + lines).collect(), last_seq };
    policy.next(delivery, &numbers, jitter)
}

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
    let hold_for = Delivery::Hold { after: Some(Duration::from_secs(9)), reason: "portal".into() };
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
        assert_eq!(next(&mut RetryPolicy::default(), delivery, 10, lines, 1.0), expected, "{what}");
    }
}

#[test]
fn waits_double_up_to_a_cap_until_a_success() {
    let mut policy = RetryPolicy::default();
    let waits: Vec<u64> = (0..12)
        .map(|_| delay(next(&mut policy, retry(None), 1, 1, 1.0)).as_millis() as u64)
        .collect();
    assert_eq!(waits[..4], [500, 1000, 2000, 4000]);
    assert_eq!(waits[11], 300_000);
    assert_eq!(next(&mut policy, Delivery::Acknowledged, 1, 1, 1.0), NextAction::Advance);
    assert_eq!(delay(next(&mut policy, retry(None), 1, 1, 1.0)).as_millis(), 500);
    assert_eq!(delay(next(&mut policy, retry(None), 1, 1, 0.0)).as_millis(), 0);
}

#[test]
fn wait_does_not_overflow() {
    let mut policy = RetryPolicy { failures: u32::MAX, ..RetryPolicy::default() };
    assert_eq!(delay(next(&mut policy, retry(None), 1, 1, 1.0)), CAP);
}

#[test]
fn requested_wait_has_precedence() {
    let next = next(&mut RetryPolicy::default(), retry(Some(7)), 1, 1, 0.5);
    assert_eq!(delay(next), Duration::from_secs(7));
}

#[test]
fn only_a_hold_raises_an_alarm() {
    let mut policy = RetryPolicy::default();
    let alarm = |next| matches!(next, NextAction::Wait { alarm: true, .. });
    assert!(!alarm(next(&mut policy, retry(None), 1, 1, 0.5)));
    let hold = Delivery::Hold { after: None, reason: "401".into() };
    assert!(alarm(next(&mut policy, hold, 1, 1, 0.5)));
    assert!(alarm(policy.hold("too soon".into(), 0.5)));
    assert_eq!(
        next(&mut policy, Delivery::Conflict { expected: Some(3) }, 1, 1, 0.5),
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
        match next(&mut policy, delivery, last, lines, 0.5) {
            NextAction::Advance => acknowledged = last,
            NextAction::Again => {}
            NextAction::DeadLetter { .. } => dead_letters.push(last),
            next => panic!("{next:?}"),
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
        match next(&mut policy, delivery, last, lines, 0.5) {
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
        match next(&mut policy, delivery, last, lines, 0.5) {
            NextAction::Advance => (acknowledged, largest) = (last, largest.max(lines)),
            NextAction::Wait { alarm: false, .. } => slow_ones += 1,
            next => panic!("{next:?}"),
        }
    }
    assert_eq!(largest, 62);
    assert!(slow_ones <= 4 + 20_000 / 62 / 16, "{slow_ones}");
    // A single entry cannot be halved; once the network is fast again, batches grow.
    for _ in 0..20 {
        let lines = policy.border(0).unwrap_or(1000);
        next(&mut policy, slow(), acknowledged, lines, 0.5);
    }
    assert_eq!(policy.border(0), Some(1));
    for _ in 0..14 * SLOW_TRIAL {
        next(&mut policy, Delivery::Acknowledged, acknowledged, 1, 0.5);
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
            let next = next(&mut policy, slow_after(waited), 8, 1, 0.5);
            // Raises an alarm once more time does not help; the entry is never dropped.
            let alarmed = *expected == waited;
            assert!(matches!(next, NextAction::Wait { alarm, .. } if alarm == alarmed), "{next:?}");
            assert_eq!(of(&policy), Some(*expected), "{timeout}");
            assert_eq!(policy.border(7), Some(8), "it is sent alone");
            waited = timeout.max(*expected);
        }
        // Another failure does not reset the time, a success does.
        next(&mut policy, retry(None), 8, 1, 0.5);
        assert_eq!(of(&policy), Some(waited));
        assert_eq!(next(&mut policy, Delivery::Acknowledged, 8, 1, 0.5), NextAction::Advance);
        assert_eq!(of(&policy), None);
        assert_eq!(policy.refusals(), 0);
    }
    let mut policy = RetryPolicy::default();
    next(&mut policy, slow(), 8, 2, 0.5);
    assert_eq!(of(&policy), None, "the batch can be halved");
}

#[test]
fn failure_for_an_hour_causes_few_requests() {
    for delivery in [hold, || retry(None)] {
        let (mut policy, mut waited, mut requests) = (RetryPolicy::default(), Duration::ZERO, 0);
        while waited < Duration::from_secs(3600) {
            waited += delay(next(&mut policy, delivery(), 1, 1, 0.5));
            requests += 1;
        }
        assert!(requests < 50, "{requests}");
    }
}

#[test]
fn eleventh_refusal_in_a_row_holds_delivery() {
    let mut policy = RetryPolicy::default();
    for seq in 1..=10 {
        assert!(matches!(next(&mut policy, refused(), seq, 1, 0.5), NextAction::DeadLetter { .. }));
    }
    assert!(matches!(
        next(&mut policy, refused(), 11, 1, 0.5),
        NextAction::Wait { alarm: true, .. }
    ));
    next(&mut policy, Delivery::Acknowledged, 11, 1, 0.5);
    assert!(matches!(next(&mut policy, refused(), 12, 1, 0.5), NextAction::DeadLetter { .. }));
}

/// Regression: a receiver that refused everything got ten more entries after each restart.
#[test]
fn refusals_before_a_restart_are_counted() {
    let mut before = RetryPolicy::default();
    for seq in 1..=7 {
        next(&mut before, refused(), seq, 1, 0.5);
    }
    let mut policy = RetryPolicy::default();
    policy.resume(before.refusals());
    for seq in 8..=10 {
        assert!(matches!(next(&mut policy, refused(), seq, 1, 0.5), NextAction::DeadLetter { .. }));
    }
    assert!(matches!(
        next(&mut policy, refused(), 11, 1, 0.5),
        NextAction::Wait { alarm: true, .. }
    ));
}

/// A receiver refused every entry and accepted the batches that only named them: one entry after
/// the other became a dead letter.
#[test]
fn batch_of_dead_letters_only_is_not_a_success() {
    let mut policy = RetryPolicy::default();
    for seq in 1..=10 {
        assert!(matches!(next(&mut policy, refused(), seq, 1, 0.5), NextAction::DeadLetter { .. }));
        assert_eq!(next(&mut policy, Delivery::Acknowledged, seq, 0, 0.5), NextAction::Advance);
    }
    assert!(matches!(
        next(&mut policy, refused(), 11, 1, 0.5),
        NextAction::Wait { alarm: true, .. }
    ));
}

fn accepted() -> EntryResult {
    EntryResult::Accepted
}

fn undecided() -> EntryResult {
    EntryResult::Undecided
}

fn refused_entry() -> EntryResult {
    EntryResult::Refused { status: 400, answer: "bad".into() }
}

/// The table in the documentation of delivery for receivers that decide about entries.
#[test]
fn each_rest_of_a_batch_has_its_action() {
    let wait = |alarm, reason: &str| NextAction::Wait {
        delay: Duration::from_millis(500),
        alarm,
        reason: reason.to_owned(),
    };
    let recheck = Duration::from_secs(9);
    let busy = || Rest::Retry { after: None, reason: "busy".into() };
    let slow = || Rest::Slow { waited: recheck, reason: "slow".into() };
    let hold = || Rest::Hold { after: None, reason: "token".into() };
    let refused = |status| Rest::Refused { status, answer: "no".into() };
    let three = || vec![accepted(), undecided(), undecided()];
    let two = || vec![accepted(), undecided()];
    let none = || vec![undecided(), undecided()];
    let all = || vec![accepted(), refused_entry()];
    let nothing = "the receiver processed no entry";
    let rows = [
        ("everything decided", all(), busy(), NextAction::Again),
        ("not processed", three(), Rest::Unprocessed, NextAction::Again),
        ("nothing processed", none(), Rest::Unprocessed, wait(false, nothing)),
        (
            "in transit",
            three(),
            Rest::InTransit { recheck },
            NextAction::Recheck { after: recheck },
        ),
        ("busy", three(), busy(), wait(false, "busy")),
        ("slow", three(), slow(), wait(false, "slow")),
        ("slow for one", two(), slow(), wait(false, "slow; the next attempt has 18s")),
        ("held", three(), hold(), wait(true, "token")),
        ("rest refused", three(), refused(422), NextAction::Again),
        ("rest too large", three(), refused(413), NextAction::Again),
    ];
    for (what, entries, rest, then) in rows {
        let delivery = Delivery::PerEntry { entries: entries.clone(), rest };
        let count = entries.len() as u64;
        let expected = NextAction::Decide { entries, then: Box::new(then) };
        let mut policy = RetryPolicy::default();
        assert_eq!(next(&mut policy, delivery, 10, count, 1.0), expected, "{what}");
    }
}

#[test]
fn last_undecided_entry_that_is_refused_is_a_dead_letter() {
    for status in [413, 422] {
        let rest = Rest::Refused { status, answer: "no".into() };
        let delivery = Delivery::PerEntry { entries: vec![accepted(), undecided()], rest };
        let next = next(&mut RetryPolicy::default(), delivery, 10, 2, 1.0);
        let NextAction::Decide { entries, then } = next else { panic!("{next:?}") };
        let dead = EntryResult::Refused { status, answer: "no".into() };
        assert_eq!((entries, *then), (vec![accepted(), dead], NextAction::Again));
    }
}

#[test]
fn refused_rest_is_halved_up_to_its_last_entry() {
    let entries = vec![undecided(), undecided(), accepted(), undecided(), accepted()];
    let rest = Rest::Refused { status: 422, answer: "no".into() };
    let mut policy = RetryPolicy::default();
    next(&mut policy, Delivery::PerEntry { entries, rest }, 10, 5, 1.0);
    assert_eq!(policy.border(5), Some(7), "half of 6 to 9");
}

#[test]
fn refusals_are_counted_in_the_order_of_the_entries() {
    let mut policy = RetryPolicy::default();
    policy.resume(8);
    let mut entries = vec![refused_entry(), accepted()];
    entries.extend(vec![refused_entry(); 12]);
    entries.push(accepted());
    let delivery = Delivery::PerEntry { entries, rest: Rest::Unprocessed };
    let next = next(&mut policy, delivery, 15, 15, 1.0);
    let NextAction::Decide { entries, then } = next else { panic!("{next:?}") };
    assert_eq!(entries.iter().filter(|entry| **entry == refused_entry()).count(), 11);
    assert_eq!(entries[12..], [undecided(), undecided(), accepted()]);
    let NextAction::Wait { alarm, reason, .. } = *then else { panic!() };
    assert!(alarm && reason.starts_with("the receiver refuses every entry with 400 (bad): "));
    assert_eq!(policy.refusals(), 0, "the receiver accepts others: the next ones follow");
}

#[test]
fn progress_resets_the_backoff() {
    let busy = |entry: EntryResult| Delivery::PerEntry {
        entries: vec![entry, undecided()],
        rest: Rest::Retry { after: None, reason: "busy".into() },
    };
    let delay_of = |next| {
        let NextAction::Decide { then, .. } = next else { panic!("{next:?}") };
        delay(*then).as_millis()
    };
    let mut policy = RetryPolicy::default();
    assert_eq!(delay_of(next(&mut policy, busy(undecided()), 2, 2, 1.0)), 500);
    assert_eq!(delay_of(next(&mut policy, busy(undecided()), 2, 2, 1.0)), 1000);
    assert_eq!(delay_of(next(&mut policy, busy(accepted()), 2, 2, 1.0)), 500);
}

#[test]
fn unidentified_refusals_are_reported_and_the_batch_is_done() {
    let delivery = |refused| Delivery::Unidentified { refused, answer: "2 bad".into() };
    let reported = |refused| NextAction::ReportAndAdvance { refused, answer: "2 bad".into() };
    let mut policy = RetryPolicy::default();
    policy.resume(9);
    assert_eq!(next(&mut policy, delivery(2), 10, 5, 1.0), reported(2));
    assert_eq!(policy.refusals(), 0);
    assert_eq!(next(&mut policy, delivery(7), 10, 5, 1.0), reported(5));
}
