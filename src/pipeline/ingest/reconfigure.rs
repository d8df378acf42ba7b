//! Applies another configuration to the ingest thread, between two groups.

use std::{any::Any, collections::BTreeSet, mem, time::Duration};

use siem_protocol::Digest;
use tokio::sync::oneshot;

use super::{Ingest, RecordStages};
use crate::{
    config::ShippingSettings,
    event::Event,
    stages::{Named, source::Source},
};

/// The parts of an [`Ingest`] that another configuration replaces.
pub struct Reconfiguration {
    /// Filters and enrichers.
    pub stages: RecordStages,
    /// Names of the filters whose configuration is unchanged: the running ones stay, with their
    /// memory.
    pub same_filters: BTreeSet<String>,
    /// The same for enrichers.
    pub same_enrichers: BTreeSet<String>,
    /// All sources in order. `None` keeps the running source of that name.
    pub sources: Vec<(String, Option<Box<dyn Source>>)>,
    /// Limits of batches, which decide how large frames are.
    pub shipping: ShippingSettings,
    /// Hash of the configuration, which is part of each batch.
    pub config: Digest,
    /// Maximum size of the outbox.
    pub max_bytes: u64,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
    /// Events to report as the first entries under the new configuration.
    pub events: Vec<Event>,
    /// Notified once the reconfiguration is applied.
    pub applied: Option<oneshot::Sender<()>>,
}

impl Ingest {
    /// Applies a pending reconfiguration. Everything that was read under the previous configuration
    /// is stored before, so that each record is judged by the configuration that its batch names.
    pub(super) fn apply_reconfiguration(&mut self) -> Result<(), Duration> {
        if !self.inbox.has_reconfiguration() {
            return Ok(());
        }
        self.commit()?;
        let Some(reconfiguration) = self.inbox.take_reconfiguration() else { return Ok(()) };
        let Reconfiguration {
            mut stages, sources, heartbeat, same_filters, same_enrichers, ..
        } = *reconfiguration;
        mem::swap(&mut self.stages, &mut stages);
        self.stages.inherit(stages, &same_filters, &same_enrichers);
        let has_new_source = self.replace_sources(sources);
        self.builder.reconfigure(reconfiguration.config, reconfiguration.shipping);
        self.backpressure.resize(reconfiguration.max_bytes);
        if heartbeat != self.heartbeat {
            self.heartbeat = heartbeat;
            let due = self.clock.uptime() + self.heartbeat_interval();
            self.state.heartbeat.schedule(self.state.heartbeat.due().min(due));
        }
        // Held files were skipped: they are read again from their stored checkpoints.
        let had_held_files = !mem::take(&mut self.state.held_files).is_empty();
        if has_new_source || had_held_files {
            self.state.groups.lose();
        }
        reconfiguration.events.into_iter().for_each(|event| self.inbox.report(event));
        if let Some(applied) = reconfiguration.applied {
            // Fails when the agent is shutting down and no longer waits.
            applied.send(()).ok();
        }
        self.restore()
    }

    /// Replaces the sources and returns whether any of them is new.
    fn replace_sources(&mut self, sources: Vec<(String, Option<Box<dyn Source>>)>) -> bool {
        let mut old: Vec<Named<dyn Source>> = mem::take(&mut self.sources);
        let mut has_new = false;
        for (name, new) in sources {
            let at = old.iter().position(|(known, _)| *known == name);
            let before = at.map(|at| old.swap_remove(at).1);
            has_new |= new.is_some();
            let source = match (new, before) {
                (None, before) => before,
                (Some(new), None) => Some(new),
                (Some(mut new), Some(before)) => {
                    new.inherit(before as Box<dyn Any>);
                    Some(new)
                }
            };
            self.sources.extend(source.map(|source| (name, source)));
        }
        has_new
    }
}
