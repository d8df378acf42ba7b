//! Sinks that are no longer configured and still have a place in the outbox.

use siem_protocol::AgentEvent;
use tracing::{error, warn};

use super::outbox::{OrphanedSink, Outbox};
use crate::{event::Event, text::causes};

/// Says of each what it keeps in the outbox and how that ends: nobody else asks for it.
pub fn report(outbox: &Outbox, mut emit: impl FnMut(Event)) {
    let removed = match outbox.orphaned_sinks() {
        Ok(removed) => removed,
        Err(failure) => {
            warn!(
                code = "sink_registrations_read_failed",
                cause = causes(&failure),
                "who has a place in the outbox could not be read"
            );
            return;
        }
    };
    for sink in removed {
        let OrphanedSink { name, acknowledged, undelivered } = &sink;
        error!(
            code = "sink_not_configured",
            sink = name,
            acknowledged,
            undelivered,
            "sink is not configured any more, and keeps its place in the outbox: what it has not \
             taken stays until the outbox is full; configure it again, or run \
             `ai-agent outbox forget-sink {name}`"
        );
        emit(removal_event(&sink, false));
    }
}

/// The event about such a sink: whether it was forgotten, and with it what it has not taken.
#[must_use]
pub fn removal_event(sink: &OrphanedSink, forgotten: bool) -> Event {
    let OrphanedSink { name, acknowledged, undelivered } = sink;
    let (acknowledged, undelivered) = (*acknowledged, *undelivered);
    AgentEvent::SinkRemoved { sink: name.clone(), acknowledged, undelivered, forgotten }.into()
}

/// What such a sink does to an outbox that is full.
#[must_use]
pub fn obstacle(OrphanedSink { name, undelivered, .. }: &OrphanedSink) -> String {
    format!(
        "sink `{name}` is not configured any more and keeps {undelivered} entries in the outbox, \
         see `ai-agent outbox forget-sink {name}`"
    )
}
