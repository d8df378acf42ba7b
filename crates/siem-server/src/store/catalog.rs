//! Catalog of the stored epochs: ledger, sender and signs of clones of each.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use siem_protocol::{BatchHeader, Digest, Receipt};

use super::{
    epoch::Stem,
    frame::FilePositions,
    names,
    note::{Note, Sender},
    repeats::{OtherEpoch, RepeatedLines},
};
use crate::{
    batch::Batch,
    clock,
    ledger::{ChainValues, Change, Comparison, Difference, Ledger, Range, Refusal},
    stats::{CloneKind, CloneReport, EpochStats, MachineStats, Stats},
};

/// Id of a machine and of an epoch.
pub(super) type Key = (String, String);

/// State of an epoch.
#[derive(Debug)]
struct Epoch {
    ledger: Ledger,
    sender: Sender,
    first_seen: String,
    last_seen: String,
    /// Time of its last new numbers.
    grew_at: String,
    lines_end: u64,
    notes_end: u64,
    conflicts: u64,
    repetitions: u64,
    /// Set after an unexplained difference between claims and entries was logged.
    warned: bool,
    /// Last value of the chain, if one arrived since the start.
    last: Option<Digest>,
}

/// Epochs of a machine's user.
#[derive(Debug, Default)]
struct Lineage {
    current: String,
    past: BTreeSet<String>,
}

/// All epochs of all machines.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    epochs: BTreeMap<Key, Epoch>,
    /// By machine and user.
    lineages: HashMap<(String, String), Lineage>,
    /// Hostname of the last batch of each epoch, regardless of the machine.
    hostnames: HashMap<String, String>,
    /// By machine.
    clones: BTreeMap<String, Vec<CloneReport>>,
}

/// A batch with its planned changes.
#[derive(Debug)]
pub(super) struct PlannedBatch {
    /// Note to write.
    pub(super) note: Note,
    /// Positions of its parts.
    pub(super) place: FilePositions,
    /// Indexes of the lines to store.
    pub(super) store: Vec<usize>,
    /// Response, once all is durable.
    pub(super) receipt: Receipt,
}

/// Values of the chain, with the last one cached.
struct CachedLast<'a, V> {
    /// Position and value.
    last: Option<(u64, Digest)>,
    values: &'a mut V,
}

impl<V: ChainValues> ChainValues for CachedLast<'_, V> {
    type Error = V::Error;

    fn read(&mut self, at: u64, count: u64) -> Result<Vec<Digest>, V::Error> {
        match self.last {
            Some((place, value)) if place == at && count == 1 => Ok(vec![value]),
            _ => self.values.read(at, count),
        }
    }
}

/// Key of the epoch of a batch.
pub(super) fn key(header: &BatchHeader) -> Key {
    (header.machine_id.clone(), header.epoch.clone())
}

/// Files of an epoch.
pub(super) fn stem((machine, epoch): &Key) -> Stem {
    Stem { machine: names::safe(machine), epoch: names::safe(epoch) }
}

impl Catalog {
    /// Plans a batch, without changing the catalog.
    pub(super) fn plan<V: ChainValues>(
        &self,
        batch: &Batch,
        values: &mut V,
    ) -> Result<PlannedBatch, Refusal<V::Error>> {
        let key = key(&batch.header);
        let unknown = Ledger::default();
        let ledger = self.epochs.get(&key).map_or(&unknown, |epoch| &epoch.ledger);
        let last = self.epochs.get(&key).and_then(|epoch| epoch.last);
        let last = last.map(|value| (ledger.values() - 1, value));
        let plan = ledger.plan(batch, &mut CachedLast { last, values })?;
        let receipt = Receipt {
            last_seq: batch.covers().map(|(_, last)| last),
            accepted: plan.change.accepted,
            duplicates: plan.change.duplicates,
            accepted_seqs: plan.accepted_seqs,
            receipt: None,
            enroll: false,
        };
        let (place, lines_at) = self.positions(&key);
        let lengths = plan.store.iter().map(|index| batch.lines()[*index].range.len() as u64 + 1);
        let at = clock::text(batch.received_at);
        let note = Note {
            lines_at,
            bytes: lengths.sum(),
            sender: self.changed_sender(&batch.header, &key),
            clones: self.clones_seen(&batch.header, &at),
            at,
            repeated: Vec::new(),
            conflicts: 0,
            change: plan.change,
        };
        Ok(PlannedBatch { note, place, store: plan.store, receipt })
    }

