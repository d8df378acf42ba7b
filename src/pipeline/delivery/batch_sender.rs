//! Sends one batch, and executes the decision of the retry policy.

use std::{error::Error, time::Duration};

use siem_protocol::{
    AgentEvent, ChainPoint,
    agent_event::{EpochReason, EpochStarted, PurgeReason},
};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::{
    super::outbox::{DeadLetter, DeadLetterId, OutboxError, Purged, RenumberOutcome},
    AssembleError, NextAction, RetryPolicy, SinkControl, SinkTask, StopMode,
};
use crate::{
    stages::sink::{Batch, problem_summary},
    text::causes,
};

/// Pause after the outbox could not be read or written.
pub(super) const STORE_RETRY: Duration = Duration::from_secs(5);

/// Next step after a batch was sent.
pub(super) enum AfterBatch {
    /// The batch is acknowledged.
    Acknowledged {
        /// True if no earlier acknowledgement waits to be stored.
        is_first: bool,
    },
    /// Another batch is sent from the cursor at once.
    Again,
    /// Another task takes over.
    HandedOver,
    /// The task waits for this time.
    Wait(Duration),
}

impl SinkTask {
    /// Sends one batch and executes the decision of the policy.
    pub(super) async fn send(
        &mut self,
        batch: &Batch,
        end: ChainPoint,
        policy: &mut RetryPolicy,
        control: &watch::Receiver<SinkControl>,
    ) -> AfterBatch {
        let lines = batch.header.count;
        // A request may take a minute and is interrupted; writing to the store afterwards is not.
        let delivery = tokio::select! {
            biased;
            delivery = self.sink.deliver(batch) => delivery,
            () = hand_over_requested(control.clone()) => return AfterBatch::HandedOver,
        };
        let mut next = policy.next(delivery, end.seq, lines, (self.jitter)());
        if next == NextAction::Renumber {
            match self.renumber(batch).await {
                Ok(true) => return AfterBatch::Again,
                Ok(false) => {
                    let reason = "the receiver has other entries under these numbers, and the \
                                  last epoch started less than an hour ago";
                    next = policy.hold(reason.to_owned(), (self.jitter)());
                }
                Err(failure) => return AfterBatch::Wait(self.write_failed(&failure)),
            }
        }
        match next {
            NextAction::Advance => self.advance(batch, end, policy),
            NextAction::Again | NextAction::Renumber => AfterBatch::Again,
            NextAction::Wait { delay, alarm, reason } => {
                AfterBatch::Wait(self.postpone(batch, delay, alarm, reason))
            }
            NextAction::DeadLetter { status, answer } => {
                let max_bytes = control.borrow().max_dead_letter_bytes;
                match self.store_dead_letter(batch, status, answer, max_bytes).await {
                    Ok(()) => AfterBatch::Again,
                    Err(failure) => AfterBatch::Wait(self.write_failed(&failure)),
                }
            }
        }
    }

    /// Moves the cursor behind the batch.
    fn advance(&self, batch: &Batch, end: ChainPoint, policy: &RetryPolicy) -> AfterBatch {
        let header = &batch.header;
        let lines = header.count;
        let is_first = !self.outbox.advance(&self.name, &header.epoch, end, policy.refusals());
        debug!(sink = self.name, batch = %header.id(), lines, "batch delivered");
        let now = self.clock.now();
        self.progress.send_modify(|progress| {
            if progress.problem.take().is_some() {
                info!(code = "delivery_resumed", sink = self.name, "delivery resumed");
            }
            (progress.is_held, progress.retry_at) = (false, None);
            progress.acknowledged_at = Some(now);
            progress.acknowledged = end.seq;
            progress.delivered += lines;
        });
        AfterBatch::Acknowledged { is_first }
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
        delay
    }

    /// Starts a new epoch in place of the batch's. Returns `false` if the last one is too recent.
    async fn renumber(&mut self, batch: &Batch) -> Result<bool, OutboxError> {
        let (epoch, new, now) = (batch.header.epoch.clone(), (self.new_epoch)(), self.clock.now());
        let outcome = self.on_outbox(move |outbox, _| outbox.renumber(&epoch, new, now)).await?;
        if let RenumberOutcome::Started { previous, epoch, entries, ended: (last_seq, totals) } =
            &outcome
        {
            warn!(code = "epoch_conflict", previous, epoch, entries, "started a new epoch");
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
        Ok(!matches!(outcome, RenumberOutcome::TooSoon))
    }

    /// Stores the only entry of the batch as a dead letter, and reports it.
    async fn store_dead_letter(
        &mut self,
        batch: &Batch,
        status: u16,
        answer: String,
        max_bytes: u64,
    ) -> Result<(), AssembleError> {
        let lines = batch.body.lines()?;
        let line = lines.strip_suffix(b"\n").unwrap_or(&lines);
        let dead: Vec<u64> = batch.header.dead_lettered.iter().map(|letter| letter.seq).collect();
        let (first, last) = (batch.header.first_seq, batch.header.last_seq);
        let mut covered = first.unwrap_or_default()..=last.unwrap_or_default();
        let Some(seq) = covered.find(|seq| !dead.contains(seq)) else { return Ok(()) };
        let (sink, epoch) = (self.name.clone(), batch.header.epoch.clone());
        let at = self.clock.now().to_string();
        let said = problem_summary(answer.as_bytes());
        let letter = DeadLetter::new(line, batch.header.config_hash, status, answer, at);
        let id = DeadLetterId { sink, epoch, seq };
        error!(
            code = "entry_refused",
            sink = self.name,
            seq,
            status,
            said,
            "entry permanently refused and stored as a dead letter: see `ai-agent deadletter list`"
        );
        let purged = self
            .on_outbox(move |outbox, _| outbox.store_dead_letter_within(&id, &letter, max_bytes))
            .await?;
        let refused = AgentEvent::EntryDeadLettered { sink: self.name.clone(), seq, status };
        (self.report)(refused.into());
        self.report_purged(&purged);
        Ok(())
    }

    /// Reports the dead letters that were deleted to make space for another.
    fn report_purged(&self, purged: &Purged) {
        /// More would make the event larger than a batch.
        const NAMED: usize = 100;

        let (count, bytes) = (purged.letters.len(), purged.bytes);
        if count == 0 {
            return;
        }
        error!(
            code = "dead_letters_purged",
            count,
            bytes,
            "deleted the oldest dead letters: `max_dead_letter_bytes` is reached, see \
             `ai-agent deadletter export`"
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
