//! Delivers what lies in the outbox: one task and one batch in flight for each sink.

mod batch_assembler;
mod dead_letter_retry;
mod rate_limit;
mod retry_policy;
#[cfg(test)]
mod tests;

use std::{mem, sync::Arc, time::Duration};

pub use batch_assembler::{AssembleError, Assembler, NextBatch};
pub use dead_letter_retry::{DeadLetterRetry, RetryOutcome, retry_dead_letter};
pub use rate_limit::RateLimit;
pub use retry_policy::{NextAction, RetryPolicy};
use siem_protocol::{
    AgentEvent, ChainPoint, Identity,
    event::{EpochReason, EpochStarted, PurgeReason},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, error, info, warn};

use super::outbox::{DeadLetter, DeadLetterId, Head, Outbox, OutboxError, Purged, RenumberOutcome};
use crate::{
    config::ShippingSettings,
    event::Event,
    platform::{Clock, Timestamp},
    stages::sink::{self, Batch, Sink, gist},
    text::causes,
};

/// How long a store that cannot be read is left alone.
const STORE_RETRY: Duration = Duration::from_secs(5);
/// After a full batch the rest of a backlog waits for more only so long: when nothing comes for
/// this time, that was all.
const LULL: Duration = Duration::from_millis(50);
/// How long an acknowledgement waits to be stored with entries that come.
const SETTLE: Duration = Duration::from_secs(1);

/// How a sink's task ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StopMode {
    /// Not yet.
    #[default]
    Never,
    /// When everything that lies in the outbox is delivered. Nothing waits to fill a batch.
    WhenDrained,
    /// At once, even in mid-batch: another goes on from the cursor.
    HandOver,
}

/// What a sink's task is told, and may be told anew while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkControl {
    /// How it ends.
    pub stop: StopMode,
    /// How large batches are, and when they are sent: from the next batch on.
    pub shipping: ShippingSettings,
    /// How many bytes of dead letters are kept.
    pub max_dead_letter_bytes: u64,
    /// What lay in the outbox when somebody asked for it to be sent: it waits for nothing.
    pub flush: Head,
}

impl SinkControl {
    /// To run for good.
    #[must_use]
    pub fn new(shipping: ShippingSettings, max_dead_letter_bytes: u64) -> Self {
        let flush = Head::default();
        Self { stop: StopMode::Never, shipping, max_dead_letter_bytes, flush }
    }

    /// The same, to end as `stop` says.
    #[must_use]
    pub fn until(self, stop: StopMode) -> Self {
        Self { stop, ..self }
    }
}

/// How a sink is doing, for `run --once` and the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkProgress {
    /// The last acknowledged number.
    pub acknowledged: u64,
    /// Entries acknowledged since the start.
    pub delivered: u64,
    /// When something was acknowledged last, since the start.
    pub acknowledged_at: Option<Timestamp>,
    /// Why nothing is delivered at present.
    pub trouble: Option<String>,
    /// Whether a person should look at that: waiting alone may not mend it.
    pub is_held: bool,
    /// When it is tried again.
    pub retry_at: Option<Timestamp>,
    /// What went wrong last, whether it is mended or not, and when.
    pub last_error: Option<(String, Timestamp)>,
    /// Whether everything is delivered, and the task was told to end then.
    pub drained: bool,
    /// Whether the task has left the rest to another, as it was told.
    pub left: bool,
    /// Until when the next batch waits, since the sink may not send more yet.
    pub paced_until: Option<Instant>,
}

/// Delivers to one sink.
pub struct SinkTask {
    /// The sink's name.
    pub name: String,
    /// The sink.
    pub sink: Box<dyn Sink>,
    /// Where entries lie.
    pub outbox: Arc<Outbox>,
    /// Who sends.
    pub identity: Arc<Identity>,
    /// How fast it may send; `None` as fast as it can.
    pub rate_limit: Option<RateLimit>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Random numbers from 0 to 1, to spread retries.
    pub jitter: Box<dyn FnMut() -> f64 + Send>,
    /// Says how it is doing.
    pub progress: watch::Sender<SinkProgress>,
    /// Takes events: dead letters, new epochs.
    pub report: Arc<dyn Fn(Event) + Send + Sync>,
    /// Makes the name of a new epoch.
    pub new_epoch: Arc<dyn Fn() -> String + Send + Sync>,
}

