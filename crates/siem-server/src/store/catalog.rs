//! Catalog of the stored epochs: ledger, sender and signs of clones of each.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use siem_protocol::{
    BatchHeader, Digest, Receipt,
    statement::{self, DeviceState, TrustLevel},
};

use super::{
    HeldPoint,
    admission::{Admission, AdmittedDevice},
    epoch::Stem,
    frame::FilePositions,
    names,
    note::{DeviceNote, Note, SealNote, Sender},
    note_index::{NoteIndex, ReadNotes},
    repeats::{OtherEpoch, RepeatedLines},
};
use crate::{
    batch::Batch,
    clock,
    ledger::{ChainValues, Change, Comparison, Difference, Ledger, Range, Refusal},
    stats::{CloneKind, CloneReport, EpochDevice, EpochStats, MachineStats, Stats},
    trust::{DeviceKey, Registry, policy::Mark},
};

/// Maximum length of an `instance` that is noted, in bytes.
const INSTANCE: usize = 128;

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
    owner: Option<Owner>,
    /// The epoch began when the receiver had a key.
    keyed: bool,
    notes: NoteIndex,
    /// The last receipt's facts, while nothing was noted since.
    point: Option<HeldPoint>,
}

/// Device that owns an epoch.
#[derive(Clone, Debug)]
struct Owner {
    /// Key that sealed the last batch.
    key: DeviceKey,
    mark: Mark,
    level: TrustLevel,
    instance: Option<String>,
    adopted_at: Option<u64>,
    /// The adoption confirmed the key.
    confirms: bool,
}

/// Owner and end of an epoch.
#[derive(Debug)]
pub(super) struct EpochView<'a> {
    pub(super) owner: Option<DeviceKey>,
    pub(super) user: &'a str,
    pub(super) next_seq: u64,
}

/// Machine, user, and the key of their device, if there is one.
type LineageKey = (String, String, Option<DeviceKey>);

/// Epochs of a machine's user and device.
#[derive(Debug, Default)]
struct Lineage {
    current: String,
    past: BTreeSet<String>,
}

