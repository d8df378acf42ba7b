//! Keeps a backlog in its files while much waits for delivery.

use std::{cell::Cell, time::Duration};

use super::{
    super::{backpressure::BackfillPacer, outbox::Outbox},
    Ingest,
};
use crate::stages::source::Progress;

/// Limit on the size of the open group for chunks of a backlog.
#[derive(Debug)]
pub(super) struct BackfillLimit {
    /// Size before compression.
    raw: usize,
    /// True if a chunk was refused.
    is_reached: Cell<bool>,
}

/// State of the limit between two steps.
#[derive(Debug, Default)]
pub(super) struct BackfillState {
    /// True if a backlog waits for delivery: not if reading ends once everything was read.
    pub(super) is_limited: bool,
    /// True if the last step refused a chunk of a backlog.
    pub(super) is_waiting: bool,
    pacer: BackfillPacer,
    /// Size of the group that is being stored, before compression.
    storing: u64,
    /// Value of [`Outbox::appended_bytes`] when that group was sealed.
    appended: u64,
    /// Size of stored groups, before and after compression. Older ones count less.
    raw: u64,
    encoded: u64,
}

impl BackfillLimit {
    /// Returns true if the open group, which has `raw` bytes before compression, accepts a chunk of a
    /// backlog.
    pub(super) fn accepts(&self, raw: usize) -> bool {
        let is_accepted = raw < self.raw;
        if !is_accepted {
            self.is_reached.set(true);
        }
        is_accepted
    }

    /// Returns true if a chunk was refused.
    pub(super) fn is_reached(&self) -> bool {
        self.is_reached.get()
    }
}

impl BackfillState {
    /// Returns the limit on the open group.
    pub(super) fn limit(&mut self, now: Duration, outbox: &Outbox) -> BackfillLimit {
        let raw = match self.is_limited {
            true => {
                let room = self.pacer.update(now, &outbox.backlog_of_sinks());
                self.before_compression(room).saturating_sub(self.storing)
            }
            false => u64::MAX,
        };
        let raw = usize::try_from(raw).unwrap_or(usize::MAX);
        BackfillLimit { raw, is_reached: Cell::new(false) }
    }

    /// Records that the group before is stored, and that one of `raw` bytes is being stored.
    pub(super) fn seal(&mut self, raw: usize, outbox: &Outbox) {
        let appended = outbox.appended_bytes();
        // A step without entries says nothing about the compression.
        if self.storing > 0 {
            self.encoded = self.encoded / 2 + appended.saturating_sub(self.appended);
            self.raw = self.raw / 2 + self.storing;
        }
        (self.appended, self.storing) = (appended, raw as u64);
    }

    /// Records that everything is stored.
    pub(super) fn stored(&mut self, outbox: &Outbox) {
        self.seal(0, outbox);
    }

    /// Estimates how many bytes before compression make `encoded` bytes in the outbox.
    fn before_compression(&self, encoded: u64) -> u64 {
        if self.raw == 0 || self.encoded == 0 {
            return encoded;
        }
        let raw = u128::from(encoded) * u128::from(self.raw) / u128::from(self.encoded);
        u64::try_from(raw).unwrap_or(u64::MAX)
    }
}

impl Ingest {
    /// After a step that refused a chunk of a backlog, and the next of which is due in `next`: makes
    /// the stored entries due, since no others fill their batch. Returns how to continue.
    pub(super) fn wait_for_delivery(&mut self, next: Duration) -> Progress {
        // Before the outbox is inspected: an acknowledgement from now on wakes the thread.
        self.inbox.wake_on_delivery(true);
        self.outbox.make_due();
        let now = self.clock.uptime();
        if self.state.backfill.limit(now, &self.outbox).accepts(0) {
            self.inbox.wake_on_delivery(false);
            return Progress::More;
        }
        let stalled = self.state.backfill.pacer.until_stalled(now);
        Progress::Idle { next: stalled.map_or(next, |stalled| next.min(stalled)) }
    }
}
