//! Entries that an agent had delivered before it began another epoch, and that are not held: a receiver that
//! was restored from a backup has lost them, and no number of the new epoch shows it.

use super::{Catalog, Epoch, Key, Note};
use crate::{
    batch::{Batch, EndedEpoch},
    ledger::{Change, Range},
};

/// End of the epoch before that a batch reports, if its event is stored now.
pub(super) fn new(batch: &Batch, change: &Change) -> Option<Box<EndedEpoch>> {
    let ended = batch.ended()?;
    let is_new = change.new.iter().any(|new| (new.first..=new.last).contains(&ended.seq));
    (is_new || change.filled.contains(&ended.seq)).then(|| Box::new(ended.clone()))
}

impl Catalog {
    /// Returns the numbers of the epoch before `epoch` that its agent had delivered, and that come after
    /// all that are held of it.
    ///
    /// It is a finding about the epoch of the agent that reports it, and about no other: a sender can
    /// name any epoch.
    pub(super) fn gap_before(&self, machine: &str, epoch: &Epoch) -> Option<Range> {
        let ended = epoch.ended.as_ref()?;
        let base = epoch.ledger.begins_at();
        let (first, last) = match self.epochs.get(&(machine.to_owned(), ended.epoch.clone())) {
            // A sink that was ahead of the others continues behind the entries that it had delivered.
            Some(before) => (
                before.ledger.next_seq(),
                ended.delivered.saturating_add(base.map_or(0, |base| base.seq)),
            ),
            // The receiver is new to the agent, or the state of the agent came from another machine.
            None if base.is_some() || self.hostnames.contains_key(&ended.epoch) => return None,
            None => (1, ended.delivered),
        };
        (first <= last).then_some(Range { first, last })
    }