/// All epochs of all machines.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    epochs: BTreeMap<Key, Epoch>,
    lineages: HashMap<LineageKey, Lineage>,
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
        admission: &Admission,
        values: &mut V,
    ) -> Result<PlannedBatch, Refusal<V::Error>> {
        let key = key(&batch.header);
        let unknown = Ledger::default();
        let ledger = self.epochs.get(&key).map_or(&unknown, |epoch| &epoch.ledger);
        let last = self.epochs.get(&key).and_then(|epoch| epoch.last);
        let last = last.map(|value| (ledger.values() - 1, value));
        let plan = ledger.plan(batch, &mut CachedLast { last, values })?;
        if admission.strict && !plan.change.continues() {
            return Err(Refusal::Conflict { expected_seq: ledger.next_seq() });
        }
        let device = admission.owner.and_then(|device| {
            self.device_note(device, batch, &key, &plan.change, ledger.next_seq())
        });
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
            clones: self.clones_seen(&batch.header, admission.owner.as_ref(), &at),
            at,
            repeated: Vec::new(),
            conflicts: 0,
            keyed: admission.keyed && !self.epochs.contains_key(&key),
            device,
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
            clones: self.clones_seen(&batch.header, None, &at),
            at,
            repeated: Vec::new(),
            conflicts: 1,
            keyed: false,
            device: None,
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

    /// Returns the note about the device that owns the epoch; none if nothing is new about it.
    fn device_note(
        &self,
        device: AdmittedDevice,
        batch: &Batch,
        key: &Key,
        change: &Change,
        next_seq: u64,
    ) -> Option<DeviceNote> {
        let known = self.epochs.get(key);
        let owner = known.and_then(|epoch| epoch.owner.as_ref());
        let instance = batch.header.instance.as_ref().filter(|instance| {
            instance.len() <= INSTANCE
                && owner.and_then(|owner| owner.instance.as_ref()) != Some(instance)
        });
        // The seal of a redelivery covers what is held already.
        let seal = batch.seal.valid().filter(|seal| {
            let is_sealed = known.is_some_and(|epoch| epoch.notes.is_sealed(seal.last_seq));
            !batch.header.redelivery && (!change.new.is_empty() || !is_sealed)
        });
        let seal = seal.zip(batch.header.seal.as_ref());
        let seal =
            seal.map(|(seal, note)| SealNote { last_seq: seal.last_seq, note: note.clone() });
        let is_known = owner.is_some_and(|owner| {
            (owner.key, owner.mark, owner.level) == (device.key, device.mark, device.level)
        });
        if is_known && instance.is_none() && seal.is_none() {
            return None;
        }
        Some(DeviceNote {
            key: device.key,
            mark: device.mark,
            level: device.level,
            instance: instance.cloned(),
            adopted_at: device.adopts.then_some(next_seq),
            confirms: device.confirms,
            seal,
        })
    }

    /// Returns the facts for the receipt of a batch: those about the last number that it covers, or
    /// for a redelivery, about the number that its seal names, with whose value the chain must agree.
    /// `None` if a redelivery names no number that is held.
    pub(super) fn point(
        &self,
        key: &Key,
        batch: &Batch,
        note: &Note,
        read: &mut ReadNotes<'_>,
    ) -> std::io::Result<Option<HeldPoint>> {
        let covered = batch.covers().map(|(_, last)| (last, batch.chain(last, last)[0]));
        let sealed = batch.seal.valid().map(|seal| (seal.last_seq, seal.chain));
        let Some((last_seq, chain)) = covered.or(sealed) else { return Ok(None) };
        let none = NoteIndex::default();
        let epoch = self.epochs.get(key);
        if let Some(point) = epoch.and_then(|epoch| epoch.point.as_ref()) {
            let own = note.seal().is_some_and(|seal| seal.last_seq >= last_seq);
            if point.last_seq == last_seq && (point.seal.is_some() || !own) {
                return Ok(Some(point.clone()));
            }
        }
        let notes = epoch.map_or(&none, |epoch| &epoch.notes);
        let brings = |new: &Range| (new.first..=new.last).contains(&last_seq);
        let received_at = match note.change.new.iter().any(brings) {
            true => Some(note.at.clone()),
            false => notes.received_at(last_seq, read)?,
        };
        let seal = match notes.is_sealed(last_seq) {
            true => notes.seal_of(last_seq, read)?,
            false => {
                let own = note.seal().filter(|seal| seal.last_seq >= last_seq);
                own.map(|seal| statement::digest(&seal.note))
            }
        };
        Ok(received_at.map(|received_at| HeldPoint { last_seq, chain, seal, received_at }))
    }

    /// Owner and end of an epoch; `None` if nothing of it is held.
    pub(super) fn epoch(&self, key: &Key) -> Option<EpochView<'_>> {
        let epoch = self.epochs.get(key)?;
        Some(EpochView {
            owner: epoch.owner.as_ref().map(|owner| owner.key),
            user: &epoch.sender.identity.user,
            next_seq: epoch.ledger.next_seq(),
        })
    }

    /// Returns the keys of the devices that own epochs of a machine and user.
    pub(super) fn owners(&self, machine: &str, user: &str) -> Vec<DeviceKey> {
        let epochs = self.of_machine(machine).map(|(_, epoch)| epoch);
        let epochs = epochs.filter(|epoch| epoch.sender.identity.user == user);
        epochs.filter_map(|epoch| Some(epoch.owner.as_ref()?.key)).collect()
    }

    /// Reports whether an epoch is the first that is held of its machine and user, or names it as
    /// the one before, maybe through others. The latter is a claim, so it counts only for epochs
    /// that began before the receiver had a key, when it gained no sender anything.
    pub(super) fn is_first_line(&self, key: &Key) -> bool {
        let Some(epoch) = self.epochs.get(key) else { return false };
        let user = &epoch.sender.identity.user;
        let own = self.of_machine(&key.0).filter(|(_, other)| other.sender.identity.user == *user);
        let Some((first, _)) = own.min_by(|(_, a), (_, b)| a.first_seen.cmp(&b.first_seen)) else {
            return false;
        };
        let mut current = key.1.clone();
        // A sender can claim a circle.
        for _ in 0..self.epochs.len() {
            if current == first.1 {
                return true;
            }
            let epoch = self.epochs.get(&(key.0.clone(), current)).filter(|epoch| !epoch.keyed);
            let Some(before) = epoch.and_then(|epoch| epoch.sender.previous_epoch.clone()) else {
                return false;
            };
            current = before;
        }
        false
    }

    /// Returns the keys that the adoption of an epoch confirms.
    pub(super) fn confirmed_by_continuity(&self) -> Vec<DeviceKey> {
        let owners = self.epochs.values().filter_map(|epoch| epoch.owner.as_ref());
        owners.filter(|owner| owner.confirms).map(|owner| owner.key).collect()
    }

    /// Returns the key whose confirmation follows from the epoch's adoption.
    pub(super) fn confirms(&self, key: &Key) -> Option<DeviceKey> {
        let owner = self.epochs.get(key)?.owner.as_ref()?;
        owner.confirms.then_some(owner.key)
    }

    /// Reports whether a sign of a clone was not seen before.
    pub(super) fn is_new_clone(&self, machine: &str, clone: &CloneReport) -> bool {
        let known = self.clones.get(machine).into_iter().flatten();
        !known.into_iter().any(|known| known.is_same(clone))
    }

    fn of_machine(&self, machine: &str) -> impl Iterator<Item = (&Key, &Epoch)> {
        let epochs = self.epochs.range((machine.to_owned(), String::new())..);
        epochs.take_while(move |((of, _), _)| of == machine)
    }

    fn clones_seen(
        &self,
        header: &BatchHeader,
        device: Option<&AdmittedDevice>,
        at: &str,
    ) -> Vec<CloneReport> {
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
        let device = device.map(|device| device.key);
        let lineage = self.lineages.get(&(header.machine_id.clone(), header.user.clone(), device));
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

    /// Caches the facts of an epoch's last receipt after its batch was recorded: a sender that got
    /// no response asks for them again.
    pub(super) fn remember_point(&mut self, key: &Key, point: HeldPoint) {
        if let Some(epoch) = self.epochs.get_mut(key) {
            epoch.point = Some(point);
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
                owner: None,
                keyed: note.keyed,
                notes: NoteIndex::default(),
                point: None,
            });
            epoch.sender = sender.clone();
        }
        let Some(epoch) = self.epochs.get_mut(key) else { return };
        epoch.ledger.apply(&note.change);
        if !note.change.new.is_empty() {
            epoch.last = None;
        }
        epoch.last_seen.clone_from(&note.at);
        epoch.point = None;
        epoch.notes.add(epoch.notes_end, note_length, note);
        if let Some(device) = &note.device {
            epoch.own(device);
        }
        epoch.lines_end = note.lines_at + note.bytes;
        epoch.notes_end += note_length;
        epoch.conflicts += note.conflicts;
        epoch.repetitions += note.repeated.iter().map(RepeatedLines::count).sum::<u64>();
        if !note.change.new.is_empty() {
            epoch.grew_at.clone_from(&note.at);
            self.lineages.entry(epoch.lineage(&key.0)).or_default().enter(&key.1);
        }
        let reports = self.clones.entry(key.0.clone()).or_default();
        for clone in &note.clones {
            match reports.iter_mut().find(|known| known.is_same(clone)) {
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
        let others = self.of_machine(&key.0).filter(|(other, _)| *other != key);
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
            self.lineages.entry(epoch.lineage(machine)).or_default().enter(id);
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
    pub(super) fn stats(&self, registry: Option<&Registry>) -> Stats {
        let mut machines: BTreeMap<&str, MachineStats> = BTreeMap::new();
        for ((machine, id), epoch) in &self.epochs {
            let stats = machines.entry(machine).or_insert_with(|| {
                let clones = self.clones.get(machine).cloned().unwrap_or_default();
                MachineStats::new(&epoch.sender.identity, clones)
            });
            stats.add(epoch.stats(id, registry), &epoch.sender.identity);
        }
        let machines: Vec<_> = machines.into_values().collect();
        let epochs = machines.iter().flat_map(MachineStats::all_epochs);
        let claims = epochs.filter_map(|epoch| epoch.claims.as_ref());
        let unexplained = claims.filter(|it| it.difference == Difference::Unexplained).count();
        Stats {
            unexplained: unexplained as u64,
            level: registry.map(Registry::level),
            events: registry.map(Registry::event_counts).unwrap_or_default(),
            machines,
        }
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
    /// Takes over what a note says about the epoch's device.
    fn own(&mut self, device: &DeviceNote) {
        let before = self.owner.take();
        let (adopted_at, confirms, instance) = before.map_or((None, false, None), |before| {
            (before.adopted_at, before.confirms, before.instance)
        });
        self.owner = Some(Owner {
            key: device.key,
            mark: device.mark,
            level: device.level,
            instance: device.instance.clone().or(instance),
            adopted_at: device.adopted_at.or(adopted_at),
            confirms: device.confirms || confirms,
        });
    }

    fn lineage(&self, machine: &str) -> LineageKey {
        let device = self.owner.as_ref().map(|owner| owner.key);
        (machine.to_owned(), self.sender.identity.user.clone(), device)
    }

    fn device_stats(&self, owner: &Owner, registry: Option<&Registry>) -> EpochDevice {
        let identity = &self.sender.identity;
        let state = match registry.and_then(|registry| registry.device(&owner.key)) {
            // It was confirmed for another machine or user.
            Some(device)
                if device.state == DeviceState::Confirmed
                    && (device.machine != identity.machine_id || device.user != identity.user) =>
            {
                DeviceState::Unconfirmed
            }
            Some(device) => device.state,
            None if owner.mark == Mark::Confirmed => DeviceState::Confirmed,
            None => DeviceState::Unconfirmed,
        };
        EpochDevice {
            key: format!("{:.16}", owner.key),
            state,
            level: owner.level,
            adopted_at: owner.adopted_at,
            sealed: self.notes.sealed(),
        }
    }

    fn stats(&self, id: &str, registry: Option<&Registry>) -> EpochStats {
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
            device: self.owner.as_ref().map(|owner| self.device_stats(owner, registry)),
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
        let planned = catalog.plan(&batch, &Admission::loose(), &mut values.as_slice()).unwrap();
        catalog.record(&key(&batch.header), &planned.note, planned.note.line().len() as u64);
        planned.note
    }

    fn of(epoch: &str, first: u64) -> BatchText {
        BatchText::new(first, first).with(|header| header.epoch = epoch.into())
    }

    fn clones(catalog: &Catalog) -> Vec<(CloneKind, String, String, u64)> {
        let machine = catalog.stats(None).machines.remove(0);
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
        let note = catalog.plan(&first, &Admission::loose(), &mut None).unwrap().note;
        catalog.record(&key, &note, 1);
        assert!(matches!(
            catalog.plan(&batch(4, 5), &Admission::loose(), &mut None),
            Err(Refusal::Values(2))
        ));
        catalog.remember(&key, first.chain(3, 3)[0]);
        let planned = catalog.plan(&batch(4, 5), &Admission::loose(), &mut None).unwrap();
        assert!(planned.note.change.breaks.is_empty() && planned.note.change.claims.is_empty());
        // Held numbers are compared with the stored values.
        assert!(matches!(
            catalog.plan(&batch(2, 5), &Admission::loose(), &mut None),
            Err(Refusal::Values(1))
        ));
        catalog.record(&key, &planned.note, 1);
        assert!(matches!(
            catalog.plan(&batch(6, 6), &Admission::loose(), &mut None),
            Err(Refusal::Values(4))
        ));
    }

    #[test]
    fn note_names_the_sender_only_if_it_changed() {
        let mut catalog = Catalog::default();
        let first = of("b", 1).with(|header| header.previous_epoch = Some("a".into()));
        assert!(record_batch(&mut catalog, &first).sender.is_some());
        assert_eq!(record_batch(&mut catalog, &of("b", 2)).sender, None);
        let newer = of("b", 3).with(|header| header.agent_version = "0.2.0".into());
        assert!(record_batch(&mut catalog, &newer).sender.is_some());
        let epoch = catalog.stats(None).machines.remove(0).epochs.remove(0);
        assert_eq!(epoch.previous_epoch.as_deref(), Some("a"));
    }
}
