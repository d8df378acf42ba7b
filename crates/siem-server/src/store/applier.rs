//! The thread that brings what the journal holds to the epochs' files. Who waits for an answer
//! waits for the journal alone, and not for thousands of files.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    io,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use siem_protocol::Digest;
use tokio::sync::oneshot;
use tracing::error;

use super::{
    checkpoint::{Checkpointer, Sealed},
    copy,
    epoch::{EpochFiles, Stem},
    frame::Frame,
};
use crate::{ledger::ChainValues, stats::Stats};

/// How many bytes may wait. The journal has them, so that only memory is at stake.
const WAITING_BYTES: u64 = 64 << 20;
/// How many frames may wait, however small.
const WAITING_FRAMES: usize = 16 << 10;

/// Writes to the epochs' files, in the order of the journal.
#[derive(Debug)]
pub(super) struct Applier {
    shared: Arc<Shared>,
    thread: thread::JoinHandle<PathBuf>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// The queue has changed.
    changed: Condvar,
    files: Mutex<EpochFiles>,
}

#[derive(Debug, Default)]
struct Queue {
    work: VecDeque<Work>,
    bytes: u64,
    /// How many frames wait, by epoch.
    frames: HashMap<Stem, usize>,
    /// Why the first frame could not be written. Set until somebody wants it tried again.
    failed: Option<io::Error>,
    /// Nothing will be added.
    ends: bool,
    /// Nothing will be done.
    ended: bool,
}

#[derive(Debug)]
enum Work {
    /// To be written; it waits until that is done.
    Frame(Box<Frame>),
    /// The journal of the frames before is complete.
    Sealed(PathBuf),
    /// An answer that is to be given behind the frames before.
    Tell(Box<Stats>, oneshot::Sender<Stats>),
}

impl Applier {
    /// Starts the thread; complete journals go to `checkpointer`.
    pub(super) fn start(files: EpochFiles, checkpointer: Checkpointer) -> io::Result<Self> {
        let (queue, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { queue, changed, files: Mutex::new(files) });
        let below = shared.clone();
        let run = move || work(&below, checkpointer);
        let thread = thread::Builder::new().name("applier".into()).spawn(run)?;
        Ok(Self { shared, thread })
    }

    /// Adds a frame that the journal has. Waits while too much waits.
    pub(super) fn add(&self, frame: Frame) {
        let (stem, bytes) = (Stem::of(&frame.place), frame.length());
        let full =
            |queue: &Queue| queue.bytes >= WAITING_BYTES || queue.work.len() >= WAITING_FRAMES;
        let mut queue = self.shared.wait(|queue| full(queue) && queue.failed.is_none());
        queue.bytes += bytes;
        *queue.frames.entry(stem).or_default() += 1;
        self.push(queue, Work::Frame(Box::new(frame)));
    }

    /// Adds that the journal at `path` is complete.
    pub(super) fn sealed(&self, path: PathBuf) {
        self.push(self.shared.queue(), Work::Sealed(path));
    }

    /// Gives an answer once all that was added is in the files, or a frame can't be written.
    pub(super) fn tell(&self, stats: Stats, answer: oneshot::Sender<Stats>) {
        let queue = self.shared.queue();
        match queue.failed.is_some() || queue.ended {
            true => drop(answer.send(stats)),
            false => self.push(queue, Work::Tell(Box::new(stats), answer)),
        }
    }

