//! Catalog of the stored epochs: ledger, sender and signs of clones of each.

mod clones;
mod devices;
mod ended;
mod figures;
#[cfg(test)]
mod recount;
mod stats;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use siem_protocol::{BatchHeader, Digest, Identity, Receipt, statement::TrustLevel};

use self::figures::KeptFigures;
use super::{
    EpochKey, HeldPoint,
    admission::Admission,
    epoch::Stem,
    frame::FilePositions,
    names,
    note::{DeviceNote, Note, Sender},
    note_index::{NoteIndex, OldLines},
    repeats::{OtherEpoch, RepeatedLines},
};
use crate::{
    batch::{Batch, EndedEpoch},
    clock,
    fleet::Heartbeat,
    ledger::{ChainValues, Change, Comparison, Difference, Ledger, Range, Refusal},
    stats::CloneReport,
    trust::{DeviceKey, policy::Mark},
};

/// Id of a machine and of an epoch.
pub(super) type Key = (String, String);

/// State of an epoch.
#[derive(Debug)]
struct Epoch {
    ledger: Ledger,
    /// The epoch before, according to the agent.
    previous_epoch: Option<String>,
    config_hash: Digest,
    /// Sender of the last batch. Epochs of a machine mostly have the same, and share it.
    identity: Arc<Identity>,
    /// Sender of the first batch: a device may send under another user's name later, or from another host.
    first: Arc<Identity>,
    first_seen: String,
    last_seen: String,
    /// Time of its last new numbers.
    grew_at: String,
    lines_end: u64,
    index_end: u64,
    conflicts: u64,
    repetitions: u64,
    /// Set after an unexplained difference between claims and entries was logged.
    warned: bool,
    /// Last value of the chain, if one arrived since the start.
    last: Option<Digest>,
    owner: Option<Owner>,
    /// The epoch began when the receiver had a key.
    keyed: bool,
    /// Place among the epochs of the machine; 0 if a release without it wrote the first note.
    order: u64,
    notes: NoteIndex,
    /// Figures of the heartbeat with the highest number.
    heartbeat: Option<Box<Heartbeat>>,
    /// End of the epoch before.
    ended: Option<Box<EndedEpoch>>,
    /// Numbers whose lines were removed.
    removed: Vec<Range>,
    /// Number of the index's rows that `removed` covers.
    removed_rows: usize,
    /// Position before which there are no lines.
    lines_from: u64,
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
    /// Boxed: nodes of the tree have room for eleven, and are half empty where keys came in order.
    epochs: BTreeMap<Key, Box<Epoch>>,
    lineages: HashMap<LineageKey, Lineage>,
    /// Hostname of the last batch of each epoch, regardless of the machine.
    hostnames: HashMap<String, String>,
    /// By machine; most have none.
    clones: BTreeMap<String, Vec<CloneReport>>,
    /// Machines with an epoch that reports the end of another one, by that one's id.
    reporters: HashMap<String, BTreeSet<String>>,
    /// Each change of what they are computed from marks its machine in them.
    figures: KeptFigures,
}

