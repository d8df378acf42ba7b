//! Compresses and stores groups on a thread of its own, while the next group is read.

use std::{
    sync::{
        Arc,
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
    mode: Mode,
    /// True if a group has been started and not finished.
    is_busy: bool,
}

enum Mode {
    /// Stores on the calling thread, in `finish`: for a simulation in which one thing happens at a
    /// time.
    #[cfg(test)]
    Inline {
        storage: Box<GroupStorage>,
        group: Option<Box<Group>>,
    },
    Threaded(WriterThread),
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
        let mut storage = GroupStorage { outbox, encoder: Encoder::new(codec) };
        let (groups, jobs) = sync_channel(1);
        let (done, stored) = sync_channel(1);
        let run = move || {
            for (group, is_background) in jobs {
                let stored = match is_background {
                    true => storage.store_in_background(group),
                    false => storage.store(group),
                };
                if done.send(stored).is_err() {
                    return;
                }
            }
        };
        let spawned = thread::Builder::new().name("writer".into()).spawn(run);
        let thread = Some(spawned.expect("the system can start a thread"));
        let thread = WriterThread { groups: Some(groups), stored, thread };
        Self { mode: Mode::Threaded(thread), is_busy: false }
    }

    /// Creates a writer that stores on the calling thread.
    #[cfg(test)]
    pub(crate) fn inline(outbox: Arc<Outbox>, codec: Codec) -> Self {
        let storage = Box::new(GroupStorage { outbox, encoder: Encoder::new(codec) });
        Self { mode: Mode::Inline { storage, group: None }, is_busy: false }
    }

    /// Starts to store `group`, which begins where the previous one ends, with low priority if
    /// `is_background`.
    ///
    /// # Panics
    /// If the previous group has not been finished, or the thread has panicked.
    pub(super) fn start(&mut self, group: Group, is_background: bool) {
        assert!(!self.is_busy, "one group at a time");
        self.is_busy = true;
        match &mut self.mode {
            #[cfg(test)]
            Mode::Inline { group: waiting, .. } => *waiting = Some(Box::new(group)),
            Mode::Threaded(WriterThread { groups, .. }) => {
                let groups = groups.as_ref();
                let is_sent =
                    groups.is_some_and(|groups| groups.send((group, is_background)).is_ok());
                assert!(is_sent, "the writer thread runs");
            }
        }
    }

    /// Waits until the started group is stored; `None` if there is none.
    ///
    /// # Panics
    /// If the thread has panicked: nothing can be stored after that.
    pub(super) fn finish(&mut self) -> Option<Stored> {
        if !std::mem::take(&mut self.is_busy) {
            return None;
        }
        match &mut self.mode {
            #[cfg(test)]
            Mode::Inline { storage, group } => group.take().map(|group| storage.store(*group)),
            Mode::Threaded(WriterThread { stored, .. }) => {
                Some(stored.recv().expect("the writer thread runs"))
            }
        }
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
