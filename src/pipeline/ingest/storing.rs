//! Stores groups, and continues from the store after a failure.

use std::time::Duration;

use tracing::error;

use super::{
    super::{
        group::Group,
        group_life_cycle::GroupChange,
        outbox::{Outbox, OutboxError},
    },
    Ingest, StoreFailure,
};
use crate::{event::Event, text::causes};

/// Pause after a failed commit.
pub(super) const COMMIT_RETRY: Duration = Duration::from_secs(5);

impl Ingest {
    /// Stores the open group and waits until everything is stored. After a failure everything
    /// continues from the store, after the pause that is returned.
    pub(super) fn commit(&mut self) -> Result<(), Duration> {
        self.await_writer()?;
        if let Some(group) = self.seal_group() {
            self.writer.start_here(group);
            self.await_writer()?;
        }
        self.state.backfill.stored(&self.outbox);
        self.state.store_failure = None;
        Ok(())
    }

    /// Hands the open group to the writer once the group before it is stored.
    pub(super) fn hand_over(&mut self) -> Result<(), Duration> {
        self.await_writer()?;
        if let Some(group) = self.seal_group() {
            self.writer.start(group, self.state.is_backfill);
        }
        if self.state.groups.must_confirm() { self.commit() } else { Ok(()) }
    }

    /// Seals the open group, which the writer must be given; `None` if it is empty.
    fn seal_group(&mut self) -> Option<Group> {
        if self.builder.is_empty() {
            return None;
        }
        // Read before the writer starts, since the writer counts the group.
        let number = self.outbox.group_count() + 1;
        self.state.backfill.seal(self.builder.raw_bytes(), &self.outbox);
        let group = self.builder.finish_unencoded(self.clock.now());
        let change = self.state.groups.seal(number);
        self.notify(change);
        Some(group)
    }

    /// Waits for the group that is being stored, if any.
    pub(super) fn await_writer(&mut self) -> Result<(), Duration> {
        match self.writer.finish() {
            None => Ok(()),
            Some(Ok(())) => {
                let change = self.state.groups.stored(self.builder.is_empty());
                self.notify(change);
                Ok(())
            }
            Some(Err(failure)) => Err(self.commit_failed(&failure)),
        }
    }

    /// Logs a failed commit and returns the pause before the next attempt.
    fn commit_failed(&mut self, failure: &OutboxError) -> Duration {
        let cause = causes(failure);
        error!(code = "commit_failed", cause, "cannot store entries: they will be read again");
        self.state.groups.lose();
        if matches!(failure, OutboxError::Stale { .. }) {
            return Duration::ZERO;
        }
        self.note_store_failure(cause);
        COMMIT_RETRY
    }

    /// Records for the status why nothing can be stored, and since when.
    fn note_store_failure(&mut self, cause: String) {
        let since = self.state.store_failure.as_ref().map(|failure| failure.since);
        let since = since.unwrap_or_else(|| self.clock.now());
        self.state.store_failure = Some(StoreFailure { cause, since });
    }

    /// Continues from the store if the open group is lost. Events that are not stored are added
    /// again.
    pub(super) fn restore(&mut self) -> Result<(), Duration> {
        if !self.state.groups.is_lost() {
            return Ok(());
        }
        // A group that is still being stored may succeed: reading continues behind it then.
        self.await_writer()?;
        if let Err(failure) = self.restart_from_store() {
            let cause = causes(&failure);
            error!(code = "checkpoints_read_failed", cause, "cannot read checkpoints");
            self.note_store_failure(cause);
            return Err(COMMIT_RETRY);
        }
        self.state.groups.reopen();
        for event in self.inbox.open_events() {
            self.builder.add_event(&event, &mut self.stages.enrichers, self.clock.now());
        }
        Ok(())
    }

    fn restart_from_store(&mut self) -> Result<(), OutboxError> {
        // Reading opens the store again, which then reports the number of groups in it.
        self.stages.restore(self.outbox.dropped_parts()?);
        if let Some(change) = self.state.groups.resolve(self.outbox.group_count()) {
            self.notify(change);
        }
        let change = self.state.groups.lost();
        self.notify(change);
        for (name, source) in &mut self.sources {
            let restored = self.outbox.checkpoints(name, |rows| source.restore(rows))?;
            restored.map_err(|row| self.outbox.report_bad_checkpoint(&row))?;
        }
        self.builder.restart_at(self.outbox.end());
        Ok(())
    }

    /// Sends a change in the life of a group to everything that keeps something until its group is
    /// stored. This is the only place that does so.
    fn notify(&mut self, change: GroupChange) {
        self.stages.on_group_change(change);
        for (_, source) in &mut self.sources {
            change.send_to_source(&mut **source);
        }
        self.inbox.on_group_change(change);
        self.state.heartbeat.on_group_change(change);
    }

    /// Adds an event, again in another group if this one is lost.
    pub(super) fn add_event(&mut self, event: Event) {
        self.builder.add_event(&event, &mut self.stages.enrichers, self.clock.now());
        self.inbox.keep_open(event);
    }

    /// Runs the jobs that others have for the store, while no group is being stored.
    pub(super) fn run_jobs(&mut self) -> Result<(), Duration> {
        if !self.inbox.has_jobs() {
            return Ok(());
        }
        self.commit()?;
        let outbox: &Outbox = &self.outbox;
        self.inbox.take_jobs().into_iter().for_each(|job| job(outbox));
        // The open group is empty, and starts behind the entries that the jobs have appended.
        self.builder.restart_at(self.outbox.end());
        Ok(())
    }
}
