//! Thread that plans batches and makes them durable. It takes all waiting batches, writes them to
//! the journal, syncs once, responds to all, and passes them on to the applier.

mod devices;
mod erase;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use siem_protocol::{Digest, Receipt};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

pub(super) use devices::confirm;

use super::{
    EpochKey, StoreError, StoredBatch,
    admission::{self, Admission},
    applier::{Applier, Values},
    catalog::{self, Catalog, Key},
    copy,
    erase::EraseLines,
    frame::{self, FilePositions, Frame, Lines},
    index_record,
    journal::Journal,
    note::Note,
    note_index::OldLines,
    range_read::RangeRead,
    repeats::{RepeatedLines, Repeats},
};
use crate::{
    batch::Batch,
    fleet::StatsQuery,
    ledger::{Change, Ledger, Range, Refusal},
    metrics::Durations,
    stats::Stats,
    trust::{Event, EventKind, Registry},
};

/// Maximum size of a group that shares one sync.
const GROUP_BYTES: usize = 32 << 20;
const GROUP_BATCHES: usize = 1024;
/// Minimum time between two syncs. With many senders more of them share a sync; a single sender
/// does not wait.
const PAUSE: Duration = Duration::from_millis(5);

/// Channel for the response to a batch.
type Responder = oneshot::Sender<Result<StoredBatch, StoreError>>;

/// Request to the writer.
#[derive(Debug)]
pub(super) enum Job {
    /// Store a batch.
    Store(Box<Batch>, Responder),
    /// Return statistics.
    Stats(Box<StatsQuery>, oneshot::Sender<Stats>),
    /// Return where the lines of a range are; `None` if nothing of the epoch is held.
    Locate(Key, Range, oneshot::Sender<Option<RangeRead>>),
    /// Return the ledger of an epoch.
    Ledger(Key, oneshot::Sender<Option<Ledger>>),
    /// Wait until all acknowledged lines are in the files of the epochs.
    Settle(oneshot::Sender<io::Result<()>>),
    /// Replace lines by tombstones.
    Erase(Box<EraseLines>, oneshot::Sender<io::Result<()>>),
    /// Remove the lines of epochs that have a size, at a time, RFC 3339.
    Remove(Vec<(Key, u64)>, String, oneshot::Sender<io::Result<Vec<Key>>>),
    /// Return the oldest lines of epochs whose batches are from before a time, RFC 3339.
    Older(String, oneshot::Sender<Vec<(Key, OldLines, u64)>>),
    /// Remove the lines of epochs before a position, at a time, RFC 3339.
    RemoveBefore(Vec<(Key, u64)>, String, oneshot::Sender<io::Result<()>>),
    /// Delete all journals of what was written before; with the channel for the result.
    Rotate(oneshot::Sender<oneshot::Receiver<io::Result<()>>>),
    /// Return the keys of epochs.
    Scan(Option<EpochKey>, usize, oneshot::Sender<Vec<EpochKey>>),
    /// Wait like for a disk that does not answer.
    #[cfg(test)]
    Hang(std::sync::mpsc::Receiver<()>),
}

/// State of the thread.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) catalog: Catalog,
    pub(super) repeats: Repeats,
    pub(super) journal: Journal,
    pub(super) applier: Applier,
    /// Devices; without it, all batches count as unsealed.
    pub(super) registry: Option<Arc<Registry>>,
    /// Size in bytes from which a journal is sealed.
    pub(super) journal_bytes: u64,
    /// Batches that were deferred, because one of their epoch was in the previous group.
    pub(super) deferred: VecDeque<PendingBatch>,
    /// Time of the last sync of the journal.
    pub(super) synced: Option<Instant>,
    /// Time that each write of the journal took.
    pub(super) syncs: Durations,
}

/// A batch and the channel for its response.
#[derive(Debug)]
pub(super) struct PendingBatch {
    batch: Box<Batch>,
    responder: Responder,
}