    /// Returns the note about a batch that was refused with a conflict. Its sender does not replace
    /// the epoch's, but is compared with it.
    pub(super) fn conflict(&self, batch: &Batch) -> (Note, FilePositions) {
        let (place, lines_at) = self.positions(&key(&batch.header));
        let at = clock::text(batch.received_at);
        let note = Note {
            lines_at,
            bytes: 0,
            sender: None,
            clones: self.clones_seen(&batch.header, &at),
            at,
            repeated: Vec::new(),
            conflicts: 1,
            change: Change::default(),
        };
        (note, place)
    }

    fn positions(&self, key: &Key) -> (FilePositions, u64) {
        let Stem { machine, epoch } = stem(key);
        let known = self.epochs.get(key);
        let lines_at = known.map_or(0, |epoch| epoch.lines_end);
        let place = FilePositions {
            machine,
            epoch,
            lines_at,
            notes_at: known.map_or(0, |epoch| epoch.notes_end),
            values_at: known.map_or(0, |epoch| epoch.ledger.values()),
        };
        (place, lines_at)
    }

    /// Returns the sender of a batch, if it is new.
    fn changed_sender(&self, header: &BatchHeader, key: &Key) -> Option<Sender> {
        let known = self.epochs.get(key).map(|epoch| &epoch.sender);
        let earlier = known.and_then(|sender| sender.previous_epoch.clone());
        let sender = Sender {
            epoch: header.epoch.clone(),
            previous_epoch: header.previous_epoch.clone().or(earlier),
            identity: header.identity(),
            config_hash: header.config_hash,
        };
        (known != Some(&sender)).then_some(sender)
    }

    fn clones_seen(&self, header: &BatchHeader, at: &str) -> Vec<CloneReport> {
        let report = |kind, other: &str| CloneReport {
            kind,
            epoch: header.epoch.clone(),
            other: other.to_owned(),
            last_seen: at.to_owned(),
            times: 1,
        };
        let mut reports = Vec::new();
        let other_host = self.hostnames.get(&header.epoch).filter(|last| **last != header.hostname);
        reports.extend(other_host.map(|last| report(CloneKind::TwoHostnames, last)));
        let lineage = self.lineages.get(&(header.machine_id.clone(), header.user.clone()));
        // A dead letter may be redelivered in its own epoch long after that has ended.
        let back =
            lineage.filter(|lineage| !header.redelivery && lineage.past.contains(&header.epoch));
        reports.extend(back.map(|lineage| report(CloneKind::AlternatingEpochs, &lineage.current)));
        reports
    }

    /// Caches the last value of an epoch's chain after it was recorded: the next batch most likely
    /// continues there.
    pub(super) fn remember(&mut self, key: &Key, last: Digest) {
        if let Some(epoch) = self.epochs.get_mut(key) {
            epoch.last = Some(last);
        }
    }

    /// Records a note, either of a batch that was just made durable or at a start. A note of an
    /// unknown epoch is ignored unless it names the sender.
    pub(super) fn record(&mut self, key: &Key, note: &Note, note_length: u64) {
        if let Some(sender) = &note.sender {
            self.hostnames.insert(sender.epoch.clone(), sender.identity.hostname.clone());
            let epoch = self.epochs.entry(key.clone()).or_insert_with(|| Epoch {
                ledger: Ledger::default(),
                sender: sender.clone(),
                first_seen: note.at.clone(),
                last_seen: String::new(),
                grew_at: String::new(),
                lines_end: 0,
                notes_end: 0,
                conflicts: 0,
                repetitions: 0,
                warned: false,
                last: None,
            });
            epoch.sender = sender.clone();
        }
        let Some(epoch) = self.epochs.get_mut(key) else { return };
        epoch.ledger.apply(&note.change);
        if !note.change.new.is_empty() {
            epoch.last = None;
        }
        epoch.last_seen.clone_from(&note.at);
        epoch.lines_end = note.lines_at + note.bytes;
        epoch.notes_end += note_length;
        epoch.conflicts += note.conflicts;
        epoch.repetitions += note.repeated.iter().map(RepeatedLines::count).sum::<u64>();
        if !note.change.new.is_empty() {
            epoch.grew_at.clone_from(&note.at);
            let user = (key.0.clone(), epoch.sender.identity.user.clone());
            self.lineages.entry(user).or_default().enter(&key.1);
        }
        let reports = self.clones.entry(key.0.clone()).or_default();
        for clone in &note.clones {
            let same = |known: &&mut CloneReport| {
                (known.kind, &known.epoch, &known.other) == (clone.kind, &clone.epoch, &clone.other)
            };
            match reports.iter_mut().find(same) {
                Some(known) => {
                    known.times += clone.times;
                    known.last_seen.clone_from(&clone.last_seen);
                }
                None => reports.push(clone.clone()),
            }
        }
    }

