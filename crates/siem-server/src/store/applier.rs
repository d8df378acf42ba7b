//! Thread that copies entries from the journal to the files of their epochs. Responses wait only
//! for the journal, not for thousands of files.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt, io,
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
    note_index::NoteIndex,
};
use crate::{background::lower_priority, ledger::ChainValues};

/// Maximum number of bytes in the queue. The journal holds them too, so that the limit only
/// protects memory.
const WAITING_BYTES: u64 = 64 << 20;
/// Maximum number of frames in the queue.
const WAITING_FRAMES: usize = 16 << 10;

/// Writes to the files of the epochs, in the order of the journal.
#[derive(Debug)]
pub(super) struct Applier {
    shared: Arc<Shared>,
    thread: thread::JoinHandle<PathBuf>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Notified when the queue changes, if a thread waits for it: each call is one of the system.
    changed: Condvar,
    files: Mutex<EpochFiles>,
}

#[derive(Debug, Default)]
struct Queue {
    work: VecDeque<QueueItem>,
    bytes: u64,
    /// Number of queued frames, by epoch.
    frames: HashMap<Stem, usize>,
    /// Reason why the first frame could not be written. Set until a retry is requested.
    failed: Option<io::Error>,
    /// The queue is complete.
    ends: bool,
    /// The thread has ended.
    ended: bool,
    /// Number of threads that wait for a change.
    waiting: usize,
}

#[derive(Debug)]
enum QueueItem {
    /// A frame to write; it stays in the queue until that is done.
    Frame(Box<Frame>),
    /// The journal of the previous frames is complete; with a channel for the result of its
    /// deletion.
    Sealed(PathBuf, Option<oneshot::Sender<io::Result<()>>>),
    /// A response to send after the previous frames are written.
    Respond(Response),
}

/// Sends a response.
struct Response(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Response")
    }
}

impl Applier {
    /// Starts the thread; complete journals are passed to `checkpointer`.
    pub(super) fn start(files: EpochFiles, checkpointer: Checkpointer) -> io::Result<Self> {
        let (queue, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { queue, changed, files: Mutex::new(files) });
        let below = shared.clone();
        let run = move || run_applier(&below, checkpointer);
        let thread = thread::Builder::new().name("applier".into()).spawn(run)?;
        Ok(Self { shared, thread })
    }

    /// Queues a frame that is in the journal. Blocks while the queue is full.
    pub(super) fn add(&self, frame: Frame) {
        let (stem, bytes) = (Stem::of(&frame.place), frame.length());
        let full =
            |queue: &Queue| queue.bytes >= WAITING_BYTES || queue.work.len() >= WAITING_FRAMES;
        let mut queue = self.shared.wait(|queue| full(queue) && queue.failed.is_none());
        queue.bytes += bytes;
        *queue.frames.entry(stem).or_default() += 1;
        self.push(queue, QueueItem::Frame(Box::new(frame)));
    }

    /// Queues that the journal at `path` is complete.
    pub(super) fn sealed(&self, path: PathBuf) {
        self.push(self.shared.queue(), QueueItem::Sealed(path, None));
    }

    /// Queues that the journal at `path` is complete. `done` gets the result of its deletion.
    pub(super) fn sealed_with(&self, path: PathBuf, done: oneshot::Sender<io::Result<()>>) {
        self.push(self.shared.queue(), QueueItem::Sealed(path, Some(done)));
    }

