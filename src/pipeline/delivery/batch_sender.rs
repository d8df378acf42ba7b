//! Sends one batch, and executes the decision of the retry policy.

use std::{error::Error, time::Duration};

use siem_protocol::{
    AgentEvent, ChainPoint,
    agent_event::{EpochStarted, UntrustedAnswer},
};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::{
    super::outbox::{OutboxError, RenumberOutcome},
    DecidedEntries, NextAction, RetryPolicy, SinkControl, SinkTask, StopMode,
    batch_assembler::chain_point,
};
use crate::{
    stages::sink::{Acknowledged, Batch, EntryResult, StoredFrames},
    text::causes,
};

/// Pause after the outbox could not be read or written.
pub(super) const STORE_RETRY: Duration = Duration::from_secs(5);

/// Shortest time between two events about responses that must not be believed.
const UNTRUSTED_REPORT_INTERVAL: Duration = Duration::from_secs(3600);

/// What a task knows about its sink's receiver.
#[derive(Clone, Debug, Default)]
pub(super) struct DeliveryState {
    pub(super) policy: RetryPolicy,
    pub(super) decided: DecidedEntries,
    /// Time since the start at which an untrusted response was last reported.
    pub(super) untrusted_reported_at: Option<Duration>,
}

/// A batch that was sent.
pub(super) struct Sent {
    /// Next step.
    pub(super) after: AfterBatch,
    /// The cursor's move, if it has moved.
    pub(super) moved: Option<CursorMove>,
}

/// A move of the cursor.
pub(super) struct CursorMove {
    /// Number of the last acknowledged entry.
    pub(super) seq: u64,
    /// True if no earlier acknowledgement waits to be stored.
    pub(super) is_first: bool,
}

/// Next step after a batch was sent.
pub(super) enum AfterBatch {
    /// Another batch is sent from the cursor at once.
    Again,
    /// Another task takes over.
    HandedOver,
    /// The task waits for this time.
    Wait(Duration),
    /// The task waits for new entries, at most for this time.
    Recheck(Duration),
}

impl From<AfterBatch> for Sent {
    fn from(after: AfterBatch) -> Self {
        Self { after, moved: None }
    }
}

impl SinkTask {
    /// Sends one batch and executes the decision of the policy.
    pub(super) async fn send(
        &mut self,
        batch: &Batch,
        end: ChainPoint,
        state: &mut DeliveryState,
        control: &watch::Receiver<SinkControl>,
    ) -> Sent {
        // A request may take a minute and is interrupted; writing to the store afterwards is not.
        let delivery = tokio::select! {
            biased;
            delivery = self.sink.deliver(batch) => delivery,
            () = hand_over_requested(control.clone()) => return AfterBatch::HandedOver.into(),
        };
        let findings = StoredFrames::of(batch).map(StoredFrames::take_findings).unwrap_or_default();
        if let Some((status, problem)) = findings.untrusted {
            self.report_untrusted(batch, status, problem, state);
        }
        let numbers = state.decided.numbers_in(&batch.header);
        let mut next = state.policy.next(delivery, &numbers, (self.jitter)());
        if next == NextAction::Renumber {
            match self.renumber(batch).await {
                Ok(true) => return AfterBatch::Again.into(),
                Ok(false) => {
                    let reason = "the receiver has other entries under these numbers, and the \
                                  last epoch started less than an hour ago";
                    next = state.policy.hold(reason.to_owned(), (self.jitter)());
                }
                Err(failure) => return AfterBatch::Wait(self.write_failed(&failure)).into(),
            }
        }
        let max_bytes = control.borrow().max_dead_letter_bytes;
        match next {
            NextAction::Advance => self.advance(batch, end, (0, findings.receipt), state).await,
            NextAction::ReportAndAdvance { refused, answer } => {
                self.report_unidentified(&numbers.seqs, refused, &answer);
                self.advance(batch, end, (refused, findings.receipt), state).await
            }
            NextAction::Decide { entries, then } => {
                self.decide(batch, &numbers, entries, *then, state, max_bytes).await
            }
            NextAction::DeadLetter { status, answer } => {
                let refused = EntryResult::Refused { status, answer };
                let refusals = state.policy.refusals();
                match self
                    .store_dead_letters(batch, &numbers, &[refused], refusals, max_bytes)
                    .await
                {
                    Ok(()) => AfterBatch::Again.into(),
                    Err(failure) => AfterBatch::Wait(self.write_failed(&failure)).into(),
                }
            }
            next => self.after(batch, next).into(),
        }
    }