    /// Returns the other epochs of an epoch's machine.
    pub(super) fn others(&self, key: &Key) -> Vec<OtherEpoch> {
        let machine = self.epochs.range((key.0.clone(), String::new())..);
        let machine = machine.take_while(|((machine, _), _)| *machine == key.0);
        let others = machine.filter(|(other, _)| *other != key);
        others
            .map(|(other, epoch)| OtherEpoch {
                epoch: other.1.clone(),
                stem: stem(other),
                lines_end: epoch.lines_end,
            })
            .collect()
    }

    /// Returns the comparison to log, once, when the entries of an epoch differ from its claims
    /// without an explanation.
    pub(super) fn newly_unexplained(&mut self, key: &Key, note: &Note) -> Option<Comparison> {
        let epoch = self.epochs.get_mut(key)?;
        if epoch.warned || !Ledger::affects_comparison(&note.change) {
            return None;
        }
        let found = epoch.ledger.comparison()?;
        epoch.warned = found.difference == Difference::Unexplained;
        epoch.warned.then_some(found)
    }

    /// After a start, which reads the epochs one after the other, determines which of them came
    /// last.
    pub(super) fn order_lineages(&mut self) {
        let mut by_time: Vec<_> = self.epochs.iter().collect();
        by_time.sort_by(|(_, a), (_, b)| a.grew_at.cmp(&b.grew_at));
        for ((machine, id), epoch) in by_time {
            let user = (machine.clone(), epoch.sender.identity.user.clone());
            self.lineages.entry(user).or_default().enter(id);
            self.hostnames.insert(id.clone(), epoch.sender.identity.hostname.clone());
        }
    }

    /// Ledger of an epoch.
    pub(super) fn ledger(&self, key: &Key) -> Option<&Ledger> {
        self.epochs.get(key).map(|epoch| &epoch.ledger)
    }

    /// End positions of an epoch's lines and notes.
    pub(super) fn ends(&self, key: &Key) -> (u64, u64) {
        self.epochs.get(key).map_or((0, 0), |epoch| (epoch.lines_end, epoch.notes_end))
    }

    /// Statistics about all entries held.
    pub(super) fn stats(&self) -> Stats {
        let mut machines: BTreeMap<&str, MachineStats> = BTreeMap::new();
        for ((machine, id), epoch) in &self.epochs {
            let stats = machines.entry(machine).or_insert_with(|| MachineStats {
                identity: epoch.sender.identity.clone(),
                last_seen: String::new(),
                entries: 0,
                bytes: 0,
                clones: self.clones.get(machine).cloned().unwrap_or_default(),
                epochs: Vec::new(),
            });
            if stats.last_seen < epoch.last_seen {
                stats.last_seen.clone_from(&epoch.last_seen);
                stats.identity = epoch.sender.identity.clone();
            }
            stats.entries += epoch.ledger.held();
            stats.bytes += epoch.lines_end;
            stats.epochs.push(epoch.stats(id));
        }
        let machines: Vec<_> = machines.into_values().collect();
        let epochs = machines.iter().flat_map(|machine| &machine.epochs);
        let claims = epochs.filter_map(|epoch| epoch.claims.as_ref());
        let unexplained = claims.filter(|it| it.difference == Difference::Unexplained).count();
        Stats { unexplained: unexplained as u64, machines }
    }
}

impl Lineage {
    fn enter(&mut self, epoch: &str) {
        if self.current != epoch {
            let before = std::mem::replace(&mut self.current, epoch.to_owned());
            self.past.remove(epoch);
            if !before.is_empty() {
                self.past.insert(before);
            }
        }
    }
}

