//! The loop of a sink's task: reads the outbox, sends, waits.

use std::{sync::Arc, time::Duration};

use siem_protocol::ChainPoint;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    super::outbox::{Head, Snapshot},
    AssembleError, Assembler, DeadLetterRetry, NextBatch, SinkControl, SinkTask, StopMode,
    batch_sender::{AfterBatch, CursorMove, DeliveryState, Sent, hand_over_requested},
    dead_letter_retry::retry_dead_letter,
    schedule::{Pause, Position, Schedule, SendRule},
};
use crate::stages::sink::{self, Batch};

/// A sink's task with everything that its loop keeps between two rounds.
pub(super) struct TaskLoop {
    task: SinkTask,
    control: watch::Receiver<SinkControl>,
    head: watch::Receiver<Head>,
    retries: mpsc::Receiver<DeadLetterRetry>,
    /// A dead letter that waits for the rate limit to be sent again.
    pending_retry: Option<DeadLetterRetry>,
    state: DeliveryState,
    /// True once the policy has received the number of refusals before the start.
    is_resumed: bool,
    schedule: Schedule,
    started: Instant,
}

/// Next step of the loop after one round.
enum Round {
    /// Another round at once.
    Next,
    /// Another round after a pause.
    Pause(Pause),
    /// The task is over.
    End,
}

impl TaskLoop {
    pub(super) fn new(
        task: SinkTask,
        control: watch::Receiver<SinkControl>,
        retries: mpsc::Receiver<DeadLetterRetry>,
    ) -> Self {
        Self {
            head: task.outbox.watch(),
            schedule: Schedule::new(task.rate_limit),
            task,
            control,
            retries,
            pending_retry: None,
            state: DeliveryState::default(),
            is_resumed: false,
            started: Instant::now(),
        }
    }

    pub(super) async fn run(mut self) {
        let means = self.task.sink.acknowledged();
        self.task.progress.send_modify(|progress| progress.acknowledged_means = Some(means));
        loop {
            match self.round().await {
                Round::Next => {}
                Round::Pause(pause) => {
                    if !self.pause(pause).await {
                        return;
                    }
                }
                Round::End => return,
            }
        }
    }

    async fn round(&mut self) -> Round {
        let end = *self.head.borrow_and_update();
        let control = *self.control.borrow_and_update();
        if control.stop == StopMode::HandOver {
            if self.schedule.persist_at().is_some() {
                self.persist_acks().await;
            }
            self.task.progress.send_modify(|progress| progress.handed_over = true);
            return Round::End;
        }
        self.take_retries(control.stop).await;
        let next = match self.schedule.next_rule(&end, &control, self.elapsed()) {
            None => Ok(NextBatch::Nothing),
            Some(rule) => self.next_batch(&control, rule).await,
        };
        match next {
            Err(failure) => Round::Pause(Pause::fixed(self.task.read_failed(&failure))),
            Ok(NextBatch::Nothing) => self.all_delivered(control.stop).await,
            Ok(NextBatch::Waiting(rest)) => Round::Pause(self.schedule.pause_for_more(rest)),
            Ok(NextBatch::InTransit(recheck)) => {
                self.show_in_transit(Some(Instant::now() + recheck));
                Round::Pause(self.schedule.pause_in_transit(recheck))
            }
            Ok(NextBatch::Ready { batch, end, is_full }) => {
                let wait = self.schedule.rate_limit_wait(self.elapsed());
                self.show_rate_limit(wait);
                if !wait.is_zero() {
                    return Round::Pause(Pause::fixed(wait));
                }
                self.send(*batch, end, is_full).await
            }
        }
    }