    /// Sends a response once all queued frames are in the files, or one cannot be written.
    pub(super) fn respond<T: Send + 'static>(&self, response: T, responder: oneshot::Sender<T>) {
        let queue = self.shared.queue();
        match queue.failed.is_some() || queue.ended {
            true => drop(responder.send(response)),
            false => {
                let send = move || drop(responder.send(response));
                self.push(queue, QueueItem::Respond(Response(Box::new(send))));
            }
        }
    }

    fn push(&self, mut queue: MutexGuard<'_, Queue>, work: QueueItem) {
        queue.work.push_back(work);
        self.shared.notify(queue);
    }

    /// After a failed write, retries it and waits for the result.
    pub(super) fn retry_failed(&self) -> io::Result<()> {
        // A statement of its own, so that the queue is unlocked again.
        let failed = self.shared.queue().failed.is_some();
        if failed { self.flush() } else { Ok(()) }
    }

    /// Waits until all queued frames are in the files.
    pub(super) fn flush(&self) -> io::Result<()> {
        let mut queue = self.shared.queue();
        queue.failed = None;
        self.shared.notify(queue);
        // A frame counts until it is written, not until its writing starts.
        let queue = self.shared.wait(|queue| !queue.frames.is_empty() && queue.failed.is_none());
        queue.check(queue.frames.is_empty())
    }

    /// Returns the files once all queued frames of `stems` are in them.
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

    /// Waits until the thread has done all it can.
    pub(super) fn finish(self) -> PathBuf {
        let mut queue = self.shared.queue();
        queue.ends = true;
        self.shared.notify(queue);
        self.thread.join().unwrap_or_else(|_| {
            error!(
                code = "applier_panicked",
                "thread that writes the files of epochs panicked; all entries are in the journal"
            );
            PathBuf::new()
        })
    }
}

impl Queue {
    /// Result for a caller that waited.
    fn check(&self, done: bool) -> io::Result<()> {
        match &self.failed {
            _ if done => Ok(()),
            Some(error) => Err(copy(error)),
            None => Err(io::Error::other("the thread that writes the files of epochs has ended")),
        }
    }

    /// Sends all responses that are waiting.
    fn send_waiting(&mut self) {
        for work in std::mem::take(&mut self.work) {
            match work {
                QueueItem::Respond(response) => (response.0)(),
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

    /// Waits while `condition` holds and the thread runs.
    fn wait(&self, condition: impl Fn(&Queue) -> bool) -> MutexGuard<'_, Queue> {
        let mut queue = self.queue();
        while condition(&queue) && !queue.ended {
            queue.waiting += 1;
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.waiting -= 1;
        }
        queue
    }

    /// Wakes the threads that wait for a change of the queue.
    fn notify(&self, queue: MutexGuard<'_, Queue>) {
        let is_awaited = queue.waiting > 0;
        drop(queue);
        if is_awaited {
            self.changed.notify_all();
        }
    }

    /// Returns the next work; `None` if there will be none.
    fn next(&self) -> Option<QueueItem> {
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
                error!(code = "epoch_files_write_failed", %error, "cannot write the files of an epoch; all entries are in the journal");
                queue.failed = Some(error);
                queue.send_waiting();
                queue.work.push_front(QueueItem::Frame(frame));
                None
            }
        };
        self.notify(queue);
        stem
    }
}

/// Notifies all waiting callers when the thread ends, for any reason.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.ended = true;
        queue.send_waiting();
        self.0.notify(queue);
    }
}

fn run_applier(shared: &Shared, checkpointer: Checkpointer) -> PathBuf {
    lower_priority();
    let ended = Ended(shared);
    // Epochs written to since the journal was started.
    let mut dirty = BTreeSet::new();
    while let Some(work) = shared.next() {
        match work {
            QueueItem::Frame(frame) => dirty.extend(shared.apply(frame)),
            QueueItem::Sealed(path, done) => {
                checkpointer.add(Sealed { path, dirty: std::mem::take(&mut dirty), done });
            }
            QueueItem::Respond(response) => (response.0)(),
        }
    }
    drop(ended);
    checkpointer.finish()
}

/// Reads the chain's values of an epoch once they are in its index.
#[derive(Debug)]
pub(super) struct Values<'a> {
    pub(super) applier: &'a Applier,
    pub(super) stem: &'a Stem,
    pub(super) index: &'a NoteIndex,
}

impl ChainValues for Values<'_> {
    type Error = io::Error;

    fn read(&mut self, at: u64, count: u64) -> io::Result<Vec<Digest>> {
        let mut read = |range| self.applier.files([self.stem])?.index(self.stem, range);
        self.index.values(at, count, &mut read)
    }
}
