//! Regular maintenance of the outbox, and backpressure when it or its disk is full.

use std::time::Duration;

use siem_protocol::AgentEvent;
use tracing::{error, info, warn};

use super::{
    super::{
        backpressure::{Change, Shortage},
        orphaned_sinks,
    },
    Ingest,
};
use crate::text::causes;

/// Interval of maintenance.
const INTERVAL: Duration = Duration::from_secs(60);

impl Ingest {
    pub(super) fn schedule_maintenance(&mut self) {
        self.state.maintenance_due = self.clock.uptime() + INTERVAL;
    }

    pub(super) fn run_due_maintenance(&mut self) {
        if self.clock.uptime() >= self.state.maintenance_due {
            self.schedule_maintenance();
            self.maintain_outbox();
        }
    }

    /// Copies the acknowledged offsets, so that losing the store costs little, checks that the
    /// store's file is still at its path, and shrinks the file after a backlog.
    fn maintain_outbox(&self) {
        if let Err(failure) = self.outbox.back_up() {
            warn!(
                code = "offsets_backup_failed",
                cause = causes(&failure),
                "cannot copy the acknowledged offsets"
            );
        }
        if let Err(failure) = self.outbox.check_file() {
            error!(
                code = "outbox_moved",
                cause = causes(&failure),
                "the outbox file is not at its path"
            );
        } else if let Err(failure) = self.outbox.shrink(self.clock.uptime()) {
            warn!(
                code = "outbox_shrink_failed",
                cause = causes(&failure),
                "cannot shrink the outbox file"
            );
        }
    }

    /// Stops or resumes reading as outbox and disk have space, and reports the change.
    pub(super) fn update_backpressure(&mut self) {
        let (mut stored, free) = (self.outbox.stored_bytes(), self.outbox.free_space());
        // Acknowledged entries are deleted with the next write, and while reading waits there may
        // be none.
        if self.backpressure.is_full() || self.backpressure.would_fill(stored) {
            if let Err(failure) = self.outbox.persist_acks() {
                warn!(
                    code = "outbox_cleanup_failed",
                    cause = causes(&failure),
                    "cannot delete acknowledged entries"
                );
            }
            stored = self.outbox.stored_bytes();
        }
        if self.backpressure.passed_half(stored) {
            self.report_half_full(stored);
        }
        match self.backpressure.update(stored, free) {
            Some(Change::Filled(shortage)) => self.report_full(shortage, stored, free),
            Some(Change::Recovered) => {
                info!(code = "outbox_recovered", stored, free, "reading resumed: space is free");
                let recovered =
                    AgentEvent::OutboxRecovered { outbox_bytes: stored, disk_free: free };
                self.add_event(recovered.into());
            }
            None => {}
        }
    }

    fn report_half_full(&self, stored: u64) {
        orphaned_sinks::report(&self.outbox, |event| self.inbox.report(event));
        if let Ok(Some(sink)) = self.outbox.slowest_sink() {
            warn!(
                code = "sink_behind",
                sink, stored, "entries that one sink has not acknowledged fill half of the outbox"
            );
        }
    }

    fn report_full(&mut self, shortage: Shortage, stored: u64, free: Option<u64>) {
        let lack = shortage.as_str();
        let remedy = match shortage {
            Shortage::Outbox => "reading resumes when the receiver acknowledges entries: check it",
            Shortage::Disk => "free space on the disk of the state directory",
        };
        warn!(
            code = "outbox_full",
            lack, stored, free, remedy, "reading paused: no space for more entries"
        );
        let full = AgentEvent::OutboxFull { lack: shortage, outbox_bytes: stored, disk_free: free };
        self.add_event(full.into());
    }
}
