//! What can be asked of a pipeline that runs, by anybody and at any time.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use super::{
    super::{
        delivery::Progress,
        ingest::{Inbox, Reading},
        outbox::{Outbox, OutboxError},
    },
    sinks::{Shown, Sight},
};
use crate::{event::Event, text::times};

/// What can be asked of a pipeline that runs. Costs nothing while nobody asks.
#[derive(Clone)]
pub struct View {
    outbox: Arc<Outbox>,
    inbox: Arc<Inbox>,
    sinks: Shown,
}

/// Reading did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reading does not answer")]
pub struct NotReading {
    /// How long ago it last began anything.
    pub silent: Option<Duration>,
}

/// Why not everything was delivered that was in the outbox.
#[derive(Debug, thiserror::Error)]
pub enum Unflushed {
    /// A sink has not taken it in time.
    #[error(
        "sink `{sink}` has not acknowledged all of it, {}{}",
        times(*left, "entry waits", "entries wait"),
        trouble.as_ref().map(|trouble| format!(": {trouble}")).unwrap_or_default()
    )]
    Late {
        /// Its name.
        sink: String,
        /// How many entries it has not taken.
        left: u64,
        /// What keeps it.
        trouble: Option<String>,
    },
    /// The store can't be read.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The sink, or all of it, has ended meanwhile.
    #[error("delivery has ended meanwhile: the rest stays in the outbox")]
    Ended,
}

impl View {
    pub(super) fn new(outbox: &Arc<Outbox>, inbox: &Arc<Inbox>, sinks: &Shown) -> Self {
        Self { outbox: Arc::clone(outbox), inbox: Arc::clone(inbox), sinks: Arc::clone(sinks) }
    }

    /// Where entries lie. It may be closed at any time, and then says so.
    #[must_use]
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// How each sink is doing.
    #[must_use]
    pub fn sinks(&self) -> Vec<(String, Progress)> {
        let progress = |Sight { name, progress, .. }: &Sight| {
            let progress = progress.borrow().clone();
            (name.clone(), progress)
        };
        self.sights().iter().map(progress).collect()
    }

    /// How reading stands; it is asked for that, and answers between two groups.
    ///
    /// # Errors
    /// [`NotReading`] when it does not answer for `patience`.
    pub async fn reading(&self, patience: Duration) -> Result<Reading, NotReading> {
        match timeout(patience, self.inbox.ask()).await {
            Ok(Ok(reading)) => Ok(reading),
            Ok(Err(_)) | Err(_) => Err(NotReading { silent: self.inbox.since_turn() }),
        }
    }

    /// Adds an event to the entries.
    pub fn report(&self, event: Event) {
        self.inbox.report(event);
    }

    /// Has `job` done while nothing is on its way to the store: see [`Inbox::at_rest`].
    pub fn at_rest<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Outbox) -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        self.inbox.at_rest(job)
    }

    /// Sends what lies in the outbox now, whatever it waits for, and waits until every sink has
    /// acknowledged it; how many entries that were.
    ///
    /// # Errors
    /// [`Unflushed`] when that has not happened within `patience`.
    pub async fn flush(&self, patience: Duration) -> Result<u64, Unflushed> {
        let end = Instant::now() + patience;
        let head = *self.outbox.watch().borrow();
        let mut most = 0;
        let sights = self.sights();
        for sight in &sights {
            most = most.max(self.left(&sight.name, head.last_seq).await?);
        }
        for sight in &sights {
            sight.orders.send_modify(|orders| orders.flush = head);
        }
        for Sight { name, mut progress, .. } in sights {
            loop {
                // Seen before the cursor is asked for: what comes after that is told.
                progress.mark_unchanged();
                let now = progress.borrow().clone();
                let left = self.left(&name, head.last_seq).await?;
                if left == 0 {
                    break;
                }
                match timeout_at(end, progress.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(Unflushed::Ended),
                    Err(_) => {
                        let paced = now.paced_until.is_some();
                        let paced = paced.then(|| "it may send no more at present".to_owned());
                        let trouble = now.trouble.or(paced);
                        return Err(Unflushed::Late { sink: name, left, trouble });
                    }
                }
            }
        }
        Ok(most)
    }

    /// How many entries up to `last` a sink has not taken.
    async fn left(&self, sink: &str, last: u64) -> Result<u64, Unflushed> {
        let (outbox, sink) = (Arc::clone(&self.outbox), sink.to_owned());
        let cursor = tokio::task::spawn_blocking(move || {
            // When numbers began anew, all that is left counts.
            let last = last.min(outbox.end().seq - 1);
            outbox.cursor(&sink).map(|cursor| last.saturating_sub(cursor.acknowledged.seq))
        });
        Ok(cursor.await.map_err(|_| Unflushed::Ended)??)
    }

    fn sights(&self) -> Vec<Sight> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
