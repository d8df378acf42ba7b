//! Sinks that are registered in the outbox but no longer configured.

use siem_protocol::AgentEvent;
use tracing::{error, warn};

use super::outbox::{OrphanedSink, Outbox};
use crate::{event::Event, text::causes};

/// Reports each orphaned sink: its entries in the outbox, and the command that removes it.
pub fn report(outbox: &Outbox, mut emit: impl FnMut(Event)) {
    let orphaned = match outbox.orphaned_sinks() {
        Ok(orphaned) => orphaned,
        Err(failure) => {
            warn!(
                code = "sink_registrations_read_failed",
                cause = causes(&failure),
                "cannot read which sinks are registered in the outbox"
            );
            return;
        }
    };
    for sink in orphaned {
        let OrphanedSink { name, acknowledged, undelivered } = &sink;
        error!(
            code = "sink_not_configured",
            sink = name,
            acknowledged,
            undelivered,
            "sink is registered in the outbox but not configured: entries it has not acknowledged \
             fill the outbox; configure it again or run `ai-agent outbox forget-sink {name}`"
        );
        emit(removal_event(&sink, false));
    }
}

/// Returns the event about an orphaned sink. `forgotten` means that it was removed, together with
/// the entries that only it had not acknowledged.
#[must_use]
pub fn removal_event(sink: &OrphanedSink, forgotten: bool) -> Event {
    let OrphanedSink { name, acknowledged, undelivered } = sink;
    let (acknowledged, undelivered) = (*acknowledged, *undelivered);
    AgentEvent::SinkRemoved { sink: name.clone(), acknowledged, undelivered, forgotten }.into()
}

/// Describes an orphaned sink as a reason for a full outbox.
#[must_use]
pub fn obstacle(OrphanedSink { name, undelivered, .. }: &OrphanedSink) -> String {
    format!(
        "sink `{name}` is not configured but keeps {undelivered} entries in the outbox, see \
         `ai-agent outbox forget-sink {name}`"
    )
}