    /// Takes a step that moves nothing.
    pub(super) fn after(&self, batch: &Batch, next: NextAction) -> AfterBatch {
        match next {
            NextAction::Wait { delay, alarm, reason } => {
                AfterBatch::Wait(self.postpone(batch, delay, alarm, reason))
            }
            NextAction::Recheck { after } => {
                self.clear_solved_problem();
                AfterBatch::Recheck(after)
            }
            _ => AfterBatch::Again,
        }
    }

    /// Reports a response that must not be believed, at most once an hour.
    fn report_untrusted(
        &self,
        batch: &Batch,
        status: u16,
        problem: UntrustedAnswer,
        state: &mut DeliveryState,
    ) {
        let now = self.clock.uptime();
        let is_recent = |at: Duration| now.saturating_sub(at) < UNTRUSTED_REPORT_INTERVAL;
        if state.untrusted_reported_at.is_some_and(is_recent) {
            return;
        }
        state.untrusted_reported_at = Some(now);
        let header = &batch.header;
        error!(
            code = "receipt_untrusted",
            sink = self.name,
            batch = %header.id(),
            status,
            ?problem,
            "the response is not signed by the receiver's key: entries are kept"
        );
        let untrusted = AgentEvent::ReceiptUntrusted {
            sink: self.name.clone(),
            status,
            problem,
            epoch: Some(header.epoch.clone()),
            last_seq: header.last_seq,
        };
        (self.report)(untrusted.into());
    }

    /// Moves the cursor behind the batch, of which `refused` entries were refused, and stores the
    /// receipt.
    async fn advance(
        &mut self,
        batch: &Batch,
        end: ChainPoint,
        (refused, receipt): (u64, Option<String>),
        state: &mut DeliveryState,
    ) -> Sent {
        let header = &batch.header;
        let lines = header.count;
        let end = self.skip_decided(&header.epoch, end.seq, state).await.unwrap_or(end);
        let refusals = state.policy.refusals();
        let is_first =
            !self.outbox.advance_with_receipt(&self.name, &header.epoch, end, refusals, receipt);
        debug!(sink = self.name, batch = %header.id(), lines, "batch delivered");
        self.clear_solved_problem();
        let unproven = if self.is_proof() { refused } else { lines };
        self.count_delivered(lines - refused.min(lines), unproven);
        self.progress.send_modify(|progress| progress.acknowledged = end.seq);
        Sent { after: AfterBatch::Again, moved: Some(CursorMove { seq: end.seq, is_first }) }
    }

    /// Returns the position after the decided entries that follow the entry `seq`, and forgets these
    /// entries; `None` if there are none, or if the position cannot be read. In that case they stay
    /// decided, so that they are not sent again; reading the next batch reports the cause.
    pub(super) async fn skip_decided(
        &mut self,
        epoch: &str,
        seq: u64,
        state: &mut DeliveryState,
    ) -> Option<ChainPoint> {
        let mut decided = state.decided.clone();
        let last = decided.take_through(epoch, seq);
        let point = match last > seq {
            true => Some(self.chain_point(last).await?),
            false => None,
        };
        state.decided = decided;
        point
    }

    /// Returns the position after the entry `seq`; `None` if it cannot be read.
    async fn chain_point(&mut self, seq: u64) -> Option<ChainPoint> {
        self.on_outbox(move |outbox, _| chain_point(outbox, seq)).await.ok().flatten()
    }

