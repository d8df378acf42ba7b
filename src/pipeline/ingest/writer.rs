//! Compresses and stores groups: on a thread of its own while the next group is read, and otherwise on
//! the calling thread, which would only wait.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use super::super::{
    group::Group,
    outbox::{Outbox, OutboxError},
};
use crate::{
    frame::{Codec, Encoder},
    platform::priority::in_background,
};

type Stored = Result<(), OutboxError>;

/// Stores one group at a time.
pub struct Writer {
    storage: Arc<Mutex<GroupStorage>>,
    /// `None` if every group is stored on the calling thread: for a simulation in which one thing
    /// happens at a time.
    thread: Option<WriterThread>,
    /// The group that was started and not finished.
    started: Option<Started>,
}

/// A group that was started.
enum Started {
    /// [`Writer::finish`] stores it.
    Here(Box<Group>),
    /// The thread stores it.
    OnThread,
}

struct WriterThread {
    /// Groups, with whether to store them in the background. Dropping this ends the thread.
    groups: Option<SyncSender<(Group, bool)>>,
    stored: Receiver<Stored>,
    thread: Option<JoinHandle<()>>,
}

struct GroupStorage {
    outbox: Arc<Outbox>,
    encoder: Encoder,
}

impl GroupStorage {
    fn new(outbox: Arc<Outbox>, codec: Codec) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { outbox, encoder: Encoder::new(codec) }))
    }

    fn store(&mut self, mut group: Group) -> Stored {
        group.encode(&mut self.encoder);
        self.outbox.commit(&group)
    }

    /// Stores the group with low priority.
    fn store_in_background(&mut self, group: Group) -> Stored {
        let mut group = Some(group);
        let stored = in_background("writer", || group.take().map(|group| self.store(group)));
        match stored.flatten() {
            Some(stored) => stored,
            // No background thread could be started.
            None => group.map_or(Ok(()), |group| self.store(group)),
        }
    }
}

impl Writer {
    /// Starts a thread that stores groups into `outbox` with frames encoded as `codec`.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    #[must_use]
    pub fn new(outbox: Arc<Outbox>, codec: Codec) -> Self {
        let storage = GroupStorage::new(outbox, codec);
        let (groups, jobs) = sync_channel(1);
        let (done, stored) = sync_channel(1);
        let of_thread = Arc::clone(&storage);
        let run = move || {
            for (group, is_background) in jobs {
                let mut storage = of_thread.lock().unwrap_or_else(PoisonError::into_inner);
                let stored = match is_background {
                    true => storage.store_in_background(group),
                    false => storage.store(group),
                };
                drop(storage);
                if done.send(stored).is_err() {
                    return;
                }
            }
        };
        let spawned = thread::Builder::new().name("writer".into()).spawn(run);
        let thread = Some(spawned.expect("the system can start a thread"));
        let thread = WriterThread { groups: Some(groups), stored, thread };
        Self { storage, thread: Some(thread), started: None }
    }

    /// Creates a writer that stores on the calling thread.
    #[cfg(test)]
    pub(crate) fn inline(outbox: Arc<Outbox>, codec: Codec) -> Self {
        Self { storage: GroupStorage::new(outbox, codec), thread: None, started: None }
    }

    /// Starts to store `group`, which begins where the previous one ends, with low priority if
    /// `is_background`.
    ///
    /// # Panics
    /// If the previous group has not been finished, or the thread has panicked.
    pub(super) fn start(&mut self, group: Group, is_background: bool) {
        let Some(WriterThread { groups, .. }) = &self.thread else {
            return self.start_here(group);
        };
        assert!(self.started.is_none(), "one group at a time");
        let groups = groups.as_ref();
        let is_sent = groups.is_some_and(|groups| groups.send((group, is_background)).is_ok());
        assert!(is_sent, "the writer thread runs");
        self.started = Some(Started::OnThread);
    }

    /// Starts to store `group`, which begins where the previous one ends. [`finish`](Self::finish), which
    /// must follow at once, does so on the calling thread: two threads fewer have to wake up.
    ///
    /// # Panics
    /// If the previous group has not been finished.
    pub(super) fn start_here(&mut self, group: Group) {
        assert!(self.started.is_none(), "one group at a time");
        self.started = Some(Started::Here(Box::new(group)));
    }

    /// Waits until the started group is stored; `None` if there is none.
    ///
    /// # Panics
    /// If the thread has panicked: nothing can be stored after that.
    pub(super) fn finish(&mut self) -> Option<Stored> {
        Some(match self.started.take()? {
            Started::Here(group) => {
                self.storage.lock().unwrap_or_else(PoisonError::into_inner).store(*group)
            }
            Started::OnThread => {
                let thread = self.thread.as_ref();
                let stored = thread.and_then(|thread| thread.stored.recv().ok());
                stored.expect("the writer thread runs")
            }
        })
    }
}

/// Waits for the thread, so that nothing holds the store once the writer is dropped.
impl Drop for WriterThread {
    fn drop(&mut self) {
        self.groups = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already shown in `start` or `finish`.
            drop(thread.join());
        }
    }
}