    /// Assembles the next batch: on this thread if the sink only lacks a small group that was just stored, and
    /// so is in the memory of the store, and otherwise on a blocking thread.
    async fn next_batch(
        &mut self,
        control: &SinkControl,
        rule: SendRule,
    ) -> Result<NextBatch, AssembleError> {
        let (codec, clock) = (sink::codec(&*self.task.sink), Arc::clone(&self.task.clock));
        let DeliveryState { policy, decided, .. } = self.state.clone();
        let shipping = control.shipping;
        let identity = Arc::clone(&self.task.identity);
        let assemble = move |snapshot: &Snapshot<'_>, sink: &str| {
            let (identity, clock, decided) = (&*identity, &*clock, &decided);
            let assembler = Assembler { snapshot, sink, codec, identity, shipping, clock, decided };
            let cursor = snapshot.cursor(sink)?;
            let border = policy.border(cursor.acknowledged.seq);
            let next = assembler.next(&cursor, border, &rule)?;
            Ok::<_, AssembleError>((next, cursor.refusals))
        };
        if self.is_resumed
            && self.schedule.lacks_little(&self.head.borrow())
            && let Some(snapshot) = self.task.outbox.snapshot_now()
        {
            return assemble(&snapshot, &self.task.name).map(|(next, _)| next);
        }
        let next = self.task.on_outbox(move |outbox, sink| assemble(&outbox.snapshot()?, sink));
        let (next, refusals) = next.await?;
        if !std::mem::replace(&mut self.is_resumed, true) {
            self.state.policy.resume(refusals);
        }
        Ok(next)
    }

    async fn send(&mut self, mut batch: Batch, end: ChainPoint, is_full: bool) -> Round {
        batch.patience = self.state.policy.patience();
        self.schedule.sending(is_full);
        let (head, started) = (*self.head.borrow(), self.elapsed());
        let sent = self.task.send(&batch, end, &mut self.state, &self.control);
        let Sent { after, moved } = sent.await;
        self.schedule.sent(self.task.sink.sent(&batch), started);
        if !matches!(after, AfterBatch::Recheck(_)) {
            self.show_in_transit(None);
        }
        let now = self.elapsed();
        let has_moved = moved.is_some();
        if let Some(CursorMove { seq, is_first }) = moved {
            self.schedule.acknowledged(Position::in_numbering_of(&head, seq), is_first, now);
            if self.schedule.must_persist(now) || !self.task.sink.repetitions_are_recognisable() {
                self.persist_acks().await;
            }
        }
        match after {
            AfterBatch::Wait(delay) => Round::Pause(Pause::fixed(delay)),
            AfterBatch::Again | AfterBatch::HandedOver => Round::Next,
            AfterBatch::Recheck(recheck) => {
                self.task.outbox.count_sent(&self.task.name, &batch.header.epoch, end.seq);
                let through = Position::in_numbering_of(&head, end.seq);
                self.schedule.in_transit(through, recheck, has_moved, now);
                Round::Next
            }
        }
    }

    /// Everything is delivered: waits for more, or ends if the task was to end at this point.
    async fn all_delivered(&mut self, stop: StopMode) -> Round {
        if stop == StopMode::WhenDrained {
            self.persist_acks().await;
            if self.schedule.persist_at().is_some() {
                return Round::Pause(Pause::until_entries());
            }
        }
        self.task.clear_problem();
        if stop == StopMode::WhenDrained {
            self.task.progress.send_modify(|progress| progress.drained = true);
            return Round::End;
        }
        Round::Pause(Pause::until_entries())
    }

    /// Stores the acknowledgements, or schedules another attempt.
    async fn persist_acks(&mut self) {
        let failure = self.task.on_outbox(|outbox, _| outbox.persist_acks()).await.err();
        let retry_at = failure.map(|failure| self.elapsed() + self.task.write_failed(&failure));
        self.schedule.persisted(retry_at);
    }

    /// Pauses. Returns `false` if the task must end, since its control channel is closed.
    async fn pause(&mut self, pause: Pause) -> bool {
        let elapsed = sleep(pause.length);
        tokio::pin!(elapsed);
        loop {
            let persist_at = self.started + self.schedule.persist_at().unwrap_or_default();
            let retry_at = Instant::now() + self.schedule.rate_limit_wait(self.elapsed());
            tokio::select! {
                () = &mut elapsed => {
                    self.schedule.pause_elapsed(&pause);
                    return true;
                }
                changed = self.head.changed(), if pause.until_entries => return changed.is_ok(),
                changed = self.control.changed() => return changed.is_ok(),
                () = sleep_until(persist_at), if self.schedule.persist_at().is_some() => {
                    self.persist_acks().await;
                    // A task that ends once everything is stored has to check that condition again.
                    if pause.until_entries && self.control.borrow().stop != StopMode::Never {
                        return true;
                    }
                }
                Some(retry) = self.retries.recv(), if self.pending_retry.is_none() => {
                    self.pending_retry = Some(retry);
                }
                () = sleep_until(retry_at), if self.pending_retry.is_some() => {
                    self.send_pending_retry().await;
                }
            }
        }
    }

    /// Sends a dead letter again if one is ordered and the rate limit allows it. A task that is
    /// about to end drops the order: its remaining time belongs to the entries in the outbox.
    async fn take_retries(&mut self, stop: StopMode) {
        if stop == StopMode::WhenDrained {
            self.retries.close();
            self.pending_retry = None;
        } else if self.pending_retry.is_none() {
            self.pending_retry = self.retries.try_recv().ok();
        }
        if self.schedule.rate_limit_wait(self.elapsed()).is_zero() {
            self.send_pending_retry().await;
        }
    }

    /// Sends the pending dead letter again, unless another task takes over meanwhile.
    async fn send_pending_retry(&mut self) {
        let Some(DeadLetterRetry { id, outcome }) = self.pending_retry.take() else { return };
        let started = self.elapsed();
        let SinkTask { sink, outbox, identity, clock, .. } = &mut self.task;
        let attempt = tokio::select! {
            biased;
            attempt = retry_dead_letter(&mut **sink, outbox, identity, &**clock, id) => attempt,
            () = hand_over_requested(self.control.clone()) => return,
        };
        self.schedule.sent(attempt.sent_bytes, started);
        // Fails when the command that ordered it has ended.
        outcome.send(attempt.outcome).ok();
    }

    /// Shows until when the rate limit keeps the next batch.
    fn show_rate_limit(&self, wait: Duration) {
        if self.schedule.has_rate_limit() {
            let until = (!wait.is_zero()).then(|| Instant::now() + wait);
            self.task.progress.send_modify(|progress| progress.rate_limited_until = until);
        }
    }

    /// Shows until when entries in transit do not count as delivered.
    fn show_in_transit(&self, until: Option<Instant>) {
        self.task.progress.send_if_modified(|progress| {
            std::mem::replace(&mut progress.in_transit_until, until) != until
        });
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}
