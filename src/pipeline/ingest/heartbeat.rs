//! Heartbeats: their schedule and their content.

use std::time::Duration;

use siem_protocol::{
    AgentEvent,
    agent_event::{Heartbeat, TrustSummary, UpdateSummary},
};

use super::{super::group_life_cycle::GroupChange, Ingest};

/// Returns the trust between device and receivers.
pub type TrustReporter = Box<dyn Fn() -> TrustSummary + Send>;
/// Returns the state of updates.
pub type UpdateReporter = Box<dyn Fn() -> UpdateSummary + Send>;

/// Schedule of heartbeats. A heartbeat counts the entries before it, so that one in a lost group is
/// not repeated, since its position would be another: a new one is due at once.
///
/// Times are uptimes: the wall clock may jump, and a heartbeat must not wait for a year.
#[derive(Debug, Default)]
pub(super) struct HeartbeatTimer {
    due: Duration,
    /// Uptime at which the last heartbeat was added.
    added: Option<Duration>,
    /// True if the open group has a heartbeat.
    in_open: bool,
    /// True if the group that is being stored has one.
    in_storing: bool,
}

impl HeartbeatTimer {
    pub(super) fn due(&self) -> Duration {
        self.due
    }

    /// Returns the time since the last heartbeat was added.
    pub(super) fn age(&self, now: Duration) -> Option<Duration> {
        self.added.map(|added| now.saturating_sub(added))
    }

    /// Sets the time of the next heartbeat.
    pub(super) fn schedule(&mut self, due: Duration) {
        self.due = due;
    }

    pub(super) fn on_group_change(&mut self, change: GroupChange) {
        match change {
            GroupChange::Storing => (self.in_open, self.in_storing) = (false, self.in_open),
            GroupChange::Stored { .. } => self.in_storing = false,
            GroupChange::Lost => {
                if self.in_open || self.in_storing {
                    self.due = Duration::ZERO;
                }
                (self.in_open, self.in_storing) = (false, false);
            }
        }
    }
}

impl Ingest {
    /// Adds a heartbeat if one is due.
    pub(super) fn add_due_heartbeat(&mut self) {
        let now = self.clock.uptime();
        if now >= self.state.heartbeat.due() {
            let next = now + self.heartbeat_interval();
            self.state.heartbeat.schedule(next);
            self.add_heartbeat();
        }
    }

    /// Returns the interval, spread by ±10 %.
    pub(super) fn heartbeat_interval(&mut self) -> Duration {
        self.heartbeat.mul_f64(0.9 + 0.2 * (self.jitter)().clamp(0.0, 1.0))
    }

    /// Adds a heartbeat with the totals of all sequence numbers below its own.
    pub(super) fn add_heartbeat(&mut self) {
        let (mut files, mut unread, mut unreadable) = (0, 0_u64, 0);
        let mut verified = Vec::new();
        for (_, source) in &self.sources {
            let survey = source.survey();
            files += survey.files;
            unread = unread.saturating_add(survey.bytes_unread);
            unreadable += survey.unreadable.len();
            if survey.is_verifying {
                verified.push(survey.verified_at);
            }
        }
        // The oldest of them; none if a source has not verified its files yet.
        let verified_at = verified.into_iter().min().flatten();
        let heartbeat = Heartbeat {
            epoch: self.outbox.epoch(),
            totals: self.builder.totals().clone(),
            dead_lettered: self.outbox.dead_lettered(),
            outbox_bytes: self.outbox.stored_bytes(),
            files: files as u64,
            unread_bytes: unread,
            unreadable: unreadable as u64,
            verified_at: verified_at.map(|at| at.to_string()),
            config: self.config_status.for_heartbeat(self.clock.now()),
            trust: (self.trust)(),
            transport: self.config_status.now().transport,
            update: Some((self.update)()),
        };
        let heartbeat = AgentEvent::Heartbeat(Box::new(heartbeat));
        let enrichers = &mut self.stages.enrichers;
        self.builder.add_event(&heartbeat.into(), enrichers, self.clock.now());
        self.state.heartbeat.in_open = true;
        self.state.heartbeat.added = Some(self.clock.uptime());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: Duration = Duration::from_secs(300);

    fn after(changes: &[GroupChange]) -> Duration {
        let mut timer = HeartbeatTimer { due: NEXT, in_open: true, ..HeartbeatTimer::default() };
        changes.iter().for_each(|change| timer.on_group_change(*change));
        timer.due()
    }

    #[test]
    fn heartbeat_in_a_lost_group_is_due_again_at_once() {
        use GroupChange::{Lost, Storing};
        let stored = GroupChange::Stored { all: true };
        assert_eq!(after(&[Lost]), Duration::ZERO, "in the open group");
        assert_eq!(after(&[Storing, Lost]), Duration::ZERO, "in the group being stored");
        assert_eq!(after(&[Storing, stored, Lost]), NEXT, "stored before the failure");
        assert_eq!(after(&[Storing, stored, Storing, Lost]), NEXT, "none in the later group");
    }
}