/// Epochs of a machine in the order of their ids, or of all machines.
type MachineEpochs<'a> = Vec<(&'a Key, &'a Epoch)>;

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
    /// Creates an empty catalog, to which this number of epochs is added at once.
    pub(super) fn for_epochs(count: usize) -> Self {
        Self { hostnames: HashMap::with_capacity(count), ..Self::default() }
    }

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
            verdict: None,
            enroll: false,
        };
        let (place, lines_at) = self.positions(&key);
        let lengths = plan.store.iter().map(|index| batch.lines()[*index].range.len() as u64 + 1);
        let at = clock::text(batch.received_at);
        let note = Note {
            lines_at,
            bytes: lengths.sum(),
            sender: self.sender(&batch.header, &key, &plan.change),
            clones: self.clones_seen(&batch.header, admission.owner.as_ref(), &at),
            at,
            repeated: Vec::new(),
            conflicts: 0,
            keyed: admission.keyed && !self.epochs.contains_key(&key),
            order: self.next_order(&key),
            device,
            heartbeat: new_heartbeat(batch, &plan.change),
            ended: ended::new(batch, &plan.change),
            change: plan.change,
            ..Note::default()
        };
        Ok(PlannedBatch { note, place, store: plan.store, receipt })
    }

    /// Returns the note about a batch that was refused with a conflict. Its sender does not replace
    /// the epoch's, but is compared with it.
    pub(super) fn conflict(&self, batch: &Batch) -> (Note, FilePositions) {
        let (place, lines_at) = self.positions(&key(&batch.header));
        let at = clock::text(batch.received_at);
        let note = Note {
            clones: self.clones_seen(&batch.header, None, &at),
            at,
            lines_at,
            conflicts: 1,
            ..Note::default()
        };
        (note, place)
    }

    /// Returns the place of an epoch among those of its machine; 0 if it is known.
    fn next_order(&self, key: &Key) -> u64 {
        if self.epochs.contains_key(key) {
            return 0;
        }
        self.of_machine(&key.0).map(|(_, epoch)| epoch.order).max().unwrap_or_default() + 1
    }

    pub(super) fn positions(&self, key: &Key) -> (FilePositions, u64) {
        let Stem { machine, epoch } = stem(key);
        let known = self.epochs.get(key);
        let lines_at = known.map_or(0, |epoch| epoch.lines_end);
        let place = FilePositions {
            machine,
            epoch,
            lines_at,
            index_at: known.map_or(0, |epoch| epoch.index_end),
            ..FilePositions::default()
        };
        (place, lines_at)
    }

    /// Returns the sender of a batch that stores entries. Only new numbers prove that it knows the
    /// chain; the sender of others is the one known before.
    fn sender(&self, header: &BatchHeader, key: &Key, change: &Change) -> Option<Sender> {
        let known = self.epochs.get(key);
        if let Some(known) = known.filter(|_| change.new.is_empty()) {
            return (change.accepted > 0).then(|| known.sender(&key.1));
        }
        let earlier = known.and_then(|epoch| epoch.previous_epoch.clone());
        Some(Sender {
            epoch: header.epoch.clone(),
            previous_epoch: header.previous_epoch.clone().or(earlier),
            identity: header.identity(),
            config_hash: header.config_hash,
        })
    }

    /// Owner and end of an epoch; `None` if nothing of it is held.
    pub(super) fn epoch(&self, key: &Key) -> Option<EpochView<'_>> {
        let epoch = self.epochs.get(key)?;
        Some(EpochView {
            owner: epoch.owner.as_ref().map(|owner| owner.key),
            user: &epoch.identity.user,
            next_seq: epoch.ledger.next_seq(),
        })
    }

    fn of_machine(&self, machine: &str) -> impl Iterator<Item = (&Key, &Epoch)> {
        let epochs = self.epochs.range((machine.to_owned(), String::new())..);
        epochs.take_while(move |((of, _), _)| of == machine).map(|(key, epoch)| (key, &**epoch))
    }

    /// Returns the same identity as a neighbour of an epoch has, if there is one.
    fn share(&self, key: &Key, identity: &Identity) -> Arc<Identity> {
        let before = self.epochs.range(..key).next_back();
        let after = self.epochs.range((Bound::Excluded(key), Bound::Unbounded)).next();
        let mut known = before.into_iter().chain(after).map(|(_, epoch)| &epoch.identity);
        let known = known.find(|known| ***known == *identity);
        known.map_or_else(|| Arc::new(identity.clone()), Arc::clone)
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
    /// unknown epoch is ignored unless it names the sender. `record_length` is the size of its record
    /// in the index, with damaged bytes before it.
    pub(super) fn record(&mut self, key: &Key, note: &Note, record_length: u64) {
        self.figures.mark(&key.0);
        if let Some(sender) = &note.sender {
            self.note_hostname(sender);
            self.note_sender(key, sender, note);
        }
        let Some(epoch) = self.epochs.get_mut(key) else { return };
        epoch.ledger.apply(&note.change);
        if !note.change.new.is_empty() {
            epoch.last = None;
        }
        if note.is_of_batch() {
            epoch.last_seen.clone_from(&note.at);
        }
        epoch.point = None;
        epoch.notes.add(epoch.index_end, record_length, note);
        epoch.note_removal(note);
        if let Some(device) = &note.device {
            epoch.own(device);
        }
        if let Some(heartbeat) = &note.heartbeat
            && epoch.heartbeat.as_ref().is_none_or(|known| known.seq <= heartbeat.seq)
        {
            epoch.heartbeat = Some(heartbeat.clone());
        }
        if let Some(ended) = note.ended.as_ref().filter(|_| epoch.ended.is_none()) {
            epoch.ended = Some(ended.clone());
            self.reporters.entry(ended.epoch.clone()).or_default().insert(key.0.clone());
        }
        epoch.lines_end = note.lines_at + note.bytes;
        epoch.index_end += record_length;
        epoch.conflicts += note.conflicts;
        epoch.repetitions += note.repeated.iter().map(RepeatedLines::count).sum::<u64>();
        if !note.change.new.is_empty() {
            epoch.grew_at.clone_from(&note.at);
            self.lineages.entry(epoch.lineage(&key.0)).or_default().enter(&key.1);
        }
        self.note_clones(&key.0, &note.clones);
    }

    /// Takes over the sender of a note, which begins the epoch if that is unknown.
    fn note_sender(&mut self, key: &Key, sender: &Sender, note: &Note) {
        let known = self.epochs.get(key).map(|epoch| &epoch.identity);
        let identity = match known.filter(|known| ***known == sender.identity) {
            Some(known) => known.clone(),
            None => self.share(key, &sender.identity),
        };
        if let Some(epoch) = self.epochs.get_mut(key) {
            epoch.identity = identity;
            epoch.config_hash = sender.config_hash;
            if epoch.previous_epoch != sender.previous_epoch {
                epoch.previous_epoch.clone_from(&sender.previous_epoch);
            }
            return;
        }
        let epoch = Epoch {
            ledger: Ledger::default(),
            previous_epoch: sender.previous_epoch.clone(),
            config_hash: sender.config_hash,
            first: identity.clone(),
            identity,
            first_seen: note.at.clone(),
            last_seen: String::new(),
            grew_at: String::new(),
            lines_end: 0,
            index_end: 0,
            conflicts: 0,
            repetitions: 0,
            warned: false,
            last: None,
            owner: None,
            keyed: note.keyed,
            order: note.order,
            notes: NoteIndex::default(),
            heartbeat: None,
            ended: None,
            removed: Vec::new(),
            removed_rows: 0,
            lines_from: 0,
            point: None,
        };
        self.epochs.insert(key.clone(), Box::new(epoch));
    }

    fn note_hostname(&mut self, sender: &Sender) {
        let host = &sender.identity.hostname;
        if self.hostnames.get(&sender.epoch) == Some(host) {
            return;
        }
        let known = self.hostnames.insert(sender.epoch.clone(), host.clone());
        if known.is_none() {
            // An epoch that is known, of any machine, is not missing as a whole.
            let reporters = self.reporters.get(&sender.epoch).into_iter().flatten();
            reporters.for_each(|machine| self.figures.mark(machine));
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
        self.figures.clear();
        let mut by_time: Vec<_> = self.epochs.iter().collect();
        by_time.sort_by(|(_, a), (_, b)| a.grew_at.cmp(&b.grew_at));
        for ((machine, id), epoch) in by_time {
            self.lineages.entry(epoch.lineage(machine)).or_default().enter(id);
            let host = &epoch.identity.hostname;
            if self.hostnames.get(id) != Some(host) {
                self.hostnames.insert(id.clone(), host.clone());
            }
        }
    }

    /// Ledger of an epoch.
    pub(super) fn ledger(&self, key: &Key) -> Option<&Ledger> {
        self.epochs.get(key).map(|epoch| &epoch.ledger)
    }

    /// Numbers of an epoch whose lines were removed.
    pub(super) fn removed(&self, key: &Key) -> &[Range] {
        self.epochs.get(key).map_or(&[], |epoch| &epoch.removed)
    }

    /// Position before which an epoch has no lines.
    pub(super) fn lines_from(&self, key: &Key) -> u64 {
        self.epochs.get(key).map_or(0, |epoch| epoch.lines_from)
    }

    /// Returns the oldest lines of epochs that go on: those whose batches are all from before a time,
    /// RFC 3339, with their size in bytes.
    pub(super) fn older(&self, time: &str) -> Vec<(Key, OldLines, u64)> {
        let older = self.epochs.iter().filter_map(|(key, epoch)| {
            let old = epoch.notes.older(time)?;
            let bytes = old.end.saturating_sub(epoch.lines_from);
            (bytes > 0).then(|| (key.clone(), old, bytes))
        });
        older.collect()
    }

    /// Returns up to `limit` keys in order, from the first one after `after` on.
    pub(super) fn scan(&self, after: Option<EpochKey>, limit: usize) -> Vec<EpochKey> {
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.into_key()));
        let keys = self.epochs.range((from, Bound::Unbounded)).map(|(key, _)| key);
        let keys = keys.take(limit).cloned();
        keys.map(|(machine, epoch)| EpochKey { machine, epoch }).collect()
    }

    /// Rows over the index of an epoch.
    pub(super) fn notes(&self, key: &Key) -> &NoteIndex {
        static NONE: NoteIndex = NoteIndex::new();
        self.epochs.get(key).map_or(&NONE, |epoch| &epoch.notes)
    }

    /// End positions of an epoch's lines and index.
    pub(super) fn ends(&self, key: &Key) -> (u64, u64) {
        self.epochs.get(key).map_or((0, 0), |epoch| (epoch.lines_end, epoch.index_end))
    }
}

