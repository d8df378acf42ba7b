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
        delivery::{DeadLetterRetry, RetryOutcome, SinkProgress},
        ingest::{Inbox, IngestStatus},
        outbox::{DeadLetterId, Outbox, OutboxError},
    },
    sink_tasks::{SinkHandle, SinkHandles},
};
use crate::{event::Event, platform::Clock, text::counted};

/// What can be asked of a pipeline that runs. Costs nothing while nobody asks.
#[derive(Clone)]
pub struct PipelineHandle {
    outbox: Arc<Outbox>,
    inbox: Arc<Inbox>,
    clock: Arc<dyn Clock>,
    sinks: SinkHandles,
}

/// Reading did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reading does not answer")]
pub struct IngestUnresponsive {
    /// How long ago it last began anything.
    pub silent: Option<Duration>,
}

/// Why not everything was delivered that was in the outbox.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// A sink has not taken it in time.
    #[error(
        "sink `{sink}` has not acknowledged all of it, {}{}",
        counted(*left, "entry waits", "entries wait"),
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

/// Why a dead letter was not sent again.
#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    /// No task runs for the sink.
    #[error("sink `{0}` is not configured")]
    NoSink(String),
    /// The outcome cannot be stored.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The sink's task ended first.
    #[error("the sink was stopped or replaced before the entry was sent")]
    Ended,
}

impl PipelineHandle {
    pub(super) fn new(
        outbox: &Arc<Outbox>,
        inbox: &Arc<Inbox>,
        clock: &Arc<dyn Clock>,
        sinks: &SinkHandles,
    ) -> Self {
        Self {
            outbox: Arc::clone(outbox),
            inbox: Arc::clone(inbox),
            clock: Arc::clone(clock),
            sinks: Arc::clone(sinks),
        }
    }

    /// Where entries lie. It may be closed at any time, and then says so.
    #[must_use]
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// How each sink is doing.
    #[must_use]
    pub fn sinks(&self) -> Vec<(String, SinkProgress)> {
        let progress = |SinkHandle { name, progress, .. }: &SinkHandle| {
            let progress = progress.borrow().clone();
            (name.clone(), progress)
        };
        self.handles().iter().map(progress).collect()
    }

    /// How reading stands; it is asked for that, and answers between two groups.
    ///
    /// # Errors
    /// [`IngestUnresponsive`] when it does not answer for `patience`.
    pub async fn reading(&self, patience: Duration) -> Result<IngestStatus, IngestUnresponsive> {
        match timeout(patience, self.inbox.request_status()).await {
            Ok(Ok(reading)) => Ok(reading),
            Ok(Err(_)) | Err(_) => {
                Err(IngestUnresponsive { silent: self.inbox.since_activity(self.clock.uptime()) })
            }
        }
    }

    /// Adds an event to the entries.
    pub fn report(&self, event: Event) {
        self.inbox.report(event);
    }

    /// Has `job` done while nothing is on its way to the store: see [`Inbox::run_between_groups`].
    pub fn run_between_groups<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Outbox) -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        self.inbox.run_between_groups(job)
    }

    /// Sends what lies in the outbox now, whatever it waits for, and waits until every sink has
    /// acknowledged it; how many entries that were.
    ///
    /// # Errors
    /// [`FlushError`] when that has not happened within `patience`.
    pub async fn flush(&self, patience: Duration) -> Result<u64, FlushError> {
        let end = Instant::now() + patience;
        let head = *self.outbox.watch().borrow();
        let mut most = 0;
        let handles = self.handles();
        for handle in &handles {
            most = most.max(self.left(&handle.name, head.last_seq).await?);
        }
        for handle in &handles {
            handle.orders.send_modify(|orders| orders.flush = head);
        }
        for SinkHandle { name, mut progress, .. } in handles {
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
                    Ok(Err(_)) => return Err(FlushError::Ended),
                    Err(_) => {
                        let paced = now.rate_limited_until.is_some();
                        let paced = paced.then(|| "it may send no more at present".to_owned());
                        let trouble = now.problem.or(paced);
                        return Err(FlushError::Late { sink: name, left, trouble });
                    }
                }
            }
        }
        Ok(most)
    }

    /// Has the sink's own task send a dead letter again, and waits for the outcome.
    ///
    /// # Errors
    /// [`RetryError`]: the dead letter is still stored.
    pub async fn retry_dead_letter(&self, id: DeadLetterId) -> Result<RetryOutcome, RetryError> {
        let task = self.handles().into_iter().find(|handle| handle.name == id.sink);
        let Some(SinkHandle { retries, .. }) = task else {
            return Err(RetryError::NoSink(id.sink));
        };
        let (outcome, received) = oneshot::channel();
        retries.send(DeadLetterRetry { id, outcome }).await.map_err(|_| RetryError::Ended)?;
        Ok(received.await.map_err(|_| RetryError::Ended)??)
    }

    /// How many entries up to `last` a sink has not taken.
    async fn left(&self, sink: &str, last: u64) -> Result<u64, FlushError> {
        let (outbox, sink) = (Arc::clone(&self.outbox), sink.to_owned());
        let cursor = tokio::task::spawn_blocking(move || {
            // When numbers began anew, all that is left counts.
            let last = last.min(outbox.end().seq - 1);
            outbox.cursor(&sink).map(|cursor| last.saturating_sub(cursor.acknowledged.seq))
        });
        Ok(cursor.await.map_err(|_| FlushError::Ended)??)
    }

    fn handles(&self) -> Vec<SinkHandle> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
