//! The thread that judges and makes durable. It takes all batches that wait, writes them to the
//! journal, syncs once, answers them all, and hands them on to be brought to the epochs' files.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use siem_protocol::{Digest, Receipt};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::{
    StoreError,
    applier::{Applier, Values},
    catalog::{self, Catalog, Key},
    copy,
    frame::{Frame, Lines},
    journal::Journal,
    note::Note,
    repeats::Repeats,
};
use crate::{batch::Batch, ledger::Refusal, stats::Stats};

/// How much is written under one sync.
const GROUP_BYTES: usize = 32 << 20;
const GROUP_BATCHES: usize = 1024;
/// How long after a sync the next one begins at the earliest. While many send, a sync is shared by
/// more of them; who sends alone now and then waits for nothing.
const PAUSE: Duration = Duration::from_millis(5);

/// What the writer is asked.
#[derive(Debug)]
pub(super) enum Job {
    /// To store a batch.
    Store(Box<Batch>, oneshot::Sender<Result<Receipt, StoreError>>),
    /// To tell what is held.
    Stats(oneshot::Sender<Stats>),
}

/// What the thread owns.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) catalog: Catalog,
    pub(super) repeats: Repeats,
    pub(super) journal: Journal,
    pub(super) applier: Applier,
    /// A journal of more bytes is sealed.
    pub(super) journal_bytes: u64,
    /// Batches put off, since one of their epoch was in the group before.
    pub(super) deferred: VecDeque<Waiting>,
    /// When the journal was synced last.
    pub(super) synced: Option<Instant>,
}

/// A batch and who waits for its answer.
#[derive(Debug)]
pub(super) struct Waiting {
    batch: Box<Batch>,
    answer: oneshot::Sender<Result<Receipt, StoreError>>,
}

/// A batch that was judged and becomes durable with its group.
struct Staged {
    frame: Frame,
    key: Key,
    note: Note,
    outcome: Result<Receipt, StoreError>,
    answer: oneshot::Sender<Result<Receipt, StoreError>>,
}

impl Writer {
    /// Works until there is nobody left to ask.
    pub(super) fn run(mut self) -> PathBuf {
        while let Some(group) = self.gather() {
            self.turn(group);
        }
        if self.applier.settle().is_ok() {
            self.seal();
        }
        if let Err(error) = self.journal.trim() {
            warn!(code = "journal_truncate_failed", %error, "could not take off what was written ahead in the journal");
        }
        self.applier.finish()
    }