    fn push(&self, mut queue: MutexGuard<'_, Queue>, work: Work) {
        queue.work.push_back(work);
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Where a frame could not be written, tries again and waits for what comes of it.
    pub(super) fn mend(&self) -> io::Result<()> {
        // In a statement of its own, so that the queue is free again.
        let failed = self.shared.queue().failed.is_some();
        if failed { self.settle() } else { Ok(()) }
    }

    /// Waits until all that was added is in the files.
    pub(super) fn settle(&self) -> io::Result<()> {
        self.shared.queue().failed = None;
        self.shared.changed.notify_all();
        // A frame counts until it is written, not until its turn has come.
        let queue = self.shared.wait(|queue| !queue.frames.is_empty() && queue.failed.is_none());
        queue.check(queue.frames.is_empty())
    }

    /// The files, once all that was added of `stems` is in them.
    pub(super) fn files<'a>(
        &self,
        stems: impl IntoIterator<Item = &'a Stem>,
    ) -> io::Result<MutexGuard<'_, EpochFiles>> {
        for stem in stems {
            let waits = |queue: &Queue| queue.frames.contains_key(stem);
            let queue = self.shared.wait(|queue| waits(queue) && queue.failed.is_none());
            queue.check(!waits(&queue))?;
        }
        Ok(self.shared.files())
    }

    /// Waits until all is done that can be done.
    pub(super) fn finish(self) -> PathBuf {
        self.shared.queue().ends = true;
        self.shared.changed.notify_all();
        self.thread.join().unwrap_or_else(|_| {
            error!(
                code = "applier_panicked",
                "the thread that writes epochs' files panicked, the journal has it all"
            );
            PathBuf::new()
        })
    }
}

impl Queue {
    /// What is to be said to who waited.
    fn check(&self, done: bool) -> io::Result<()> {
        match &self.failed {
            _ if done => Ok(()),
            Some(error) => Err(copy(error)),
            None => Err(io::Error::other("nobody writes epochs' files any more")),
        }
    }

    /// Lets nobody wait for an answer any longer.
    fn answer_all(&mut self) {
        for work in std::mem::take(&mut self.work) {
            match work {
                Work::Tell(stats, answer) => drop(answer.send(*stats)),
                work => self.work.push_back(work),
            }
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> MutexGuard<'_, EpochFiles> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while `condition` holds and the thread is there.
    fn wait(&self, condition: impl Fn(&Queue) -> bool) -> MutexGuard<'_, Queue> {
        let waiting = |queue: &mut Queue| condition(queue) && !queue.ended;
        self.changed.wait_while(self.queue(), waiting).unwrap_or_else(PoisonError::into_inner)
    }

    /// The next thing to do; `None` when there will be none.
    fn next(&self) -> Option<Work> {
        let idle = |queue: &Queue| queue.work.is_empty() || queue.failed.is_some();
        let mut queue = self.wait(|queue| idle(queue) && !queue.ends);
        if idle(&queue) { None } else { queue.work.pop_front() }
    }

    fn apply(&self, frame: Box<Frame>) -> Option<Stem> {
        let result = self.files().apply(&frame);
        let mut queue = self.queue();
        let stem = match result {
            Ok(()) => {
                let stem = Stem::of(&frame.place);
                queue.bytes -= frame.length();
                match queue.frames.get_mut(&stem) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => drop(queue.frames.remove(&stem)),
                }
                Some(stem)
            }
            Err(error) => {
                error!(code = "epoch_files_write_failed", %error, "could not write an epoch's files; the journal has it all");
                queue.failed = Some(error);
                queue.answer_all();
                queue.work.push_front(Work::Frame(frame));
                None
            }
        };
        drop(queue);
        self.changed.notify_all();
        stem
    }
}

/// Lets nobody wait for a thread that is gone, whatever ended it.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.ended = true;
        queue.answer_all();
        drop(queue);
        self.0.changed.notify_all();
    }
}

fn work(shared: &Shared, checkpointer: Checkpointer) -> PathBuf {
    let ended = Ended(shared);
    // Epochs written to since the journal began.
    let mut dirty = BTreeSet::new();
    while let Some(work) = shared.next() {
        match work {
            Work::Frame(frame) => dirty.extend(shared.apply(frame)),
            Work::Sealed(path) => {
                checkpointer.add(Sealed { path, dirty: std::mem::take(&mut dirty) });
            }
            Work::Tell(stats, answer) => drop(answer.send(*stats)),
        }
    }
    drop(ended);
    checkpointer.finish()
}

/// Reads an epoch's values of the chain, once they are in their file.
#[derive(Debug)]
pub(super) struct Values<'a> {
    pub(super) applier: &'a Applier,
    pub(super) stem: &'a Stem,
}

impl ChainValues for Values<'_> {
    type Error = io::Error;

    fn read(&mut self, at: u64, count: u64) -> io::Result<Vec<Digest>> {
        self.applier.files([self.stem])?.values(self.stem).read(at, count)
    }
}