    /// Returns whether an acknowledgement of the sink proves that an entry is stored.
    pub(super) fn is_proof(&self) -> bool {
        match self.sink.acknowledged() {
            Acknowledged::Verified | Acknowledged::Indexed => true,
            Acknowledged::Received | Acknowledged::Nothing => false,
        }
    }

    pub(super) fn count_delivered(&self, delivered: u64, unproven: u64) {
        let (now, means) = (self.clock.now(), self.sink.acknowledged());
        self.progress.send_modify(|progress| {
            // A sink may learn from its receiver that there are no acknowledgements.
            progress.acknowledged_means = Some(means);
            progress.delivered += delivered;
            progress.unproven += unproven;
            progress.acknowledged_at = Some(now);
        });
    }

    /// Clears the problem and logs that delivery has resumed, if there was one.
    pub(super) fn clear_solved_problem(&self) {
        self.progress.send_if_modified(|progress| {
            (progress.is_held, progress.retry_at) = (false, None);
            let had_problem = progress.problem.take().is_some();
            if had_problem {
                info!(code = "delivery_resumed", sink = self.name, "delivery resumed");
            }
            had_problem
        });
    }

    /// Logs why the batch is sent again later, and returns the delay.
    fn postpone(&self, batch: &Batch, delay: Duration, alarm: bool, reason: String) -> Duration {
        // The delay is random to the nanosecond, which is of no use in a log.
        let delay = Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        let batch = batch.header.id().to_string();
        if alarm {
            error!(
                code = "delivery_held",
                sink = self.name,
                batch,
                reason,
                ?delay,
                "delivery held"
            );
        } else {
            warn!(
                code = "delivery_postponed",
                sink = self.name,
                batch,
                reason,
                ?delay,
                "delivery postponed"
            );
        }
        self.set_problem(reason, delay, alarm);
        self.progress.send_modify(|progress| progress.retries += 1);
        delay
    }

    /// Starts a new epoch in place of the batch's. Returns `false` if the last one is too recent.
    async fn renumber(&mut self, batch: &Batch) -> Result<bool, OutboxError> {
        let (epoch, new, now) = (batch.header.epoch.clone(), (self.new_epoch)(), self.clock.now());
        match self.on_outbox(move |outbox, _| outbox.renumber(&epoch, new, now)).await? {
            RenumberOutcome::Started(started) => {
                let EpochStarted { previous_epoch, epoch, entries, .. } = &*started;
                let previous = previous_epoch.as_deref();
                warn!(code = "epoch_conflict", previous, epoch, entries, "started a new epoch");
                (self.report)(AgentEvent::EpochStarted(started).into());
                Ok(true)
            }
            RenumberOutcome::AlreadyDone => Ok(true),
            RenumberOutcome::TooSoon => Ok(false),
        }
    }

    /// Logs that the outbox could not be written, and returns the pause before the next attempt.
    pub(super) fn write_failed(&self, failure: &dyn Error) -> Duration {
        let cause = causes(failure);
        error!(code = "outbox_write_failed", sink = self.name, cause, "cannot write the outbox");
        self.set_problem(cause, STORE_RETRY, false);
        STORE_RETRY
    }

    /// Logs that the outbox could not be read, and returns the pause before the next attempt.
    pub(super) fn read_failed(&self, failure: &dyn Error) -> Duration {
        let cause = causes(failure);
        error!(code = "outbox_read_failed", sink = self.name, cause, "cannot read the outbox");
        self.set_problem(cause, STORE_RETRY, false);
        STORE_RETRY
    }
}

/// Waits until the task must hand over to another one.
pub(super) async fn hand_over_requested(mut control: watch::Receiver<SinkControl>) {
    if control.wait_for(|control| control.stop == StopMode::HandOver).await.is_err() {
        std::future::pending().await
    }
}