impl Epoch {
    fn stats(&self, id: &str) -> EpochStats {
        let mut holes: Vec<Range> = Vec::new();
        for hole in self.ledger.holes() {
            match holes.last_mut() {
                Some(range) if range.last + 1 == hole.seq => range.last = hole.seq,
                _ => holes.push(Range { first: hole.seq, last: hole.seq }),
            }
        }
        EpochStats {
            epoch: id.to_owned(),
            previous_epoch: self.sender.previous_epoch.clone(),
            user: self.sender.identity.user.clone(),
            first_seen: self.first_seen.clone(),
            last_seen: self.last_seen.clone(),
            entries: self.ledger.held(),
            bytes: self.lines_end,
            next_seq: self.ledger.next_seq(),
            begins_at: self.ledger.begins_at(),
            duplicates: self.ledger.duplicates(),
            repetitions: self.repetitions,
            conflicts: self.conflicts,
            gaps: self.ledger.gaps(),
            holes,
            breaks: self.ledger.breaks().to_vec(),
            claims: self.ledger.comparison(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::testing::BatchText;

    fn record_batch(catalog: &mut Catalog, text: &BatchText) -> Note {
        let batch = Batch::parse(text.text().into_bytes(), UNIX_EPOCH).unwrap();
        // No test here sends a number twice, so that only the previous value is read.
        let values = vec![Digest::ZERO; 1000];
        let planned = catalog.plan(&batch, &mut values.as_slice()).unwrap();
        catalog.record(&key(&batch.header), &planned.note, planned.note.line().len() as u64);
        planned.note
    }

    fn of(epoch: &str, first: u64) -> BatchText {
        BatchText::new(first, first).with(|header| header.epoch = epoch.into())
    }

    fn clones(catalog: &Catalog) -> Vec<(CloneKind, String, String, u64)> {
        let machine = catalog.stats().machines.remove(0);
        machine.clones.into_iter().map(|it| (it.kind, it.epoch, it.other, it.times)).collect()
    }

    #[test]
    fn return_to_an_old_epoch_is_a_clone() {
        let mut catalog = Catalog::default();
        record_batch(&mut catalog, &of("a", 1));
        record_batch(&mut catalog, &of("b", 1));
        assert_eq!(clones(&catalog), []);
        record_batch(&mut catalog, &of("a", 2));
        record_batch(&mut catalog, &of("b", 2));
        let kind = CloneKind::AlternatingEpochs;
        let expected = [(kind, "a".into(), "b".into(), 1), (kind, "b".into(), "a".into(), 1)];
        assert_eq!(clones(&catalog), expected);
    }

    #[test]
    fn dead_letters_of_an_old_epoch_are_not_a_clone() {
        let mut catalog = Catalog::default();
        record_batch(
            &mut catalog,
            &BatchText::new(1, 2).dead(&[2]).with(|header| header.epoch = "a".into()),
        );
        record_batch(&mut catalog, &of("b", 1));
        record_batch(
            &mut catalog,
            &BatchText::redelivery(&[2]).with(|header| header.epoch = "a".into()),
        );
        record_batch(&mut catalog, &of("b", 2));
        assert_eq!(clones(&catalog), []);
    }

    #[test]
    fn one_epoch_from_two_hostnames_is_a_clone() {
        let mut catalog = Catalog::default();
        record_batch(&mut catalog, &of("a", 1));
        record_batch(&mut catalog, &of("a", 2).with(|header| header.hostname = "copy".into()));
        let expected = [(CloneKind::TwoHostnames, "a".into(), "laptop".into(), 1)];
        assert_eq!(clones(&catalog), expected);
    }

    #[test]
    fn two_users_of_a_machine_are_not_a_clone() {
        let mut catalog = Catalog::default();
        for seq in 1..4 {
            record_batch(&mut catalog, &of("a", seq));
            record_batch(&mut catalog, &of("b", seq).with(|header| header.user = "v".into()));
        }
        assert_eq!(clones(&catalog), []);
    }

    /// Each read of a value waits for files.
    #[test]
    fn batch_that_continues_the_last_one_reads_no_value() {
        struct None;
        impl ChainValues for None {
            type Error = u64;
            fn read(&mut self, at: u64, _: u64) -> Result<Vec<Digest>, u64> {
                Err(at)
            }
        }
        let mut catalog = Catalog::default();
        let batch = |first, last| {
            let text = BatchText::new(first, last).text();
            Batch::parse(text.into_bytes(), UNIX_EPOCH).unwrap()
        };
        let first = batch(1, 3);
        let key = key(&first.header);
        let note = catalog.plan(&first, &mut None).unwrap().note;
        catalog.record(&key, &note, 1);
        assert!(matches!(catalog.plan(&batch(4, 5), &mut None), Err(Refusal::Values(2))));
        catalog.remember(&key, first.chain(3, 3)[0]);
        let planned = catalog.plan(&batch(4, 5), &mut None).unwrap();
        assert!(planned.note.change.breaks.is_empty() && planned.note.change.claims.is_empty());
        // Held numbers are compared with the stored values.
        assert!(matches!(catalog.plan(&batch(2, 5), &mut None), Err(Refusal::Values(1))));
        catalog.record(&key, &planned.note, 1);
        assert!(matches!(catalog.plan(&batch(6, 6), &mut None), Err(Refusal::Values(4))));
    }

    #[test]
    fn note_names_the_sender_only_if_it_changed() {
        let mut catalog = Catalog::default();
        let first = of("b", 1).with(|header| header.previous_epoch = Some("a".into()));
        assert!(record_batch(&mut catalog, &first).sender.is_some());
        assert_eq!(record_batch(&mut catalog, &of("b", 2)).sender, None);
        let newer = of("b", 3).with(|header| header.agent_version = "0.2.0".into());
        assert!(record_batch(&mut catalog, &newer).sender.is_some());
        let epoch = catalog.stats().machines.remove(0).epochs.remove(0);
        assert_eq!(epoch.previous_epoch.as_deref(), Some("a"));
    }
}
