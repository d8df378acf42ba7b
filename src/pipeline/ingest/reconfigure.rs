//! Another configuration for the ingest thread, taken between two groups.

use std::{any::Any, collections::BTreeSet, mem, time::Duration};

use siem_protocol::Digest;
use tokio::sync::oneshot;

use super::{Ingest, RecordStages};
use crate::{
    config::ShippingSettings,
    event::Event,
    stages::{Named, source::Source},
};

/// What takes the place of parts of an [`Ingest`]'s.
pub struct Reconfiguration {
    /// Filters and enrichers.
    pub stages: RecordStages,
    /// The filters that are configured as before: the old ones stay, with what they remember.
    pub same_filters: BTreeSet<String>,
    /// All sources in their order; without one, that of this name stays.
    pub sources: Vec<(String, Option<Box<dyn Source>>)>,
    /// How large frames are.
    pub shipping: ShippingSettings,
    /// Names what decides about records.
    pub config: Digest,
    /// How much the outbox may hold.
    pub max_bytes: u64,
    /// How often a heartbeat is sent.
    pub heartbeat: Duration,
    /// What there is to report: the first entries under the new configuration.
    pub events: Vec<Event>,
    /// Told when it is done.
    pub taken: Option<oneshot::Sender<()>>,
}

impl Ingest {
    /// Goes on under another configuration, if there is one: once all that was judged by the one
    /// before is stored, so that each record is judged by one, whose name stands in its batch.
    pub(super) fn follow(&mut self) -> Result<(), Duration> {
        if !self.inbox.has_exchange() {
            return Ok(());
        }
        self.commit()?;
        let Some(exchange) = self.inbox.take_exchange() else { return Ok(()) };
        let Reconfiguration { mut stages, sources, heartbeat, .. } = *exchange;
        mem::swap(&mut self.stages, &mut stages);
        self.stages.inherit(stages, &exchange.same_filters);
        let are_others = self.replace_sources(sources);
        self.builder.reconfigure(exchange.config, exchange.shipping);
        self.backpressure.resize(exchange.max_bytes);
        if heartbeat != self.heartbeat {
            self.heartbeat = heartbeat;
            let beat = self.clock.uptime() + self.next_beat();
            self.state.beat = self.state.beat.min(beat);
        }
        // A file that was held was passed over: it is read again from what is stored of it.
        let was_held = !mem::take(&mut self.state.held).is_empty();
        self.state.is_lost |= are_others || was_held;
        exchange.events.into_iter().for_each(|event| self.inbox.report(event));
        if let Some(taken) = exchange.taken {
            // Whoever no longer waits is at its end.
            taken.send(()).ok();
        }
        self.restore()
    }

    /// Whether any is another.
    fn replace_sources(&mut self, sources: Vec<(String, Option<Box<dyn Source>>)>) -> bool {
        let mut old: Vec<Named<dyn Source>> = mem::take(&mut self.sources);
        let mut are_others = false;
        for (name, new) in sources {
            let at = old.iter().position(|(known, _)| *known == name);
            let before = at.map(|at| old.swap_remove(at).1);
            let source = match (new, before) {
                (None, before) => before,
                (Some(new), None) => {
                    are_others = true;
                    Some(new)
                }
                (Some(mut new), Some(before)) => {
                    are_others = true;
                    new.inherit(before as Box<dyn Any>);
                    Some(new)
                }
            };
            self.sources.extend(source.map(|source| (name, source)));
        }
        are_others
    }
}
