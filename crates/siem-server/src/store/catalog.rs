//! Everything that is known about what is held: an epoch's ledger, who sent it, signs of clones.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use siem_protocol::{BatchHeader, Digest, Receipt};

use super::{
    epoch::Stem,
    frame::Place,
    names,
    note::{Note, Who},
    repeats::{Other, Repeated},
};
use crate::{
    batch::Batch,
    clock,
    ledger::{ChainValues, Change, Comparison, Difference, Ledger, Range, Refusal},
    stats::{CloneKind, CloneReport, EpochStats, MachineStats, Stats},
};

/// An epoch's id, by its machine's.
pub(super) type Key = (String, String);

/// What is known of an epoch.
#[derive(Debug)]
struct Epoch {
    ledger: Ledger,
    who: Who,
    first_seen: String,
    last_seen: String,
    /// When its last new numbers came.
    grew_at: String,
    lines_end: u64,
    notes_end: u64,
    conflicts: u64,
    repetitions: u64,
    /// Set once it was said that claims and holdings differ unexplained.
    warned: bool,
    /// The last one of the chain's values, once it came since the start.
    last: Option<Digest>,
}

/// The epochs that a machine's user has had.
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
    /// By epoch, whatever the machine: the hostname of its last batch.
    hostnames: HashMap<String, String>,
    /// By machine.
    clones: BTreeMap<String, Vec<CloneReport>>,
}

/// A batch that was judged, and what is to be written of it.
#[derive(Debug)]
pub(super) struct Judged {
    /// The note to write.
    pub(super) note: Note,
    /// Where its parts go.
    pub(super) place: Place,
    /// Which lines to store.
    pub(super) store: Vec<usize>,
    /// The answer, once all is durable.
    pub(super) receipt: Receipt,
}

/// The chain's values, the last of which is known and need not be read.
struct Known<'a, V> {
    /// Its place and itself.
    last: Option<(u64, Digest)>,
    values: &'a mut V,
}

impl<V: ChainValues> ChainValues for Known<'_, V> {
    type Error = V::Error;

    fn read(&mut self, at: u64, count: u64) -> Result<Vec<Digest>, V::Error> {
        match self.last {
            Some((place, value)) if place == at && count == 1 => Ok(vec![value]),
            _ => self.values.read(at, count),
        }
    }
}

/// The key of a batch's epoch.
pub(super) fn key(header: &BatchHeader) -> Key {
    (header.machine_id.clone(), header.epoch.clone())
}

/// The files of an epoch.
pub(super) fn stem((machine, epoch): &Key) -> Stem {
    Stem { machine: names::safe(machine), epoch: names::safe(epoch) }
}

impl Catalog {
    /// Judges a batch; nothing changes yet.
    pub(super) fn judge<V: ChainValues>(
        &self,
        batch: &Batch,
        values: &mut V,
    ) -> Result<Judged, Refusal<V::Error>> {
        let key = key(&batch.header);
        let unknown = Ledger::default();
        let ledger = self.epochs.get(&key).map_or(&unknown, |epoch| &epoch.ledger);
        let last = self.epochs.get(&key).and_then(|epoch| epoch.last);
        let last = last.map(|value| (ledger.values() - 1, value));
        let plan = ledger.plan(batch, &mut Known { last, values })?;
        let receipt = Receipt {
            last_seq: batch.covers().map(|(_, last)| last),
            accepted: plan.change.accepted,
            duplicates: plan.change.duplicates,
            accepted_seqs: plan.accepted_seqs,
        };
        let (place, lines_at) = self.place(&key);
        let lengths = plan.store.iter().map(|index| batch.lines()[*index].range.len() as u64 + 1);
        let at = clock::text(batch.received_at);
        let note = Note {
            lines_at,
            bytes: lengths.sum(),
            who: self.news_of(&batch.header, &key),
            clones: self.clones_seen(&batch.header, &at),
            at,
            repeated: Vec::new(),
            conflicts: 0,
            change: plan.change,
        };
        Ok(Judged { note, place, store: plan.store, receipt })
    }

    /// What is to be written of a batch that was refused with a conflict. Who sent it is not taken
    /// for the epoch's sender, but compared with that.
    pub(super) fn conflict(&self, batch: &Batch) -> (Note, Place) {
        let (place, lines_at) = self.place(&key(&batch.header));
        let at = clock::text(batch.received_at);
        let note = Note {
            lines_at,
            bytes: 0,
            who: None,
            clones: self.clones_seen(&batch.header, &at),
            at,
            repeated: Vec::new(),
            conflicts: 1,
            change: Change::default(),
        };
        (note, place)
    }

