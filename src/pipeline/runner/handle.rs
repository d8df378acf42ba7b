//! A handle to a running pipeline, for other parts of the agent.

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

/// A handle to a running pipeline: its status, and requests to it. Costs nothing while unused.
#[derive(Clone)]
pub struct PipelineHandle {
    outbox: Arc<Outbox>,
    inbox: Arc<Inbox>,
    clock: Arc<dyn Clock>,
    sinks: SinkHandles,
}

/// The ingest thread does not respond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ingest thread does not respond")]
pub struct IngestUnresponsive {
    /// Time since it last started a step or a wait.
    pub silent: Option<Duration>,
}

/// Reason that a flush did not finish.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// A sink has not acknowledged everything in time.
    #[error(
        "sink `{sink}` has not acknowledged everything: {}{}",
        counted(*left, "entry is queued", "entries are queued"),
        problem.as_ref().map(|problem| format!(", {problem}")).unwrap_or_default()
    )]
    Late {
        /// Instance name of the sink.
        sink: String,
        /// Number of entries it has not acknowledged.
        left: u64,
        /// Reason that nothing is delivered.
        problem: Option<String>,
    },
    /// The outbox cannot be read.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The task of the sink has ended.
    #[error("delivery has stopped: unacknowledged entries remain in the outbox")]
    Ended,
}

/// Reason that a dead letter was not sent again.
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

    /// Returns the outbox. It may be closed at any time; its methods then fail.
    #[must_use]
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// Returns the progress of each sink.
    #[must_use]
    pub fn sinks(&self) -> Vec<(String, SinkProgress)> {
        let progress = |SinkHandle { name, progress, .. }: &SinkHandle| {
            let progress = progress.borrow().clone();
            (name.clone(), progress)
        };
        self.handles().iter().map(progress).collect()
    }

    /// Returns the status of the ingest thread, which answers between two groups.
    ///
    /// # Errors
    /// `IngestUnresponsive` if it does not respond within `patience`.
    pub async fn ingest_status(
        &self,
        patience: Duration,
    ) -> Result<IngestStatus, IngestUnresponsive> {
        match timeout(patience, self.inbox.request_status()).await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(_)) | Err(_) => {
                Err(IngestUnresponsive { silent: self.inbox.since_activity(self.clock.uptime()) })
            }
        }
    }

    /// Adds an event to the entries.
    pub fn report(&self, event: Event) {
        self.inbox.report(event);
    }

    /// Runs `job` while no group is being stored: see [`Inbox::run_between_groups`].
    pub fn run_between_groups<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Outbox) -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        self.inbox.run_between_groups(job)
    }

    /// Sends all entries in the outbox without waiting for full batches, and waits until every sink
    /// has acknowledged them. Returns the number of entries.
    ///
    /// # Errors
    /// `FlushError` if that has not happened within `patience`.
    pub async fn flush(&self, patience: Duration) -> Result<u64, FlushError> {
        let end = Instant::now() + patience;
        let head = *self.outbox.watch().borrow();
        let mut most = 0;
        let handles = self.handles();
        for handle in &handles {
            most = most.max(self.unacknowledged(&handle.name, head.last_seq).await?);
        }
        for handle in &handles {
            handle.control.send_modify(|control| control.flush = head);
        }
        for SinkHandle { name, mut progress, .. } in handles {
            loop {
                // Before the cursor is read: a later change is then noticed.
                progress.mark_unchanged();
                let now = progress.borrow().clone();
                let left = self.unacknowledged(&name, head.last_seq).await?;
                if left == 0 {
                    break;
                }
                match timeout_at(end, progress.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(FlushError::Ended),
                    Err(_) => {
                        let limited = now.rate_limited_until.map(|_| "its rate limit is reached");
                        let in_transit = now.in_transit_until.map(
                            |_| "its receiver acknowledges nothing: they count as delivered later",
                        );
                        let waits = limited.or(in_transit).map(str::to_owned);
                        let problem = now.problem.or(waits);
                        return Err(FlushError::Late { sink: name, left, problem });
                    }
                }
            }
        }
        Ok(most)
    }

    /// Orders the sink's task to send a dead letter again, and waits for the outcome.
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

    /// Returns how many entries up to `last` a sink has not acknowledged.
    async fn unacknowledged(&self, sink: &str, last: u64) -> Result<u64, FlushError> {
        let (outbox, sink) = (Arc::clone(&self.outbox), sink.to_owned());
        let cursor = tokio::task::spawn_blocking(move || {
            // After a renumbering, everything that is left counts.
            let last = last.min(outbox.end().seq - 1);
            outbox.cursor(&sink).map(|cursor| last.saturating_sub(cursor.acknowledged.seq))
        });
        Ok(cursor.await.map_err(|_| FlushError::Ended)??)
    }

    fn handles(&self) -> Vec<SinkHandle> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
