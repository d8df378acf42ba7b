//! Events of the registry: its log of events, and the messages about them.

use tracing::{Level, error};

use super::{
    super::{
        events::{Event, EventCounts, EventKind, EventLine, Standing},
        journal::{Durability, JournalError},
    },
    Registry, lock,
};

impl Registry {
    /// Records an event in the log of events. Repeats are counted instead of written. A failure is
    /// logged.
    pub fn record(&self, event: Event) {
        let standing = match self.devices.read(|devices| devices.has_confirmed(&event.machine)) {
            true => Standing::Confirmed,
            false => Standing::Claimed,
        };
        let lines = lock(&self.limiter).accept(event, standing, self.clock.now());
        self.write_events(lines);
    }

    /// Returns the number of events since the directory was created.
    #[must_use]
    pub fn event_counts(&self) -> EventCounts {
        let mut counts = self.events.read(|counts| *counts);
        lock(&self.limiter).add_suppressed(&mut counts);
        counts
    }

    fn write_events(&self, lines: Vec<EventLine>) {
        for line in lines {
            log(&line);
            let append = |_: &EventCounts| Ok::<_, JournalError>((Some(line), ()));
            if let Err(error) = self.events.transact(Durability::Written, append) {
                error!(code = "trust_journal_failed", %error, "cannot write the log of events");
            }
        }
    }
}

impl Drop for Registry {
    /// Writes the number of events that were counted only.
    fn drop(&mut self) {
        let lines = lock(&self.limiter).flush(self.clock.now());
        self.write_events(lines);
    }
}

/// Logs a warning with the fields of an event.
macro_rules! warn {
    (code = $code:literal, $line:expr, $message:literal) => {{
        let EventLine { event, repeated, .. } = $line;
        let Event { kind: _, peer, machine, user, host, device, epoch, detail } = event;
        tracing::event!(
            Level::WARN,
            code = $code,
            peer = peer.map(tracing::field::display),
            machine,
            user,
            host,
            device = device.map(tracing::field::display),
            epoch,
            detail,
            repeated,
            $message
        );
    }};
}

fn log(line: &EventLine) {
    match line.event.kind {
        EventKind::Impersonation => {
            warn!(
                code = "impersonation",
                line, "a batch lacks the seal of the device that it names"
            );
        }
        EventKind::SecondKey => {
            warn!(
                code = "second_key",
                line, "another device key appeared for a machine and user that have one"
            );
        }
        EventKind::ChainMismatch => {
            warn!(
                code = "chain_mismatch",
                line, "a batch without a device key does not continue its epoch"
            );
        }
        EventKind::Clone => {
            warn!(code = "device_cloned", line, "two agents use one device key");
        }
        EventKind::ConfigUnknown => {
            warn!(
                code = "config_unknown",
                line, "a batch names a managed configuration that was never offered"
            );
        }
        EventKind::QuotaExceeded => {
            warn!(code = "quota_exceeded", line, "a batch is over a quota of its token or device");
        }
    }
}
