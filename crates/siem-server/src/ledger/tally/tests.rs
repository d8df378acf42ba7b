use proptest::prelude::*;
use siem_protocol::ChainPoint;

use super::*;
use crate::{
    ledger::{Change, Ledger, Range, tests::Store},
    testing::Outbox,
};

fn compared(store: &Store) -> Comparison {
    store.ledger.comparison().unwrap()
}

/// Two records, a part, an event and a heartbeat, repeated `times` times: the heartbeats are 5, 10,
/// …
fn outbox(times: u64) -> Outbox {
    let mut outbox = Outbox::new("e-1");
    for round in 0..times {
        let at = round * 100;
        outbox.record("g", at, 40).record("g", at + 41, 50).part("h", at, 1).event().heartbeat();
    }
    outbox
}

#[test]
fn correct_claims_show_no_difference() {
    let outbox = outbox(3);
    let mut store = Store::default();
    store.take_ok(&outbox.batch(1, 4));
    assert_eq!(store.ledger.comparison(), None);
    store.take_ok(&outbox.batch(5, 13));
    let counts = Counts { records: 4, record_bytes: 180, parts: 2, part_bytes: 12, events: 3 };
    let found = compared(&store);
    assert_eq!((found.from, found.below, found.missing), (1, 10, 0));
    assert_eq!((found.claimed, found.held), (counts, counts));
    assert_eq!((found.difference, found.not_compared.entries()), (Difference::None, 4));
    // A resend with other borders changes nothing.
    store.take_ok(&outbox.batch(2, 13));
    assert_eq!(compared(&store), found);
}

#[test]
fn wrong_figure_is_named_when_nothing_is_missing() {
    let mut outbox = Outbox::new("e-1");
    outbox.record("g", 0, 40).event().heartbeat_of(41).heartbeat();
    let mut store = Store::default();
    store.take_ok(&outbox.batch(1, 3));
    let found = compared(&store);
    assert_eq!(found.difference, Difference::Unexplained);
    assert_eq!(found.wrong, [Figure::RecordBytes]);
    // Totals are cumulative: a later correct claim resolves the difference.
    store.take_ok(&outbox.batch(4, 4));
    assert_eq!(compared(&store).difference, Difference::None);
}

/// Sums of bytes stay at the maximum: compared with one of before, they looked like bytes too many.
#[test]
fn sum_that_has_reached_the_maximum_is_not_compared() {
    let counts = |record_bytes| Counts { records: 3, record_bytes, ..Counts::default() };
    let base = Counts { record_bytes: 1 << 63, ..Counts::default() };
    let wrong = |bytes| wrong(&counts(bytes), &base, &counts(bytes), 0);
    assert_eq!(wrong(u64::MAX), []);
    assert_eq!(wrong(u64::MAX - 1), [Figure::RecordBytes]);
}

#[test]
fn gaps_explain_exactly_their_number_of_entries() {
    let outbox = outbox(3);
    let mut store = Store::default();
    store.take_ok(&outbox.batch(1, 3).dead(&[2]));
    store.take_ok(&outbox.batch(7, 12));
    let found = compared(&store);
    assert_eq!((found.below, found.missing), (10, 4));
    assert_eq!((found.difference, found.wrong.len()), (Difference::Missing, 0));
    store.take_ok(&outbox.batch(4, 6));
    assert_eq!((compared(&store).missing, compared(&store).difference), (1, Difference::Missing));
    store.take_ok(&outbox.redelivery(&[2]));
    assert_eq!((compared(&store).missing, compared(&store).difference), (0, Difference::None));
}

/// A hole accounts for one entry, not for bytes of entries that are all there.
#[test]
fn missing_event_does_not_explain_bytes() {
    let mut outbox = Outbox::new("e-1");
    outbox.record("g", 0, 40).event().heartbeat_of(41);
    let mut store = Store::default();
    store.take_ok(&outbox.batch(1, 3).dead(&[2]));
    assert_eq!(compared(&store).missing, 1);
    assert_eq!(compared(&store).wrong, [Figure::RecordBytes]);
}

#[test]
fn late_claim_is_ignored() {
    let outbox = outbox(3);
    let mut store = Store::default();
    store.take_ok(&outbox.batch(7, 9));
    store.take_ok(&outbox.batch(1, 6));
    assert_eq!(store.ledger.comparison(), None);
    store.take_ok(&outbox.batch(10, 10));
    assert_eq!((compared(&store).below, compared(&store).difference), (10, Difference::None));
}