    fn place(&self, key: &Key) -> (Place, u64) {
        let Stem { machine, epoch } = stem(key);
        let known = self.epochs.get(key);
        let lines_at = known.map_or(0, |epoch| epoch.lines_end);
        let place = Place {
            machine,
            epoch,
            lines_at,
            notes_at: known.map_or(0, |epoch| epoch.notes_end),
            values_at: known.map_or(0, |epoch| epoch.ledger.values()),
        };
        (place, lines_at)
    }

    /// Who sent the batch, when that is not known already.
    fn news_of(&self, header: &BatchHeader, key: &Key) -> Option<Who> {
        let known = self.epochs.get(key).map(|epoch| &epoch.who);
        let earlier = known.and_then(|who| who.previous_epoch.clone());
        let who = Who {
            epoch: header.epoch.clone(),
            previous_epoch: header.previous_epoch.clone().or(earlier),
            identity: header.identity(),
            config_hash: header.config_hash,
        };
        (known != Some(&who)).then_some(who)
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
        // A dead letter may be sent again in its own epoch long after that has ended.
        let back =
            lineage.filter(|lineage| !header.redelivery && lineage.past.contains(&header.epoch));
        reports.extend(back.map(|lineage| report(CloneKind::AlternatingEpochs, &lineage.current)));
        reports
    }

    /// Keeps the chain's last value of an epoch, as it was just recorded: the next batch of it most
    /// likely goes on from there.
    pub(super) fn remember(&mut self, key: &Key, last: Digest) {
        if let Some(epoch) = self.epochs.get_mut(key) {
            epoch.last = Some(last);
        }
    }