/// A planned batch that becomes durable with its group.
struct StagedBatch {
    frame: Frame,
    key: Key,
    note: Note,
    outcome: Result<StoredBatch, StoreError>,
    /// Events, once the note is durable.
    events: Vec<Event>,
    responder: Responder,
}

impl Writer {
    /// Runs until all senders are closed.
    pub(super) fn run(mut self) -> PathBuf {
        while let Some(group) = self.collect_group() {
            self.process(group);
        }
        if self.applier.flush().is_ok() {
            self.seal();
        }
        if let Err(error) = self.journal.trim() {
            warn!(code = "journal_truncate_failed", %error, "cannot truncate the zeros of the journal");
        }
        self.applier.finish()
    }

    /// Waits for a batch and takes all that are waiting then; `None` if all senders are closed.
    fn collect_group(&mut self) -> Option<Vec<PendingBatch>> {
        let mut group: Vec<PendingBatch> = self.deferred.drain(..).collect();
        let mut bytes = 0;
        loop {
            let full = bytes >= GROUP_BYTES || group.len() >= GROUP_BATCHES;
            let next = if group.is_empty() {
                let first = self.jobs.blocking_recv()?;
                self.pause();
                Some(first)
            } else if full {
                None
            } else {
                self.jobs.try_recv().ok()
            };
            match next {
                Some(Job::Store(batch, responder)) => {
                    bytes += batch.size();
                    group.push(PendingBatch { batch, responder });
                }
                Some(query) => self.answer(query),
                None => return Some(group),
            }
        }
    }

    /// Answers a request that is no batch. Nothing that was collected is planned yet.
    fn answer(&mut self, query: Job) {
        match query {
            Job::Settle(responder) => drop(responder.send(self.applier.flush())),
            Job::Erase(erase, responder) => drop(responder.send(self.erase(&erase))),
            Job::Remove(keys, at, responder) => drop(responder.send(self.remove(&keys, &at))),
            Job::Older(time, responder) => drop(responder.send(self.catalog.older(&time))),
            Job::RemoveBefore(ends, at, responder) => {
                drop(responder.send(self.remove_before(&ends, &at)));
            }
            Job::Rotate(responder) => drop(responder.send(self.rotate())),
            Job::Store(..) => {}
            #[cfg(test)]
            Job::Hang(until) => drop(until.recv()),
            // The client did not wait.
            Job::Stats(_, responder) if responder.is_closed() => {}
            Job::Stats(query, responder) => {
                let stats = self.catalog.stats(&query, self.registry.as_deref());
                self.applier.respond(stats, responder);
            }
            Job::Locate(key, range, responder) => {
                let (is_known, rows) =
                    (self.catalog.ledger(&key).is_some(), self.catalog.notes(&key).ranges(range));
                let (stem, (_, index_end)) = (catalog::stem(&key), self.catalog.ends(&key));
                let found = RangeRead { stem, range, rows, index_end };
                self.applier.respond(is_known.then_some(found), responder);
            }
            Job::Ledger(key, responder) => {
                drop(responder.send(self.catalog.ledger(&key).cloned()));
            }
            Job::Scan(after, limit, responder) => {
                drop(responder.send(self.catalog.scan(after, limit)));
            }
        }
    }

    fn pause(&self) {
        let since = self.synced.map_or(PAUSE, |synced| synced.elapsed());
        if let Some(rest) = PAUSE.checked_sub(since).filter(|rest| !rest.is_zero()) {
            thread::sleep(rest);
        }
    }