#[test]
fn first_claim_is_baseline_after_carried_over_entries() {
    let mut outbox = Outbox::new("e-1");
    outbox.carried_over().carried_over().record("g", 0, 10).heartbeat().record("g", 11, 7);
    outbox.heartbeat().event().heartbeat();
    let mut store = Store::default();
    store.take_ok(&outbox.batch(1, 4));
    let found = compared(&store);
    assert_eq!((found.from, found.below, found.held.entries()), (4, 4, 0));
    assert_eq!(found.difference, Difference::None);
    store.take_ok(&outbox.batch(5, 8));
    let found = compared(&store);
    assert_eq!((found.from, found.below, found.held.record_bytes), (4, 8, 7));
    assert_eq!((found.claimed, found.difference), (found.held, Difference::None));
}

#[test]
fn first_claim_is_baseline_after_a_base() {
    let outbox = outbox(3);
    let mut store = Store::default();
    let base = ChainPoint { seq: 2, hash: outbox.batch(3, 3).header.chain.unwrap().before };
    // All three in one batch: the first is the baseline, the last is compared.
    store.take_ok(&outbox.batch(3, 15).with(|header| header.base = Some(base)));
    let found = compared(&store);
    assert_eq!((found.from, found.below, found.difference), (5, 15, Difference::None));
    assert_eq!(
        found.held,
        Counts { records: 4, record_bytes: 180, parts: 2, part_bytes: 12, events: 4 }
    );
}

#[test]
fn counts_reset_after_lost_or_uncounted_entries() {
    let outbox = outbox(4);
    for lose in [true, false] {
        let mut store = Store::default();
        store.take_ok(&outbox.batch(1, 6));
        let change = match lose {
            true => Change { lost: vec![Range { first: 2, last: 3 }], ..Change::default() },
            false => {
                let new = vec![Range { first: 7, last: 7 }];
                Change { accepted: 1, new, ..Change::default() }
            }
        };
        store.ledger.apply(&change);
        assert_eq!(store.ledger.comparison(), None, "{lose}");
        let claims = [Claim { seq: 10, ..Claim::default() }, Claim { seq: 15, ..Claim::default() }];
        for claim in claims {
            let tally = TallyChange {
                claims: vec![Claimed { claim, behind: Counts::default() }],
                ..TallyChange::default()
            };
            let new = vec![Range { first: claim.seq - 4, last: claim.seq }];
            let change = Change { accepted: 5, tally: Some(tally), new, ..Change::default() };
            store.ledger.apply(&Change { new: Vec::new(), ..change });
        }
        assert_eq!((compared(&store).from, compared(&store).below), (10, 15), "{lose}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Batch { first: u64, more: u64, dead: Vec<u64> },
    Again(Vec<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    let seqs = || prop::collection::vec(1u64..=40, 0..4);
    prop_oneof![
        4 => (1u64..=40, 0u64..15, seqs())
            .prop_map(|(first, more, dead)| Step::Batch { first, more, dead }),
        1 => seqs().prop_map(Step::Again),
    ]
}

proptest! {
    /// For any steps in any order: a claim of an honest agent is never unexplained, the counts are
    /// those of the stored entries, and the stored changes rebuild the counts.
    #[test]
    fn honest_agent_is_never_contradicted(steps in prop::collection::vec(step(), 0..25)) {
        let outbox = outbox(8);
        let mut store = Store::default();
        let mut changes = Vec::new();
        for step in steps {
            let text = match step {
                Step::Batch { first, more, mut dead } => {
                    let last = (first + more).min(40);
                    dead.retain(|seq| (first..=last).contains(seq));
                    outbox.batch(first, last).dead(&dead)
                }
                Step::Again(mut seqs) => {
                    seqs.sort_unstable();
                    seqs.dedup();
                    if seqs.is_empty() { continue }
                    outbox.redelivery(&seqs)
                }
            };
            changes.push(serde_json::to_vec(&store.take_ok(&text)).unwrap());
            let Some(found) = store.ledger.comparison() else { continue };
            let below = store.stored.iter().filter(|seq| **seq < found.below).count() as u64;
            prop_assert_eq!(found.held.entries(), below);
            prop_assert_eq!(found.not_compared.entries(), store.stored.len() as u64 - below);
            prop_assert_eq!(found.missing, found.below - 1 - below);
            let expected =
                if found.missing == 0 { Difference::None } else { Difference::Missing };
            prop_assert_eq!(found.difference, expected);
        }
        let mut again = Ledger::default();
        for change in changes {
            again.apply(&serde_json::from_slice(&change).unwrap());
        }
        prop_assert_eq!(again, store.ledger);
    }
}
