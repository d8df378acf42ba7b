use std::time::UNIX_EPOCH;

use proptest::prelude::*;
use siem_protocol::Chain;

use super::*;
use crate::testing::{BatchText, chain, line};

/// A ledger with its values and stored changes.
#[derive(Default)]
pub(super) struct Store {
    pub(super) ledger: Ledger,
    values: Vec<Digest>,
    pub(super) stored: Vec<u64>,
}

impl Store {
    pub(super) fn take(
        &mut self,
        text: &BatchText,
    ) -> Result<Plan, Refusal<std::convert::Infallible>> {
        let batch = Batch::parse(text.text().into_bytes(), UNIX_EPOCH).unwrap();
        let plan = self.ledger.plan(&batch, &mut self.values.as_slice())?;
        for new in &plan.change.new {
            self.values.extend(batch.chain(new.first, new.last));
        }
        self.stored.extend(plan.store.iter().map(|index| batch.lines()[*index].seq));
        self.ledger.apply(&plan.change);
        assert_eq!(self.ledger.values(), self.values.len() as u64);
        Ok(plan)
    }

    pub(super) fn take_ok(&mut self, text: &BatchText) -> Change {
        self.take(text).unwrap().change
    }
}

fn range(first: u64, last: u64) -> Range {
    Range { first, last }
}