    fn process(&mut self, group: Vec<PendingBatch>) {
        if let Err(error) = self.finish_earlier_work() {
            warn!(code = "store_write_failed", %error, batches = group.len(), "rejected batches: the store cannot write");
            for waiting in group {
                reply(waiting.responder, Err(StoreError::from_io(copy(&error))));
            }
            return;
        }
        let mut staged = Vec::with_capacity(group.len());
        let mut touched = HashSet::new();
        // Indexes of the staged batches, by machine.
        let mut machines: HashMap<String, Vec<usize>> = HashMap::new();
        for waiting in group {
            let key = catalog::key(&waiting.batch.header);
            // The changes by a batch must be known before the next one of its epoch is planned, and
            // its lines of a generation before another epoch's batch is searched for them.
            let mut others = machines.get(&key.0).into_iter().flatten().map(|at| &staged[*at]);
            // The first batch of a device in an epoch is compared with the machine's other epochs.
            let begins = waiting.batch.seal.valid().is_some() && self.catalog.epoch(&key).is_none();
            let depends = |one| begins || shares_generation(one, &waiting.batch);
            if touched.contains(&key) || others.any(depends) {
                // Later batches of its epoch are deferred too, so that they stay in order.
                touched.insert(key);
                self.deferred.push_back(waiting);
                continue;
            }
            if let Some(one) = self.stage(waiting, key.clone()) {
                machines.entry(key.0.clone()).or_default().push(staged.len());
                touched.insert(key);
                staged.push(one);
            }
        }
        if !staged.is_empty() {
            self.commit(staged);
        }
    }

    /// Completes work that an earlier group left unfinished.
    fn finish_earlier_work(&mut self) -> io::Result<()> {
        self.applier.retry_failed()?;
        if self.journal.is_broken() {
            self.applier.sealed(self.journal.seal()?);
        }
        Ok(())
    }

    fn stage(&mut self, waiting: PendingBatch, key: Key) -> Option<StagedBatch> {
        let PendingBatch { batch, responder } = waiting;
        match admission::admit(&self.catalog, self.registry.as_deref(), &batch, &key) {
            Ok(admission) => self.stage_admitted(batch, key, &admission, responder),
            Err(refused) => {
                self.refuse(refused, &batch, &key, responder);
                None
            }
        }
    }

    fn stage_admitted(
        &mut self,
        batch: Box<Batch>,
        key: Key,
        admission: &Admission,
        responder: Responder,
    ) -> Option<StagedBatch> {
        let stem = catalog::stem(&key);
        if batch.header.redelivery && self.catalog.ledger(&key).is_none() {
            // An unknown epoch cannot have a hole: no file is created for it.
            let accepted_seqs = Some(Vec::new());
            let receipt = Receipt { accepted_seqs, ..Receipt::default() };
            reply(responder, Ok(StoredBatch { receipt, point: None }));
            return None;
        }
        let index = self.catalog.notes(&key);
        let mut values = Values { applier: &self.applier, stem: &stem, index };
        let mut planned = match self.catalog.plan(&batch, admission, &mut values) {
            Ok(planned) => planned,
            Err(Refusal::Conflict { expected_seq }) => {
                warn!(
                    code = "batch_conflict",
                    machine = key.0,
                    epoch = key.1,
                    expected_seq,
                    "rejected a conflicting batch"
                );
                return self.stage_conflict(batch, key, admission, expected_seq, responder);
            }
            Err(Refusal::Values(error)) => {
                error!(code = "chain_read_failed", machine = key.0, epoch = key.1, %error, "cannot read the chain");
                reply(responder, Err(StoreError::from_io(error)));
                return None;
            }
        };
        let point = match self.point(&batch, &key, &planned.note) {
            Ok(point) => point,
            Err(error) => {
                reply(responder, Err(error));
                return None;
            }
        };
        if batch.header.redelivery && planned.note.change == Change::default() {
            // Anyone can send numbers that are no dead letters.
            reply(responder, Ok(StoredBatch { receipt: planned.receipt, point }));
            return None;
        }
        if let Some(error) = self.find_clone(&batch, &key, admission, &planned.note) {
            reply(responder, Err(error));
            return None;
        }
        if let Some(repeated) = self.find_repeats(&batch, &key, &planned.store) {
            planned.note.repeated = repeated;
        }
        let alarm = admission.alarm.map(|alarm| admission::alarm_event(alarm, None, &batch));
        let events = alarm.into_iter().chain(self.clone_events(&batch, &planned.note)).collect();
        let frame = match encode(batch, planned.place, &planned.note, planned.store) {
            Ok(frame) => frame,
            Err(error) => {
                reply(responder, Err(StoreError::from_io(error)));
                return None;
            }
        };
        let outcome = Ok(StoredBatch { receipt: planned.receipt, point });
        Some(StagedBatch { frame, key, note: planned.note, outcome, events, responder })
    }