    /// Waits for a batch and takes all that wait by then; `None` when all senders are gone.
    fn gather(&mut self) -> Option<Vec<Waiting>> {
        let mut group: Vec<Waiting> = self.deferred.drain(..).collect();
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
                Some(Job::Store(batch, answer)) => {
                    bytes += batch.size();
                    group.push(Waiting { batch, answer });
                }
                Some(Job::Stats(answer)) => self.applier.tell(self.catalog.stats(), answer),
                None => return Some(group),
            }
        }
    }

    fn pause(&self) {
        let since = self.synced.map_or(PAUSE, |synced| synced.elapsed());
        if let Some(rest) = PAUSE.checked_sub(since).filter(|rest| !rest.is_zero()) {
            thread::sleep(rest);
        }
    }

    fn turn(&mut self, group: Vec<Waiting>) {
        if let Err(error) = self.prepare() {
            warn!(code = "store_write_failed", %error, batches = group.len(), "refused batches, the store cannot write");
            for waiting in group {
                reply(waiting.answer, Err(StoreError::from_io(copy(&error))));
            }
            return;
        }
        let mut staged = Vec::with_capacity(group.len());
        let mut touched = HashSet::new();
        // Which of the staged batches are a machine's.
        let mut machines: HashMap<String, Vec<usize>> = HashMap::new();
        for waiting in group {
            let key = catalog::key(&waiting.batch.header);
            // What a batch changes must be known before the next of its epoch is judged, and what it
            // brings of a generation before another epoch's batch is searched for that.
            let mut others = machines.get(&key.0).into_iter().flatten().map(|at| &staged[*at]);
            if touched.contains(&key) || others.any(|one| shares_a_generation(one, &waiting.batch))
            {
                // Those of its epoch behind it are put off too, so that they stay in order.
                touched.insert(key);
                self.deferred.push_back(waiting);
                continue;
            }
            if let Some(one) = self.judge(waiting, key.clone()) {
                machines.entry(key.0.clone()).or_default().push(staged.len());
                touched.insert(key);
                staged.push(one);
            }
        }
        if !staged.is_empty() {
            self.commit(staged);
        }
    }

    /// Brings what an earlier turn left undone to its end.
    fn prepare(&mut self) -> io::Result<()> {
        self.applier.mend()?;
        if self.journal.is_broken() {
            self.applier.sealed(self.journal.seal()?);
        }
        Ok(())
    }

    fn judge(&mut self, waiting: Waiting, key: Key) -> Option<Staged> {
        let Waiting { batch, answer } = waiting;
        let stem = catalog::stem(&key);
        if batch.header.redelivery && self.catalog.ledger(&key).is_none() {
            // Nothing can be a hole of an epoch that is not known: no file is made for it.
            let accepted_seqs = Some(Vec::new());
            reply(answer, Ok(Receipt { accepted_seqs, ..Receipt::default() }));
            return None;
        }
        let mut values = Values { applier: &self.applier, stem: &stem };
        let mut judged = match self.catalog.judge(&batch, &mut values) {
            Ok(judged) => judged,
            Err(Refusal::Conflict { expected_seq }) => {
                warn!(
                    code = "batch_conflict",
                    machine = key.0,
                    epoch = key.1,
                    expected_seq,
                    "refused a conflicting batch"
                );
                // That it was refused is written down like all else, so that it is counted.
                let (note, place) = self.catalog.conflict(&batch);
                let lines = Lines::Of(batch, Vec::new());
                let frame = Frame { place, note: note.line(), values: Vec::new(), lines };
                let outcome = Err(StoreError::Conflict { expected_seq });
                return Some(Staged { frame, key, note, outcome, answer });
            }
            Err(Refusal::Values(error)) => {
                error!(code = "chain_read_failed", machine = key.0, epoch = key.1, %error, "could not read the chain");
                reply(answer, Err(StoreError::from_io(error)));
                return None;
            }
        };
        let others = self.catalog.others(&key);
        if !others.is_empty() {
            // Without the answer the lines are safe all the same, and an agent that waits for it
            // helps nobody.
            let stems = others.iter().map(|other| &other.stem);
            let found = self.applier.files(stems).and_then(|mut files| {
                self.repeats.find(&mut files, &batch, &judged.store, &others)
            });
            match found {
                Ok(repeated) => judged.note.repeated = repeated,
                Err(error) => {
                    error!(code = "repeats_read_failed", machine = key.0, epoch = key.1, %error, "could not tell whether lines came before in another epoch, stored them unmarked");
                }
            }
        }
        let new = &judged.note.change.new;
        let values = new.iter().flat_map(|new| batch.chain(new.first, new.last));
        let values = values.flat_map(|value| *value.as_bytes()).collect();
        let frame = Frame {
            place: judged.place,
            note: judged.note.line(),
            values,
            lines: Lines::Of(batch, judged.store),
        };
        Some(Staged { frame, key, note: judged.note, outcome: Ok(judged.receipt), answer })
    }

    fn commit(&mut self, staged: Vec<Staged>) {
        if let Err(error) = self.journal.append(staged.iter().map(|staged| &staged.frame)) {
            error!(code = "journal_write_failed", %error, batches = staged.len(), "could not write the journal");
            for staged in staged {
                reply(staged.answer, Err(StoreError::from_io(copy(&error))));
            }
            return;
        }
        self.synced = Some(Instant::now());
        for staged in staged {
            self.catalog.record(&staged.key, &staged.note, staged.frame.note.len() as u64);
            if let Some((_, last)) = staged.frame.values.split_last_chunk() {
                self.catalog.remember(&staged.key, Digest::from_bytes(*last));
            }
            log_findings(&staged);
            if let Some(found) = self.catalog.newly_unexplained(&staged.key, &staged.note) {
                let (machine, epoch) = &staged.key;
                let (claimed, held) = (found.claimed, found.held);
                warn!(code = "totals_mismatch", machine, epoch, below = found.below, ?claimed, ?held, missing = found.missing,
                    wrong = ?found.wrong, "what is held differs from what the agent claims, and no \
                    missing number explains it");
            }
            reply(staged.answer, staged.outcome);
            self.applier.add(staged.frame);
        }
        if self.journal.length() >= self.journal_bytes {
            self.seal();
        } else if self.journal.length() >= self.journal_bytes / 2 {
            self.journal.prepare_next(self.journal_bytes);
        }
    }

    fn seal(&mut self) {
        match self.journal.seal() {
            Ok(path) => self.applier.sealed(path),
            Err(error) => {
                warn!(code = "journal_rotate_failed", %error, "could not begin another journal, this one goes on")
            }
        }
    }
}

/// Whether both batches, of one machine, have lines of the same file.
fn shares_a_generation(one: &Staged, batch: &Batch) -> bool {
    let Lines::Of(other, _) = &one.frame.lines else { return false };
    other.generations().iter().any(|generation| batch.has_generation(generation))
}

fn log_findings(staged: &Staged) {
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
        info!(machine, epoch, of = repeated.of, lines, "lines came that another epoch has too");
    }
    for clone in &staged.note.clones {
        warn!(code = "clone_found", machine, epoch, kind = ?clone.kind, other = clone.other, "found a clone");
    }
}

/// Nobody may wait any more: then the answer goes nowhere, and the sender will send again.
fn reply(
    answer: oneshot::Sender<Result<Receipt, StoreError>>,
    result: Result<Receipt, StoreError>,
) {
    drop(answer.send(result));
}
