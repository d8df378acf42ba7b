//! Stores groups, one after the other, while the next one is read.

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

/// Compresses and stores a group at a time.
pub struct Writer {
    way: Way,
    /// Whether a group is on its way.
    is_busy: bool,
}

enum Way {
    /// On this thread, for a world where one thing happens at a time: as late as the other may be.
    #[cfg(test)]
    Here { job: Box<Job>, group: Option<Box<Group>> },
    /// On a thread of its own.
    Beside(Beside),
}

struct Beside {
    /// The thread ends when this is gone.
    groups: Option<SyncSender<(Group, bool)>>,
    stored: Receiver<Stored>,
    thread: Option<JoinHandle<()>>,
}

struct Job {
    outbox: Arc<Outbox>,
    encoder: Encoder,
}

impl Job {
    fn store(&mut self, mut group: Group) -> Stored {
        group.encode(&mut self.encoder);
        self.outbox.commit(&group)
    }
}

impl Job {
    /// Stores it, and gives way to everything else on the machine.
    fn give_way(&mut self, group: Group) -> Stored {
        let mut group = Some(group);
        let stored = in_background("writer", || group.take().map(|group| self.store(group)));
        match stored.flatten() {
            Some(stored) => stored,
            // Without another thread this one does it.
            None => group.map_or(Ok(()), |group| self.store(group)),
        }
    }
}

impl Writer {
    /// Stores into `outbox`, with frames as `codec` has them, on a thread of its own.
    ///
    /// # Panics
    /// When the system gives no thread.
    #[must_use]
    pub fn new(outbox: Arc<Outbox>, codec: Codec) -> Self {
        let mut job = Job { outbox, encoder: Encoder::new(codec) };
        let (groups, jobs) = sync_channel(1);
        let (done, stored) = sync_channel(1);
        let run = move || {
            for (group, gives_way) in jobs {
                let stored = if gives_way { job.give_way(group) } else { job.store(group) };
                if done.send(stored).is_err() {
                    return;
                }
            }
        };
        let spawned = thread::Builder::new().name("writer".into()).spawn(run);
        let thread = Some(spawned.expect("the system gives a thread"));
        Self { way: Way::Beside(Beside { groups: Some(groups), stored, thread }), is_busy: false }
    }

    /// The same, on the thread that calls.
    #[cfg(test)]
    pub(crate) fn here(outbox: Arc<Outbox>, codec: Codec) -> Self {
        let job = Box::new(Job { outbox, encoder: Encoder::new(codec) });
        Self { way: Way::Here { job, group: None }, is_busy: false }
    }

    /// Begins to store `group`, whose start is where the one before ends. One that `gives_way` does
    /// so to everything else on the machine.
    ///
    /// # Panics
    /// When what came of the one before was not asked for, or the thread died of a panic.
    pub(super) fn begin(&mut self, group: Group, gives_way: bool) {
        assert!(!self.is_busy, "one group at a time");
        self.is_busy = true;
        match &mut self.way {
            #[cfg(test)]
            Way::Here { group: waiting, .. } => *waiting = Some(Box::new(group)),
            Way::Beside(Beside { groups, .. }) => {
                let is_sent =
                    groups.as_ref().is_some_and(|groups| groups.send((group, gives_way)).is_ok());
                assert!(is_sent, "the writer lives");
            }
        }
    }

    /// Waits for the group on its way; `None` when there is none.
    ///
    /// # Panics
    /// When the thread died of a panic: nothing can be stored any more.
    pub(super) fn finish(&mut self) -> Option<Stored> {
        if !std::mem::take(&mut self.is_busy) {
            return None;
        }
        match &mut self.way {
            #[cfg(test)]
            Way::Here { job, group } => group.take().map(|group| job.store(*group)),
            Way::Beside(Beside { stored, .. }) => Some(stored.recv().expect("the writer lives")),
        }
    }
}

/// Nobody holds the store any more once the writer is gone.
impl Drop for Beside {
    fn drop(&mut self) {
        self.groups = None;
        if let Some(thread) = self.thread.take() {
            // Whoever waits for what it stores has seen its panic, if there was one.
            drop(thread.join());
        }
    }
}