/// Figures of the last heartbeat of a batch, if it is stored now.
fn new_heartbeat(batch: &Batch, change: &Change) -> Option<Box<Heartbeat>> {
    let heartbeat = batch.heartbeat()?;
    let is_new = |new: &Range| (new.first..=new.last).contains(&heartbeat.seq);
    change.new.iter().any(is_new).then(|| Box::new(heartbeat.clone()))
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
    /// Sender of the last batch, for a note.
    fn sender(&self, id: &str) -> Sender {
        Sender {
            epoch: id.to_owned(),
            previous_epoch: self.previous_epoch.clone(),
            identity: Identity::clone(&self.identity),
            config_hash: self.config_hash,
        }
    }

    /// Takes over which lines are left.
    fn note_removal(&mut self, note: &Note) {
        let (spans, rows) = self.notes.removed_spans(self.removed_rows);
        self.removed_rows = rows;
        if note.removed {
            self.removed = self.ledger.covered();
        } else {
            self.removed.extend(spans);
        }
        // A repair may have found the file shorter.
        let before = if note.removed { 0 } else { self.lines_from.max(note.removed_before) };
        self.lines_from = before.min(note.lines_at);
    }

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

    /// Key by which epochs of a machine are ordered. Those without a number are older, and have their
    /// time only.
    fn began(&self) -> (u64, &str) {
        (self.order, if self.order == 0 { &self.first_seen } else { "" })
    }

    fn lineage(&self, machine: &str) -> LineageKey {
        let device = self.owner.as_ref().map(|owner| owner.key);
        (machine.to_owned(), self.identity.user.clone(), device)
    }
}

#[cfg(test)]
mod tests;