/// What comes after a batch was sent.
enum After {
    /// The cursor is behind it: the next one.
    Advanced {
        /// Whether no acknowledgement before this one waits to be stored.
        is_first: bool,
    },
    /// Another batch, from where the cursor is.
    Again,
    /// Nothing: another task goes on.
    Left,
    /// A pause.
    Wait(Duration),
}

impl SinkTask {
    /// Delivers until told to end. Dropping the future in mid-batch is safe: the batch is sent
    /// again, and the receiver knows what it has.
    pub async fn run(self, orders: watch::Receiver<SinkControl>) {
        let (_, retries) = mpsc::channel(1);
        self.run_with_retries(orders, retries).await;
    }

    /// Delivers as [`run`](Self::run) does, and sends dead letters again as ordered by `retries`: one
    /// at a time, never while a batch is in flight, and within the rate limit.
    pub async fn run_with_retries(
        mut self,
        mut orders: watch::Receiver<SinkControl>,
        mut retries: mpsc::Receiver<DeadLetterRetry>,
    ) {
        let mut retry: Option<DeadLetterRetry> = None;
        let begun = Instant::now();
        let mut head = self.outbox.watch();
        let mut policy = RetryPolicy::default();
        let mut is_resumed = false;
        // How far the outbox was when all of it was delivered.
        let mut reached = None;
        // Whether the last batch was full, and nothing came for a while since.
        let (mut in_backlog, mut is_lull) = (false, false);
        // When what was acknowledged is stored, if that does not happen by the way.
        let mut settle_at = None;
        loop {
            let end = *head.borrow_and_update();
            let now = *orders.borrow_and_update();
            if now.stop == StopMode::HandOver {
                if settle_at.is_some() {
                    self.settle().await;
                }
                self.progress.send_modify(|progress| progress.left = true);
                return;
            }
            let draining = now.stop == StopMode::WhenDrained;
            if draining {
                // The time that is left belongs to the entries in the outbox.
                retries.close();
                retry = None;
            } else if retry.is_none() {
                retry = retries.try_recv().ok();
            }
            if self.owed(begun).is_zero()
                && let Some(retry) = retry.take()
            {
                self.retry(retry, begun, &orders).await;
            }
            let flush = draining || mem::take(&mut is_lull);
            let is_counted_on = now.flush.renumbered_at == end.renumbered_at;
            let flush_to = if is_counted_on { now.flush.last_seq } else { 0 };
            let pending = if reached == Some((end.renumbered_at, end.last_seq)) {
                Ok(NextBatch::Nothing)
            } else {
                let pending = self.pending(policy.clone(), now.shipping, flush, flush_to).await;
                pending.map(|(pending, refusals)| {
                    if !mem::replace(&mut is_resumed, true) {
                        policy.resume(refusals);
                    }
                    pending
                })
            };
            let mut is_waiting_for_lull = false;
            let owed = self.owed(begun);
            let (wait, watched) = match pending {
                Err(failure) => {
                    let cause = causes(&failure);
                    error!(
                        code = "outbox_read_failed",
                        sink = self.name,
                        cause,
                        "outbox could not be read"
                    );
                    self.trouble(cause, STORE_RETRY, false);
                    (STORE_RETRY, false)
                }
                Ok(NextBatch::Nothing) => {
                    if draining {
                        settle_at = self.settle().await;
                    }
                    if settle_at.is_none() || !draining {
                        self.no_trouble();
                    }
                    if draining && settle_at.is_none() {
                        self.progress.send_modify(|progress| progress.drained = true);
                        return;
                    }
                    (Duration::MAX, true)
                }
                Ok(NextBatch::Waiting(rest)) if in_backlog => {
                    is_waiting_for_lull = true;
                    (rest.min(LULL), true)
                }
                Ok(NextBatch::Waiting(rest)) => (rest, true),
                Ok(NextBatch::Ready { .. }) if !owed.is_zero() => {
                    self.paced_until(Some(Instant::now() + owed));
                    (owed, false)
                }
                Ok(NextBatch::Ready { mut batch, end, is_full }) => {
                    self.paced_until(None);
                    batch.set_patience(policy.patience());
                    in_backlog = is_full;
                    let renumbered_at = head.borrow().renumbered_at;
                    let since = begun.elapsed();
                    let after = self.deliver(&batch, end, &mut policy, &orders).await;
                    if let Some(pace) = &mut self.rate_limit {
                        pace.sent(self.sink.sent(&batch), since);
                    }
                    match after {
                        After::Wait(wait) => (wait, false),
                        After::Advanced { is_first } => {
                            reached = Some((renumbered_at, end.seq));
                            let now = Instant::now();
                            // What came before it went with entries meanwhile.
                            settle_at = settle_at.filter(|_| !is_first);
                            if *settle_at.get_or_insert(now + SETTLE) <= now {
                                settle_at = self.settle().await;
                            }
                            continue;
                        }
                        After::Again | After::Left => continue,
                    }
                }
            };
            // New entries may fill a batch; they do not shorten a wait for the receiver.
            let rest = sleep(wait);
            tokio::pin!(rest);
            loop {
                let due = settle_at.unwrap_or_else(Instant::now);
                let retry_due = Instant::now() + self.owed(begun);
                tokio::select! {
                    () = &mut rest => is_lull = is_waiting_for_lull,
                    changed = head.changed(), if watched => if changed.is_err() { return },
                    changed = orders.changed() => if changed.is_err() { return },
                    () = sleep_until(due), if settle_at.is_some() => {
                        settle_at = self.settle().await;
                        continue;
                    }
                    Some(order) = retries.recv(), if retry.is_none() => {
                        retry = Some(order);
                        continue;
                    }
                    () = sleep_until(retry_due), if retry.is_some() => {
                        if let Some(retry) = retry.take() {
                            self.retry(retry, begun, &orders).await;
                        }
                        continue;
                    }
                }
                break;
            }
        }
    }