#[test]
fn resend_with_any_borders_is_a_duplicate() {
    let mut store = Store::default();
    store.take_ok(&BatchText::new(1, 5));
    let again = store.take_ok(&BatchText::new(1, 5));
    assert_eq!((again.accepted, again.duplicates), (0, 5));
    let across = store.take_ok(&BatchText::new(3, 8));
    assert_eq!((across.accepted, across.duplicates), (3, 3));
    assert_eq!(store.stored, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(store.ledger.breaks(), []);
}

#[test]
fn late_batch_fills_a_gap() {
    let mut store = Store::default();
    store.take_ok(&BatchText::new(1, 3));
    let jump = store.take_ok(&BatchText::new(7, 9));
    assert_eq!(jump.gap, Some(range(4, 6)));
    assert_eq!(store.ledger.gaps(), [range(4, 6)]);
    let late = store.take_ok(&BatchText::new(2, 8));
    assert_eq!((late.accepted, late.duplicates), (3, 4));
    assert_eq!(store.ledger.gaps(), []);
    assert_eq!(store.ledger.breaks(), []);
    assert!(store.ledger.claims.is_empty());
}

#[test]
fn epoch_that_starts_above_one_has_a_gap() {
    let mut store = Store::default();
    let change = store.take_ok(&BatchText::new(3, 4));
    assert_eq!(change.gap, Some(range(1, 2)));
    assert_eq!(store.ledger.gaps(), [range(1, 2)]);
}

#[test]
fn base_is_used_once() {
    let base = |seq| Some(ChainPoint { seq, hash: chain(seq) });
    let mut store = Store::default();
    let first = BatchText::new(11, 12).with(|header| header.base = base(10));
    assert_eq!(store.take_ok(&first).begins_at, base(10));
    assert_eq!(store.ledger.gaps(), []);
    assert_eq!(store.ledger.breaks(), []);
    let again = BatchText::new(14, 15).with(|header| header.base = base(13));
    assert_eq!(store.take_ok(&again).begins_at, None);
    assert_eq!(store.ledger.begins_at(), base(10));
    assert_eq!(store.ledger.gaps(), [range(13, 13)]);
}

#[test]
fn base_that_differs_from_its_batch_is_a_break() {
    let base = ChainPoint { seq: 10, hash: Digest::of(b"other") };
    let mut store = Store::default();
    store.take_ok(&BatchText::new(11, 12).with(|header| header.base = Some(base)));
    assert_eq!(store.ledger.breaks().len(), 1);
}

#[test]
fn other_chain_value_of_a_held_number_is_a_conflict() {
    let mut store = Store::default();
    store.take_ok(&BatchText::new(1, 5));
    let other = BatchText::new(5, 6).line(5, r#"{"seq":5,"kind":"event","other":1}"#);
    let refused = store.take(&other).unwrap_err();
    assert!(matches!(refused, Refusal::Conflict { expected_seq: 6 }));
    assert_eq!(store.stored.len(), 5);
}

#[test]
fn chain_mismatch_is_stored_as_a_break() {
    let other = Digest::of(b"other");
    let mut store = Store::default();
    store.take_ok(&BatchText::new(1, 5));
    let broken = BatchText::new(6, 7)
        .with(|header| header.chain = Some(Chain { before: other, after: other }));
    store.take_ok(&broken);
    let kinds: Vec<_> = store.ledger.breaks().iter().map(|it| (it.seq, it.kind)).collect();
    assert_eq!(kinds, [(6, BreakKind::Before), (7, BreakKind::After)]);
    assert_eq!(store.stored, [1, 2, 3, 4, 5, 6, 7]);
    let again = store.take_ok(&broken);
    assert_eq!((again.accepted, again.duplicates), (0, 2));
}

#[test]
fn late_batch_that_does_not_join_is_a_break() {
    let mut store = Store::default();
    store.take_ok(&BatchText::new(1, 3));
    store.take_ok(&BatchText::new(6, 8));
    let late = BatchText::new(4, 5).line(5, r#"{"seq":5,"kind":"event","other":1}"#);
    let late = late.with(|header| {
        let after = chain(4).chain(Digest::of(br#"{"seq":5,"kind":"event","other":1}"#));
        header.chain = Some(Chain { before: chain(3), after });
    });
    store.take_ok(&late);
    let kinds: Vec<_> = store.ledger.breaks().iter().map(|it| (it.seq, it.kind)).collect();
    assert_eq!(kinds, [(6, BreakKind::Join)]);
}

#[test]
fn redelivery_fills_holes_of_dead_letters() {
    let mut store = Store::default();
    store.take_ok(&BatchText::new(1, 6).dead(&[2, 5]));
    assert_eq!(store.ledger.holes().map(|hole| hole.seq).collect::<Vec<_>>(), [2, 5]);
    assert_eq!((store.ledger.held(), store.ledger.gaps()), (4, vec![]));
    let plan = store.take(&BatchText::redelivery(&[5, 3, 9])).unwrap();
    assert_eq!(plan.accepted_seqs, Some(vec![5, 3]));
    assert_eq!((plan.change.accepted, plan.change.duplicates), (1, 1));
    let plan = store.take(&BatchText::redelivery(&[5])).unwrap();
    assert_eq!((plan.accepted_seqs, plan.change.duplicates), (Some(vec![5]), 1));
    assert_eq!(store.stored, [1, 3, 4, 6, 5]);
}

#[test]
fn redelivery_with_other_hash_is_rejected() {
    let mut store = Store::default();
    store.take_ok(&BatchText::new(1, 3).dead(&[2]));
    let other = BatchText::redelivery(&[2, 3]);
    let other = other.line(2, r#"{"seq":2,"kind":"event","x":1}"#);
    let other = other.line(3, r#"{"seq":3,"kind":"event","x":1}"#);
    let plan = store.take(&other).unwrap();
    assert_eq!(plan.accepted_seqs, Some(vec![]));
    assert_eq!((plan.store.len(), plan.change), (0, Change::default()));
}

#[test]
fn line_in_a_batch_fills_its_hole() {
    let mut store = Store::default();
    store.take_ok(&BatchText::new(1, 3).dead(&[2]));
    let change = store.take_ok(&BatchText::new(1, 4));
    assert_eq!((change.accepted, change.duplicates, change.filled), (2, 2, vec![2]));
    let dead_again = store.take_ok(&BatchText::new(1, 4).dead(&[2]));
    assert_eq!((dead_again.accepted, dead_again.duplicates), (0, 3));
    assert_eq!(store.ledger.held(), 4);
}

#[test]
fn stored_changes_rebuild_the_ledger() {
    let mut store = Store::default();
    let other = Digest::of(b"other");
    let batches = [
        BatchText::new(4, 9).dead(&[5, 7]),
        BatchText::new(1, 4),
        BatchText::redelivery(&[7]),
        BatchText::new(20, 22),
        BatchText::new(10, 11)
            .with(|header| header.chain = Some(Chain { before: other, after: other })),
    ];
    let mut again = Ledger::default();
    for batch in &batches {
        let change = store.take_ok(batch);
        let text = serde_json::to_string(&change).unwrap();
        again.apply(&serde_json::from_str(&text).unwrap());
    }
    assert_eq!(again, store.ledger);
}

#[test]
fn lost_numbers_are_a_gap_that_can_be_filled() {
    let mut store = Store::default();
    store.take_ok(&BatchText::new(1, 9).dead(&[4]));
    let claims = vec![ChainPoint { seq: 6, hash: chain(6) }];
    store.ledger.apply(&Change { lost: vec![range(3, 6)], claims, ..Change::default() });
    store.stored.retain(|seq| !(3..=6).contains(seq));
    assert_eq!(store.ledger.gaps(), [range(3, 6)]);
    let change = store.take_ok(&BatchText::new(1, 9));
    assert_eq!((change.accepted, change.duplicates), (4, 5));
    assert_eq!(store.ledger.breaks(), []);
}

proptest! {
    /// For any borders, order and repetition of batches, each line is stored once, and missing
    /// lines are reported.
    #[test]
    fn each_number_is_stored_once(
        batches in prop::collection::vec((1u64..40, 0u64..10, prop::collection::vec(1u64..50, 0..3), any::<bool>()), 1..25)
    ) {
        let mut store = Store::default();
        let mut sent = std::collections::BTreeSet::new();
        let mut seen = std::collections::BTreeSet::new();
        for (first, more, dead, again) in batches {
            if again && !dead.is_empty() {
                let distinct: std::collections::BTreeSet<_> = dead.iter().copied().collect();
                let seqs: Vec<_> = distinct.into_iter().collect();
                let plan = store.take(&BatchText::redelivery(&seqs)).unwrap();
                let expected: Vec<_> = seqs.into_iter().filter(|seq| seen.contains(seq)).collect();
                sent.extend(&expected);
                prop_assert_eq!(plan.accepted_seqs, Some(expected));
                continue;
            }
            let text = BatchText::new(first, first + more).dead(&dead);
            seen.extend(first..=first + more);
            sent.extend((first..=first + more).filter(|seq| !dead.contains(seq)));
            store.take(&text).unwrap();
        }
        prop_assert_eq!(store.ledger.breaks(), &[]);
        let mut stored = store.stored.clone();
        stored.sort_unstable();
        prop_assert_eq!(&stored, &sent.iter().copied().collect::<Vec<_>>());
        prop_assert_eq!(store.ledger.held(), sent.len() as u64);
        let holes: Vec<_> = store.ledger.holes().map(|hole| hole.seq).collect();
        prop_assert_eq!(holes, seen.difference(&sent).copied().collect::<Vec<_>>());
        let covered: Vec<_> = store.ledger.covered().into_iter().flat_map(|r| r.first..=r.last).collect();
        prop_assert_eq!(&covered, &seen.iter().copied().collect::<Vec<_>>());
        let gaps: usize = store.ledger.gaps().iter().map(|r| r.count() as usize).sum();
        prop_assert_eq!(gaps as u64 + seen.len() as u64, store.ledger.next_seq() - 1);
        for seq in seen {
            prop_assert_eq!(store.values[store.ledger.place(seq).unwrap() as usize], chain(seq));
        }
        prop_assert!(!line(1).is_empty());
    }
}