    /// Takes in what a note says: of a batch that was just made durable, or at a start. A note of
    /// an epoch not known yet says who sent it, else it is passed over.
    pub(super) fn record(&mut self, key: &Key, note: &Note, note_length: u64) {
        if let Some(who) = &note.who {
            self.hostnames.insert(who.epoch.clone(), who.identity.hostname.clone());
            let epoch = self.epochs.entry(key.clone()).or_insert_with(|| Epoch {
                ledger: Ledger::default(),
                who: who.clone(),
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
            epoch.who = who.clone();
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
        epoch.repetitions += note.repeated.iter().map(Repeated::count).sum::<u64>();
        if !note.change.new.is_empty() {
            epoch.grew_at.clone_from(&note.at);
            let user = (key.0.clone(), epoch.who.identity.user.clone());
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

    /// The other epochs of an epoch's machine.
    pub(super) fn others(&self, key: &Key) -> Vec<Other> {
        let machine = self.epochs.range((key.0.clone(), String::new())..);
        let machine = machine.take_while(|((machine, _), _)| *machine == key.0);
        let others = machine.filter(|(other, _)| *other != key);
        others
            .map(|(other, epoch)| Other {
                epoch: other.1.clone(),
                stem: stem(other),
                lines_end: epoch.lines_end,
            })
            .collect()
    }

    /// What is to be said, once, of an epoch whose holdings differ from its claims unexplained.
    pub(super) fn newly_unexplained(&mut self, key: &Key, note: &Note) -> Option<Comparison> {
        let epoch = self.epochs.get_mut(key)?;
        if epoch.warned || !Ledger::compared_anew(&note.change) {
            return None;
        }
        let found = epoch.ledger.comparison()?;
        epoch.warned = found.difference == Difference::Unexplained;
        epoch.warned.then_some(found)
    }

    /// After a start, when epochs were taken in one after another: which of them came last.
    pub(super) fn order_lineages(&mut self) {
        let mut by_time: Vec<_> = self.epochs.iter().collect();
        by_time.sort_by(|(_, a), (_, b)| a.grew_at.cmp(&b.grew_at));
        for ((machine, id), epoch) in by_time {
            let user = (machine.clone(), epoch.who.identity.user.clone());
            self.lineages.entry(user).or_default().enter(id);
            self.hostnames.insert(id.clone(), epoch.who.identity.hostname.clone());
        }
    }

    /// The ledger of an epoch.
    pub(super) fn ledger(&self, key: &Key) -> Option<&Ledger> {
        self.epochs.get(key).map(|epoch| &epoch.ledger)
    }

    /// Where the lines and notes of an epoch end.
    pub(super) fn ends(&self, key: &Key) -> (u64, u64) {
        self.epochs.get(key).map_or((0, 0), |epoch| (epoch.lines_end, epoch.notes_end))
    }

    /// What is held.
    pub(super) fn stats(&self) -> Stats {
        let mut machines: BTreeMap<&str, MachineStats> = BTreeMap::new();
        for ((machine, id), epoch) in &self.epochs {
            let stats = machines.entry(machine).or_insert_with(|| MachineStats {
                identity: epoch.who.identity.clone(),
                last_seen: String::new(),
                entries: 0,
                bytes: 0,
                clones: self.clones.get(machine).cloned().unwrap_or_default(),
                epochs: Vec::new(),
            });
            if stats.last_seen < epoch.last_seen {
                stats.last_seen.clone_from(&epoch.last_seen);
                stats.identity = epoch.who.identity.clone();
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
            previous_epoch: self.who.previous_epoch.clone(),
            user: self.who.identity.user.clone(),
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

    fn take(catalog: &mut Catalog, text: &BatchText) -> Note {
        let batch = Batch::parse(text.text().into_bytes(), UNIX_EPOCH).unwrap();
        // No test here sends a number twice, so no value is asked for but the one before.
        let values = vec![Digest::ZERO; 1000];
        let judged = catalog.judge(&batch, &mut values.as_slice()).unwrap();
        catalog.record(&key(&batch.header), &judged.note, judged.note.line().len() as u64);
        judged.note
    }

    fn of(epoch: &str, first: u64) -> BatchText {
        BatchText::new(first, first).with(|header| header.epoch = epoch.into())
    }

    fn clones(catalog: &Catalog) -> Vec<(CloneKind, String, String, u64)> {
        let machine = catalog.stats().machines.remove(0);
        machine.clones.into_iter().map(|it| (it.kind, it.epoch, it.other, it.times)).collect()
    }

    #[test]
    fn a_new_epoch_is_no_clone_and_going_back_is() {
        let mut catalog = Catalog::default();
        take(&mut catalog, &of("a", 1));
        take(&mut catalog, &of("b", 1));
        assert_eq!(clones(&catalog), []);
        take(&mut catalog, &of("a", 2));
        take(&mut catalog, &of("b", 2));
        let kind = CloneKind::AlternatingEpochs;
        let expected = [(kind, "a".into(), "b".into(), 1), (kind, "b".into(), "a".into(), 1)];
        assert_eq!(clones(&catalog), expected);
    }

    #[test]
    fn dead_letters_of_an_earlier_epoch_are_no_clone() {
        let mut catalog = Catalog::default();
        take(
            &mut catalog,
            &BatchText::new(1, 2).dead(&[2]).with(|header| header.epoch = "a".into()),
        );
        take(&mut catalog, &of("b", 1));
        take(&mut catalog, &BatchText::redelivery(&[2]).with(|header| header.epoch = "a".into()));
        take(&mut catalog, &of("b", 2));
        assert_eq!(clones(&catalog), []);
    }

    #[test]
    fn one_epoch_from_two_hostnames_is_a_clone() {
        let mut catalog = Catalog::default();
        take(&mut catalog, &of("a", 1));
        take(&mut catalog, &of("a", 2).with(|header| header.hostname = "copy".into()));
        let expected = [(CloneKind::TwoHostnames, "a".into(), "laptop".into(), 1)];
        assert_eq!(clones(&catalog), expected);
    }

    #[test]
    fn two_users_of_a_machine_have_an_epoch_each() {
        let mut catalog = Catalog::default();
        for seq in 1..4 {
            take(&mut catalog, &of("a", seq));
            take(&mut catalog, &of("b", seq).with(|header| header.user = "v".into()));
        }
        assert_eq!(clones(&catalog), []);
    }

    /// Each read of a value waits for files.
    #[test]
    fn a_batch_that_goes_on_where_the_last_one_ended_reads_no_value() {
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
        let note = catalog.judge(&first, &mut None).unwrap().note;
        catalog.record(&key, &note, 1);
        assert!(matches!(catalog.judge(&batch(4, 5), &mut None), Err(Refusal::Values(2))));
        catalog.remember(&key, first.chain(3, 3)[0]);
        let judged = catalog.judge(&batch(4, 5), &mut None).unwrap();
        assert!(judged.note.change.breaks.is_empty() && judged.note.change.claims.is_empty());
        // Held numbers are compared as they are stored.
        assert!(matches!(catalog.judge(&batch(2, 5), &mut None), Err(Refusal::Values(1))));
        catalog.record(&key, &judged.note, 1);
        assert!(matches!(catalog.judge(&batch(6, 6), &mut None), Err(Refusal::Values(4))));
    }

    #[test]
    fn says_who_sends_only_when_that_is_new() {
        let mut catalog = Catalog::default();
        let first = of("b", 1).with(|header| header.previous_epoch = Some("a".into()));
        assert!(take(&mut catalog, &first).who.is_some());
        assert_eq!(take(&mut catalog, &of("b", 2)).who, None);
        let newer = of("b", 3).with(|header| header.agent_version = "0.2.0".into());
        assert!(take(&mut catalog, &newer).who.is_some());
        let epoch = catalog.stats().machines.remove(0).epochs.remove(0);
        assert_eq!(epoch.previous_epoch.as_deref(), Some("a"));
    }
}