    /// Stages the note about a batch that does not continue its epoch, so that it is counted.
    /// Returns `None` if nothing of the epoch is held: no file is created for it.
    fn stage_conflict(
        &self,
        batch: Box<Batch>,
        key: Key,
        admission: &Admission,
        expected_seq: u64,
        responder: Responder,
    ) -> Option<StagedBatch> {
        let error = StoreError::Conflict { expected_seq };
        let mismatch = admission.strict.then(|| {
            let mut event = batch.event(EventKind::ChainMismatch);
            event.detail = Some(format!("expected seq {expected_seq}"));
            event
        });
        if self.catalog.ledger(&key).is_none() {
            self.record(mismatch);
            reply(responder, Err(error));
            return None;
        }
        let (note, place) = self.catalog.conflict(&batch);
        let events = mismatch.into_iter().chain(self.clone_events(&batch, &note)).collect();
        match encode(batch, place, &note, Vec::new()) {
            Ok(frame) => {
                Some(StagedBatch { frame, key, note, outcome: Err(error), events, responder })
            }
            Err(error) => {
                reply(responder, Err(StoreError::from_io(error)));
                None
            }
        }
    }

    /// Searches the other epochs of the machine for the lines of a batch.
    fn find_repeats(
        &mut self,
        batch: &Batch,
        key: &Key,
        store: &[usize],
    ) -> Option<Vec<RepeatedLines>> {
        let others = self.catalog.others(key);
        if others.is_empty() {
            return None;
        }
        let stems = others.iter().map(|other| &other.stem);
        let written = self.applier.files(stems).map(drop);
        let found = written.and_then(|()| self.repeats.find(batch, store, &others));
        // Without the result of the search the lines are still safe, and a waiting agent gains
        // nothing from an error.
        found
            .inspect_err(|error| {
                error!(code = "repeats_read_failed", machine = key.0, epoch = key.1, %error, "cannot search other epochs for repeated lines, stored the batch unmarked");
            })
            .ok()
    }

    fn commit(&mut self, staged: Vec<StagedBatch>) {
        let begun = Instant::now();
        if let Err(error) = self.journal.append(staged.iter().map(|staged| &staged.frame)) {
            error!(code = "journal_write_failed", %error, batches = staged.len(), "cannot write the journal");
            for staged in staged {
                reply(staged.responder, Err(StoreError::from_io(copy(&error))));
            }
            return;
        }
        self.syncs.count_since(begun);
        self.synced = Some(Instant::now());
        let mut frames = Vec::with_capacity(staged.len());
        for staged in staged {
            self.catalog.record(&staged.key, &staged.note, staged.frame.record.len() as u64);
            if let Some(last) = staged.last_value() {
                self.catalog.remember(&staged.key, last);
            }
            log_findings(&staged);
            if let Some((epoch, lost)) = self.catalog.newly_lost(&staged.key, &staged.note) {
                let (machine, by) = &staged.key;
                let Range { first, last } = lost;
                warn!(
                    code = "gap_found",
                    machine,
                    epoch,
                    first,
                    last,
                    by,
                    "found a gap: the agent delivered these before it began another epoch"
                );
            }
            let outcome = self.finish(&staged);
            if let Some(found) = self.catalog.newly_unexplained(&staged.key, &staged.note) {
                let (machine, epoch) = &staged.key;
                let (claimed, held) = (found.claimed, found.held);
                warn!(code = "totals_mismatch", machine, epoch, below = found.below, ?claimed, ?held, missing = found.missing,
                    wrong = ?found.wrong, "entries differ from the agent's totals, and no missing number explains it");
            }
            self.record(staged.events);
            reply(staged.responder, outcome.unwrap_or(staged.outcome));
            frames.push(staged.frame);
        }
        // After all responses: the thread that takes them would delay these. A later request waits for it.
        frames.into_iter().for_each(|frame| self.applier.add(frame));
        if self.journal.length() >= self.journal_bytes {
            self.seal();
        } else if self.journal.length() >= self.journal_bytes / 2 {
            self.journal.prepare_next(self.journal_bytes);
        }
    }