    /// Time until the rate limit admits another request.
    fn owed(&self, begun: Instant) -> Duration {
        self.rate_limit.map_or(Duration::ZERO, |pace| pace.wait(begun.elapsed()))
    }

    /// Sends one dead letter again, unless another task takes over meanwhile.
    async fn retry(
        &mut self,
        DeadLetterRetry { id, outcome }: DeadLetterRetry,
        begun: Instant,
        orders: &watch::Receiver<SinkControl>,
    ) {
        let since = begun.elapsed();
        let Self { sink, outbox, identity, clock, .. } = self;
        let attempt = tokio::select! {
            biased;
            attempt = dead_letter_retry::attempt(&mut **sink, outbox, identity, &**clock, id) => attempt,
            () = is_left(orders.clone()) => return,
        };
        if let Some(pace) = &mut self.rate_limit {
            pace.sent(attempt.sent_bytes, since);
        }
        // The command that ordered it may have ended.
        outcome.send(attempt.outcome).ok();
    }

    /// Stores what was acknowledged; when that is to be tried again.
    async fn settle(&mut self) -> Option<Instant> {
        let failure = self.blocking(|outbox, _| outbox.persist_acks()).await.err()?;
        Some(Instant::now() + self.store_failed(&failure))
    }

    /// What there is to send, and how many entries were refused for good since one was taken. What
    /// there is goes at once with `flush`, or where entries up to `flush_to` are among it.
    fn pending(
        &self,
        policy: RetryPolicy,
        shipping: ShippingSettings,
        flush: bool,
        flush_to: u64,
    ) -> impl Future<Output = Result<(NextBatch, u32), AssembleError>> + Send + 'static {
        let (codec, now) = (sink::codec(&*self.sink), self.clock.now());
        let identity = Arc::clone(&self.identity);
        self.blocking(move |outbox, sink| {
            let assembler = Assembler { outbox, sink, codec, identity: &identity, shipping };
            let cursor = outbox.cursor(sink)?;
            let border = policy.border(cursor.acknowledged.seq);
            let flush = flush || cursor.acknowledged.seq < flush_to;
            Ok((assembler.next(&cursor, border, flush, now)?, cursor.refusals))
        })
    }

    /// Sends one batch and does what the policy says.
    async fn deliver(
        &mut self,
        batch: &Batch,
        end: ChainPoint,
        policy: &mut RetryPolicy,
        orders: &watch::Receiver<SinkControl>,
    ) -> After {
        let id = batch.header().id().to_string();
        let lines = batch.header().count;
        // A request may take a minute; what is done with the store afterwards is never cut short.
        let delivery = tokio::select! {
            biased;
            delivery = self.sink.deliver(batch) => delivery,
            () = is_left(orders.clone()) => return After::Left,
        };
        let mut next = policy.next(delivery, end.seq, lines, (self.jitter)());
        if next == NextAction::Renumber {
            match self.renumber(batch).await {
                Ok(true) => return After::Again,
                Ok(false) => {
                    let reason = "the receiver holds other entries under these numbers, and the \
                                  last new epoch began less than an hour ago";
                    next = policy.hold(reason.to_owned(), (self.jitter)());
                }
                Err(failure) => return After::Wait(self.store_failed(&failure)),
            }
        }
        match next {
            NextAction::Advance => {
                let epoch = batch.header().epoch.clone();
                let refusals = policy.refusals();
                let is_first = !self.outbox.advance(&self.name, &epoch, end, refusals);
                debug!(sink = self.name, batch = id, lines, "delivered");
                let now = self.clock.now();
                self.progress.send_modify(|progress| {
                    if progress.trouble.take().is_some() {
                        info!(code = "delivery_resumed", sink = self.name, "delivery goes on");
                    }
                    (progress.is_held, progress.retry_at) = (false, None);
                    progress.acknowledged_at = Some(now);
                    progress.acknowledged = end.seq;
                    progress.delivered += lines;
                });
                After::Advanced { is_first }
            }
            NextAction::Again | NextAction::Renumber => After::Again,
            NextAction::Wait { delay, alarm, reason } => {
                // A wait is random to the nanosecond; nobody wants to read that.
                let delay =
                    Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
                if alarm {
                    error!(
                        code = "delivery_held",
                        sink = self.name,
                        batch = id,
                        reason,
                        ?delay,
                        "delivery is held"
                    );
                } else {
                    warn!(
                        code = "delivery_postponed",
                        sink = self.name,
                        batch = id,
                        reason,
                        ?delay,
                        "delivery was postponed"
                    );
                }
                self.trouble(reason, delay, alarm);
                After::Wait(delay)
            }
            NextAction::Bury { status, answer } => {
                let most = orders.borrow().max_dead_letter_bytes;
                match self.bury(batch, status, answer, most).await {
                    Ok(()) => After::Again,
                    Err(failure) => After::Wait(self.store_failed(&failure)),
                }
            }
        }
    }

    /// Begins a new epoch in place of the batch's; false when the last one is too young.
    async fn renumber(&mut self, batch: &Batch) -> Result<bool, OutboxError> {
        let (epoch, new, now) =
            (batch.header().epoch.clone(), (self.new_epoch)(), self.clock.now());
        let begun = self.blocking(move |outbox, _| outbox.renumber(&epoch, new, now)).await?;
        if let RenumberOutcome::Started { previous, epoch, entries, ended: (last_seq, totals) } =
            &begun
        {
            warn!(code = "epoch_conflict", previous, epoch, entries, "a new epoch began");
            let started = EpochStarted {
                epoch: epoch.clone(),
                previous_epoch: Some(previous.clone()),
                reason: EpochReason::Conflict,
                entries: Some(*entries),
                previous_last_seq: Some(*last_seq),
                previous_totals: Some((**totals).clone()),
            };
            (self.report)(AgentEvent::EpochStarted(Box::new(started)).into());
        }
        Ok(!matches!(begun, RenumberOutcome::TooSoon))
    }

    /// Keeps the batch's only entry as a dead letter, and reports it.
    async fn bury(
        &mut self,
        batch: &Batch,
        status: u16,
        answer: String,
        most: u64,
    ) -> Result<(), AssembleError> {
        let lines = batch.lines()?;
        let line = lines.strip_suffix(b"\n").unwrap_or(&lines);
        let dead: Vec<u64> = batch.header().dead_lettered.iter().map(|letter| letter.seq).collect();
        let covered = batch.header().first_seq.unwrap_or_default()..=batch.last_seq();
        let Some(seq) = covered.into_iter().find(|seq| !dead.contains(seq)) else { return Ok(()) };
        let (sink, epoch) = (self.name.clone(), batch.header().epoch.clone());
        let at = self.clock.now().to_string();
        let said = gist(answer.as_bytes());
        let letter = DeadLetter::new(line, batch.header().config_hash, status, answer, at);
        let id = DeadLetterId { sink, epoch, seq };
        error!(
            code = "entry_refused",
            sink = self.name,
            seq,
            status,
            said,
            "entry was refused for good and kept as a dead letter: see `ai-agent deadletter list`"
        );
        let purged = self
            .blocking(move |outbox, _| outbox.store_dead_letter_within(&id, &letter, most))
            .await?;
        let refused = AgentEvent::EntryDeadLettered { sink: self.name.clone(), seq, status };
        (self.report)(refused.into());
        self.tell_purged(&purged);
        Ok(())
    }

    /// Reports the dead letters that had to go for another.
    fn tell_purged(&self, purged: &Purged) {
        /// More would be a report larger than a batch.
        const NAMED: usize = 100;

        let (count, bytes) = (purged.letters.len(), purged.bytes);
        if count == 0 {
            return;
        }
        error!(
            code = "dead_letters_purged",
            count,
            bytes,
            "the oldest dead letters were deleted: there is room for no more of them, see \
                    `max_dead_letter_bytes` and `deadletter export`"
        );
        let purged = AgentEvent::DeadLettersPurged {
            reason: PurgeReason::Cap,
            count: count as u64,
            letters: purged.letters.iter().take(NAMED).cloned().collect(),
            bytes: Some(bytes),
            total: Some(purged.total),
        };
        (self.report)(purged.into());
    }

    fn store_failed(&self, failure: &dyn std::error::Error) -> Duration {
        let cause = causes(failure);
        error!(
            code = "outbox_write_failed",
            sink = self.name,
            cause,
            "outbox could not be written"
        );
        self.trouble(cause, STORE_RETRY, false);
        STORE_RETRY
    }

    fn paced_until(&self, until: Option<Instant>) {
        if self.rate_limit.is_some() {
            self.progress.send_modify(|progress| progress.paced_until = until);
        }
    }

    /// Says why nothing is delivered, and when it is tried again.
    fn trouble(&self, reason: String, retry: Duration, is_held: bool) {
        let now = self.clock.now();
        let retry = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
        self.progress.send_modify(|progress| {
            progress.last_error = Some((reason.clone(), now));
            progress.trouble = Some(reason);
            progress.is_held = is_held;
            progress.retry_at = Some(Timestamp(now.0.saturating_add(retry)));
        });
    }

    fn no_trouble(&self) {
        self.progress.send_if_modified(|progress| {
            (progress.is_held, progress.retry_at) = (false, None);
            progress.trouble.take().is_some()
        });
    }

    /// Runs `work` on the outbox away from the network's threads.
    fn blocking<T, E>(
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

/// Waits until a task is told to leave the rest to another.
async fn is_left(mut orders: watch::Receiver<SinkControl>) {
    if orders.wait_for(|orders| orders.stop == StopMode::HandOver).await.is_err() {
        std::future::pending().await
    }
}