    /// Returns the epoch before, and those of its numbers to log, if a note reports its end.
    pub(in crate::store) fn newly_lost<'a>(
        &self,
        (machine, id): &Key,
        note: &'a Note,
    ) -> Option<(&'a str, Range)> {
        let ended = note.ended.as_ref()?;
        let epoch = self.epochs.get(&(machine.clone(), id.clone()))?;
        Some((&ended.epoch, self.gap_before(machine, epoch)?))
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use siem_protocol::ChainPoint;

    use super::{
        super::tests::{of, record_batch},
        *,
    };
    use crate::{
        fleet::{FleetProblem, StatsQuery},
        stats::{MachineStats, Stats},
        testing::{BatchText, chain},
    };

    /// The start of the epoch `b` after `a`, of which seven entries were delivered.
    fn start(seq: u64) -> BatchText {
        let line = format!(
            r#"{{"seq":{seq},"kind":"event","source":"agent","event":"epoch_started","data":{{"epoch":"b","previous_epoch":"a","reason":"conflict","entries":3,"previous_last_seq":10}}}}"#
        );
        of("b", seq).line(seq, &line).chained()
    }

    fn old(first: u64, last: u64) -> BatchText {
        BatchText::new(first, last).with(|header| header.epoch = "a".into())
    }

    fn stats(catalog: &Catalog) -> Stats {
        catalog.stats(&StatsQuery::all(UNIX_EPOCH), None)
    }

    /// Finding of the epoch `b`. Row and totals must agree with it.
    fn found(catalog: &Catalog) -> Option<(u64, u64)> {
        let stats = stats(catalog);
        let is_new = |machine: &MachineStats| machine.epochs.iter().any(|it| it.epoch == "b");
        let machine = stats.machines.iter().find(|machine| is_new(machine)).unwrap();
        let epoch = machine.epochs.iter().find(|epoch| epoch.epoch == "b").unwrap();
        let of = (&machine.identity.machine_id, &epoch.user);
        let row = stats.rows.iter().find(|row| (&row.machine, &row.user) == of).unwrap();
        let missing = epoch.gap_before.map_or(0, Range::count);
        assert_eq!((row.missing, stats.totals.missing), (missing, missing));
        assert_eq!(row.problems.contains(&FleetProblem::Gap), missing > 0);
        epoch.gap_before.map(|gap| (gap.first, gap.last))
    }

    #[test]
    fn delivered_entries_that_are_not_held_are_missing() {
        let mut catalog = Catalog::default();
        record_batch(&mut catalog, &old(1, 4));
        let note = record_batch(&mut catalog, &start(1));
        assert_eq!(found(&catalog), Some((5, 7)));
        let key = ("m-1".to_owned(), "b".to_owned());
        assert_eq!(catalog.newly_lost(&key, &note), Some(("a", Range { first: 5, last: 7 })));
        let next = record_batch(&mut catalog, &of("b", 2));
        assert_eq!(catalog.newly_lost(&key, &next), None, "it is logged once");
        // A better backup, or a copy of the outbox, brings them.
        record_batch(&mut catalog, &old(5, 6));
        assert_eq!(found(&catalog), Some((7, 7)));
        record_batch(&mut catalog, &old(7, 7));
        assert_eq!(found(&catalog), None);
    }

    #[test]
    fn complete_epoch_has_no_finding_after_retention() {
        let mut catalog = Catalog::default();
        record_batch(&mut catalog, &old(1, 8).dead(&[2, 7, 8]));
        let removed = Note { removed: true, ..Note::default() };
        catalog.record(&("m-1".into(), "a".into()), &removed, 1);
        record_batch(&mut catalog, &start(1));
        assert_eq!(found(&catalog), None);
    }

    #[test]
    fn unknown_epoch_is_missing_as_a_whole() {
        let mut catalog = Catalog::default();
        record_batch(&mut catalog, &start(1));
        assert_eq!(found(&catalog), Some((1, 7)));
    }

    #[test]
    fn sink_that_begins_at_a_base_lacks_nothing() {
        let mut catalog = Catalog::default();
        let base = |header: &mut siem_protocol::BatchHeader| {
            header.base = Some(ChainPoint { seq: 2, hash: chain(2) });
        };
        record_batch(&mut catalog, &start(3).with(base));
        assert_eq!(found(&catalog), None);
        // One that is known had delivered the two entries that it skips.
        record_batch(&mut catalog, &old(1, 4));
        assert_eq!(found(&catalog), Some((5, 9)));
    }

    /// A sink that was added before the epoch, and to which nothing was delivered in the one before.
    #[test]
    fn sink_that_begins_at_base_zero_lacks_nothing() {
        let mut catalog = Catalog::default();
        let base = Some(ChainPoint { seq: 0, hash: chain(0) });
        record_batch(&mut catalog, &start(1).with(|header| header.base = base));
        assert_eq!(found(&catalog), None);
    }

    #[test]
    fn state_of_another_machine_is_no_finding() {
        let mut catalog = Catalog::default();
        record_batch(&mut catalog, &old(1, 4));
        record_batch(&mut catalog, &start(1).with(|header| header.machine_id = "m-2".into()));
        assert_eq!(found(&catalog), None);
    }

    #[test]
    fn epoch_of_another_user_gets_no_finding() {
        let mut catalog = Catalog::default();
        record_batch(&mut catalog, &old(1, 4).with(|header| header.user = "v".into()));
        record_batch(&mut catalog, &start(1));
        assert_eq!(found(&catalog), Some((5, 7)));
        let stats = stats(&catalog);
        let row = stats.rows.iter().find(|row| row.user == "v").unwrap();
        assert_eq!((row.missing, row.problems.contains(&FleetProblem::Gap)), (0, false));
    }

    #[test]
    fn repeated_start_counts_once() {
        let mut catalog = Catalog::default();
        record_batch(&mut catalog, &start(1));
        let batch = Batch::parse(start(1).text().into_bytes(), UNIX_EPOCH).unwrap();
        assert!(batch.ended().is_some());
        assert_eq!(new(&batch, &Change::default()), None);
        let filled = Change { filled: vec![1], ..Change::default() };
        assert!(new(&batch, &filled).is_some(), "a dead letter that is delivered again");
        assert_eq!(found(&catalog), Some((1, 7)));
    }

    /// A user with a right to write to the index can forge a record.
    #[test]
    fn forged_end_of_an_epoch_overflows_no_sum() {
        let base = Some(ChainPoint { seq: 2, hash: chain(2) });
        let start = start(3).with(|header| header.base = base);
        let mut note = record_batch(&mut Catalog::default(), &start);
        note.ended.as_mut().unwrap().delivered = u64::MAX;
        let mut catalog = Catalog::default();
        record_batch(&mut catalog, &old(1, 4));
        catalog.record(&("m-1".into(), "b".into()), &note, 1);
        assert_eq!(found(&catalog), Some((5, u64::MAX)));
    }

    #[test]
    fn stored_notes_in_any_order_give_the_same_finding() {
        let mut catalog = Catalog::default();
        let notes = [old(1, 4), start(1)].map(|text| record_batch(&mut catalog, &text));
        let mut again = Catalog::default();
        for (epoch, note) in ["b", "a"].into_iter().zip(notes.iter().rev()) {
            let note = serde_json::from_slice(&note.line()).unwrap();
            again.record(&("m-1".into(), epoch.into()), &note, 1);
        }
        again.order_lineages();
        assert_eq!(found(&again), Some((5, 7)));
    }
}