    /// Completes what follows from a recorded batch, before the response. Returns a response in
    /// place of the planned one if that fails; the batch is stored nevertheless, and is a duplicate
    /// when it arrives again.
    fn finish(&mut self, staged: &StagedBatch) -> Option<Result<StoredBatch, StoreError>> {
        if let Ok(StoredBatch { point: Some(point), .. }) = &staged.outcome {
            self.catalog.remember_point(&staged.key, point.clone());
        }
        let registry = self.registry.as_ref()?;
        if let Some(device) = &staged.note.device {
            registry.note_owner(device.key);
        }
        let key = self.catalog.confirms(&staged.key)?;
        if registry.device(&key).is_none_or(|device| device.confirmed_by.is_some()) {
            return None;
        }
        confirm(registry, &key).err().map(|error| Err(StoreError::from_io(error)))
    }

    fn seal(&mut self) {
        match self.journal.seal() {
            Ok(path) => self.applier.sealed(path),
            Err(error) => {
                warn!(code = "journal_rotate_failed", %error, "cannot start another journal, continuing with this one")
            }
        }
    }
}

impl StagedBatch {
    /// Last value of the chain that the batch adds.
    fn last_value(&self) -> Option<Digest> {
        let Lines::Of(batch, _) = &self.frame.lines else { return None };
        let new = self.note.change.new.last()?;
        batch.chain(new.last, new.last).first().copied()
    }
}

/// Encodes a planned batch, of which the lines in `store` are stored.
fn encode(
    batch: Box<Batch>,
    place: FilePositions,
    note: &Note,
    store: Vec<usize>,
) -> io::Result<Frame> {
    let new = note.change.new.iter();
    let values = new.flat_map(|new| batch.chain(new.first, new.last));
    let values: Vec<u8> = values.flat_map(|value| *value.as_bytes()).collect();
    let starts = frame::starts(&batch, &store, place.lines_at)?;
    let record = index_record::encode(&note.line(), &values, &starts)?;
    Ok(Frame { place, record, lines: Lines::Of(batch, store) })
}

/// Reports whether both batches, of one machine, have lines of the same generation.
fn shares_generation(one: &StagedBatch, batch: &Batch) -> bool {
    let Lines::Of(other, _) = &one.frame.lines else { return false };
    other.generations().iter().any(|generation| batch.has_generation(generation))
}

fn log_findings(staged: &StagedBatch) {
    let (machine, epoch) = (&staged.key.0, &staged.key.1);
    let change = &staged.note.change;
    if let Some(gap) = change.gap {
        warn!(
            code = "gap_found",
            machine,
            epoch,
            first = gap.first,
            last = gap.last,
            "found a gap"
        );
    }
    for found in &change.breaks {
        warn!(code = "chain_break_found", machine, epoch, seq = found.seq, kind = ?found.kind, "found a break in the chain");
    }
    for repeated in &staged.note.repeated {
        let lines = repeated.count();
        info!(
            machine,
            epoch,
            of = repeated.of,
            lines,
            "received lines that another epoch also has"
        );
    }
    for clone in &staged.note.clones {
        warn!(code = "clone_found", machine, epoch, kind = ?clone.kind, other = clone.other, "found a clone");
    }
}

/// The receiver of the response may have been dropped: the sender then sends again.
fn reply(responder: Responder, result: Result<StoredBatch, StoreError>) {
    drop(responder.send(result));
}
