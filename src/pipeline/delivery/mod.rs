//! Delivers the entries in the outbox: one task for each sink, with one batch in flight.

mod ahead;
mod batch_assembler;
mod batch_sender;
mod dead_letter_retry;
mod dead_letter_store;
mod entry_decisions;
mod rate_limit;
#[cfg(test)]
mod receiver_tests;
mod retry_policy;
mod schedule;
mod task_loop;
#[cfg(test)]
mod tests;

use std::{ops::AddAssign, sync::Arc, time::Duration};

pub use ahead::DecidedEntries;
pub use batch_assembler::{AssembleError, Assembler, NextBatch};
pub use dead_letter_retry::{DeadLetterRetry, RetryOutcome, retry_dead_letter};
pub use rate_limit::RateLimit;
pub use retry_policy::{NextAction, RetryPolicy};
use siem_protocol::Identity;
use task_loop::TaskLoop;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::outbox::{Head, Outbox, OutboxError};
use crate::{
    config::ShippingSettings,
    event::Event,
    platform::{Clock, Timestamp},
    stages::sink::{Acknowledged, Sink},
};

/// Condition on which a sink's task ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StopMode {
    /// Never.
    #[default]
    Never,
    /// Once everything in the outbox is delivered. No entry waits to fill a batch.
    WhenDrained,
    /// At once, even in mid-batch: another task continues from the cursor.
    HandOver,
}

/// Controls a sink's task; may change while the task runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkControl {
    /// Condition on which the task ends.
    pub stop: StopMode,
    /// Size of batches and when they are sent; takes effect with the next batch.
    pub shipping: ShippingSettings,
    /// Maximum size of the sink's dead letters.
    pub max_dead_letter_bytes: u64,
    /// End of the outbox when a flush was requested: entries up to it are sent at once.
    pub flush: Head,
    /// Number of times that the machine has slept. A change ends the current pause.
    pub resumptions: u64,
}

impl SinkControl {
    /// Control of a task that runs until it is stopped.
    #[must_use]
    pub fn new(shipping: ShippingSettings, max_dead_letter_bytes: u64) -> Self {
        let flush = Head::default();
        Self { stop: StopMode::Never, shipping, max_dead_letter_bytes, flush, resumptions: 0 }
    }

    /// Sets when the task ends.
    #[cfg(any(test, feature = "internals"))]
    #[must_use]
    pub fn until(self, stop: StopMode) -> Self {
        Self { stop, ..self }
    }
}

/// Numbers of entries that receivers refused for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusedEntries {
    /// Entries that were stored as dead letters.
    pub dead_letters: u64,
    /// Entries that were refused without saying which.
    pub unidentified: u64,
}

impl AddAssign for RefusedEntries {
    fn add_assign(&mut self, other: Self) {
        self.dead_letters += other.dead_letters;
        self.unidentified += other.unidentified;
    }
}

/// Progress of a sink's task, for `run --once` and the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkProgress {
    /// Sequence number of the last acknowledged entry.
    pub acknowledged: u64,
    /// Number of entries acknowledged since the start.
    pub delivered: u64,
    /// Number of entries since the start that count as delivered without proof.
    pub unproven: u64,
    /// Number of times since the start that sending a batch failed and is tried again.
    pub retries: u64,
    /// Entries that the receiver refused for good since the start.
    pub refused: RefusedEntries,
    /// Meaning of an acknowledgement; `None` before the task runs.
    pub acknowledged_means: Option<Acknowledged>,
    /// Time of the last acknowledgement since the start.
    pub acknowledged_at: Option<Timestamp>,
    /// Reason that nothing is delivered at present.
    pub problem: Option<String>,
    /// True if a person should check the problem: waiting may not solve it.
    pub is_held: bool,
    /// Time of the next attempt.
    pub retry_at: Option<Timestamp>,
    /// The last problem, solved or not, and its time.
    pub last_error: Option<(String, Timestamp)>,
    /// True if the task has ended because everything is delivered.
    pub drained: bool,
    /// True if the task has ended to hand over to another one.
    pub handed_over: bool,
    /// Until when the rate limit keeps the next batch.
    pub rate_limited_until: Option<Instant>,
    /// Until when entries that were sent without an acknowledgement do not count as delivered.
    pub in_transit_until: Option<Instant>,
}

impl SinkProgress {
    /// Returns until when the task waits although nothing is wrong.
    #[must_use]
    pub fn waits_until(&self) -> Option<Instant> {
        self.rate_limited_until.max(self.in_transit_until)
    }
}

/// Delivers to one sink.
pub struct SinkTask {
    /// Instance name of the sink.
    pub name: String,
    /// The sink.
    pub sink: Box<dyn Sink>,
    /// The outbox with the entries.
    pub outbox: Arc<Outbox>,
    /// Identity of the agent, for headers.
    pub identity: Arc<Identity>,
    /// Rate limit; `None` for none.
    pub rate_limit: Option<RateLimit>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Returns random numbers from 0 to 1, to spread retries.
    pub jitter: Box<dyn FnMut() -> f64 + Send>,
    /// Publishes the progress.
    pub progress: watch::Sender<SinkProgress>,
    /// Receives events: dead letters and new epochs.
    pub report: Arc<dyn Fn(Event) + Send + Sync>,
    /// Makes the name of a new epoch.
    pub new_epoch: Arc<dyn Fn() -> String + Send + Sync>,
}

impl SinkTask {
    /// Delivers until `control` ends the task. Dropping the future in mid-batch is safe: the batch
    /// is sent again, and the receiver recognises the repetition.
    #[cfg(any(test, feature = "internals"))]
    pub async fn run(self, control: watch::Receiver<SinkControl>) {
        let (_, retries) = mpsc::channel(1);
        self.run_with_retries(control, retries).await;
    }

    /// Delivers as [`run`](Self::run) does, and sends dead letters again as ordered by `retries`: one
    /// at a time, never while a batch is in flight, and within the rate limit.
    pub async fn run_with_retries(
        self,
        control: watch::Receiver<SinkControl>,
        retries: mpsc::Receiver<DeadLetterRetry>,
    ) {
        TaskLoop::new(self, control, retries).run().await;
    }

    /// Publishes why nothing is delivered, and when the next attempt is.
    fn set_problem(&self, problem: String, retry: Duration, is_held: bool) {
        let now = self.clock.now();
        let retry = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
        self.progress.send_modify(|progress| {
            progress.last_error = Some((problem.clone(), now));
            progress.problem = Some(problem);
            progress.is_held = is_held;
            progress.retry_at = Some(Timestamp(now.0.saturating_add(retry)));
        });
    }

    fn clear_problem(&self) {
        self.progress.send_if_modified(|progress| {
            (progress.is_held, progress.retry_at) = (false, None);
            progress.problem.take().is_some()
        });
    }

    /// Runs `work` on the outbox on a blocking thread.
    fn on_outbox<T, E>(
        &self,
        work: impl FnOnce(&Outbox, &str) -> Result<T, E> + Send + 'static,
    ) -> impl Future<Output = Result<T, E>> + Send + 'static
    where
        T: Send + 'static,
        E: Send + From<OutboxError> + 'static,
    {
        let (outbox, name) = (Arc::clone(&self.outbox), self.name.clone());
        let task = tokio::task::spawn_blocking(move || work(&outbox, &name));
        async move {
            match task.await {
                Ok(result) => result,
                Err(failure) => std::panic::resume_unwind(failure.into_panic()),
            }
        }
    }
}
