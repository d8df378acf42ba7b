//! Reads everything from the start and reports the outcome. Changes nothing: no store, no server, no
//! secrets.

use std::{io, sync::Arc};

use siem_protocol::Digest;

use super::{
    accounting::Totals, group::GroupStart, group_builder::GroupBuilder,
    group_life_cycle::GroupChange, record_stages::RecordStages,
};
use crate::{
    config::ShippingSettings,
    event::Event,
    frame::Codec,
    platform::{Clock, Timestamp},
    stages::{
        Named,
        source::{Progress, Source},
    },
    tail::{Chunk, FileKey, GenerationId, Intake, Survey},
};

/// A dry run of a pipeline.
pub struct DryRun {
    /// Sources, under their instance names.
    pub sources: Vec<Named<dyn Source>>,
    /// Filters and enrichers.
    pub stages: RecordStages,
    /// Hash of the configuration.
    pub config: Digest,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

impl DryRun {
    /// Reads everything once. `step` receives, for each group, the entries as they would be sent
    /// (NDJSON), the totals so far, and the amount left to read.
    ///
    /// # Errors
    /// Errors of `step`.
    pub fn run(
        mut self,
        mut step: impl FnMut(&[u8], &Totals, &Survey) -> io::Result<()>,
    ) -> io::Result<Summary> {
        let (epoch, totals) = (String::new(), Totals::default());
        let start = GroupStart { epoch, seq: 1, chain: Digest::ZERO, totals };
        let mut builder =
            GroupBuilder::new(start, self.config, ShippingSettings::default(), Codec::Plain);
        for (name, source) in &mut self.sources {
            source.restore(&mut std::iter::empty()).map_err(io::Error::other)?;
            let label = source.label();
            loop {
                let progress = source.read(&mut DryIntake {
                    builder: &mut builder,
                    stages: &mut self.stages,
                    instance: name,
                    label,
                    now: self.clock.now(),
                });
                let frames = builder.finish(self.clock.now()).frames;
                let entries: Vec<u8> = frames.into_iter().flat_map(|frame| frame.body).collect();
                for change in [GroupChange::Storing, GroupChange::Stored { all: true }] {
                    change.send_to_source(&mut **source);
                    self.stages.on_group_change(change);
                }
                step(&entries, builder.totals(), &source.survey())?;
                if let Progress::Idle { .. } = progress {
                    break;
                }
            }
        }
        let unread = self.sources.iter().map(|(_, source)| source.survey().bytes_unread);
        let unread = unread.fold(0, u64::saturating_add);
        Ok(Summary { totals: builder.totals().clone(), unfinished_bytes: unread })
    }
}

/// Result of a dry run.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Totals of everything that was read.
    pub totals: Totals,
    /// Bytes of last lines without a newline: they are read once they have one.
    pub unfinished_bytes: u64,
}

/// Adds chunks to groups that are not stored.
struct DryIntake<'a> {
    builder: &'a mut GroupBuilder,
    stages: &'a mut RecordStages,
    instance: &'a str,
    label: &'static str,
    now: Timestamp,
}

impl Intake for DryIntake<'_> {
    fn take(&mut self, chunk: Chunk<'_>) {
        self.builder.add_chunk(chunk, self.instance, self.label, self.stages, self.now);
    }

    fn store_row(&mut self, name: &str, row: &[u8], _events: Vec<Event>) {
        self.builder.store_row(self.instance, name, row);
    }

    fn report(&mut self, _event: Event) {}

    fn forget(&mut self, file: FileKey) {
        self.stages.forget(file);
    }

    fn has_room(&self) -> bool {
        self.builder.has_room()
    }

    fn saw(&self, _files: u64) {}

    fn checkpoint(&self, _generation: &GenerationId) -> Option<Vec<u8>> {
        None
    }
}
