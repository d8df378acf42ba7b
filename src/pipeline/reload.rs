//! Builds the stages that a change of the configuration replaces, while the old ones still run.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use siem_protocol::Digest;

use super::{assembly, ingest::Reconfiguration, record_stages::RecordStages};
use crate::{
    config::{ConfigError, HTTP_SIEM, LoadedConfig, Settings, StageTable},
    event::Event,
    platform::file,
    stages::{
        AgentContext,
        sink::Sink,
        source::{Source, Waker},
    },
};

/// Record of the inputs of a running pipeline, to detect changes.
#[derive(Clone, PartialEq)]
pub struct Plan {
    settings: Settings,
    /// Hashes of the files that stage tables name. They may contain secrets, so that only the hash
    /// is kept.
    files: BTreeMap<PathBuf, Option<Digest>>,
}

/// Replacements for parts of a running pipeline.
pub struct Reload {
    /// The new settings.
    pub settings: Settings,
    /// Replacements for parts of the ingest thread.
    pub reconfiguration: Reconfiguration,
    /// All sinks in order. `None` keeps the running sink of that name.
    pub sinks: Vec<(String, Option<Box<dyn Sink>>)>,
}

impl Plan {
    /// Records the inputs of a configuration. Call before building it: a file that changes in
    /// between then counts as changed the next time.
    #[must_use]
    pub fn of(loaded: &LoadedConfig, context: &AgentContext) -> Self {
        let content = |path: PathBuf| {
            let bytes = file::read_bounded(&path, file::MAX_WRITTEN_BY_HAND).ok();
            let digest = bytes.map(|bytes| Digest::of(&bytes));
            (path, digest)
        };
        let files = named_files(&loaded.settings, context).into_iter().map(content).collect();
        Self { settings: loaded.settings.clone(), files }
    }

    /// Builds the stages that differ under `next`, the plan of `loaded`; the others keep running.
    /// `stages` are its filters and enrichers, and `events` its first entries.
    ///
    /// # Errors
    /// [`ConfigError`] for the first stage that cannot be built: nothing has changed then.
    pub fn to(
        &self,
        next: &Self,
        loaded: &LoadedConfig,
        stages: RecordStages,
        context: &AgentContext,
        waker: &Waker,
        events: Vec<Event>,
    ) -> Result<Reload, ConfigError> {
        let (old, new) = (&self.settings, &next.settings);
        let same_filters = unchanged(&old.pipeline.filters, &new.pipeline.filters);
        let same_enrichers = unchanged(&old.pipeline.enrichers, &new.pipeline.enrichers);
        let sources = self.changed_sources(next, loaded, context, waker)?;
        let sinks = self.changed_sinks(next, loaded, context)?;
        let reconfiguration = Reconfiguration {
            stages,
            same_filters,
            same_enrichers,
            sources,
            shipping: new.shipping,
            config: new.config_hash(),
            max_bytes: new.outbox.max_bytes,
            heartbeat: new.agent.poll_interval,
            events,
            applied: None,
        };
        Ok(Reload { settings: new.clone(), reconfiguration, sinks })
    }

    /// Builds the sources that differ under `next`; `None` stands for each of the others.
    fn changed_sources(
        &self,
        next: &Self,
        loaded: &LoadedConfig,
        context: &AgentContext,
        waker: &Waker,
    ) -> Result<Vec<Replacement<dyn Source>>, ConfigError> {
        let (old, new) = (&self.settings, &next.settings);
        // Sources are built with the interval.
        let same_interval = old.agent.poll_interval == new.agent.poll_interval;
        let replacement = |table: &StageTable| {
            let is_same = same_interval && old.pipeline.sources.contains(table);
            let source = match is_same {
                true => None,
                false => Some(assembly::source(loaded, table, context, waker)?),
            };
            Ok((table.name.clone(), source))
        };
        new.pipeline.sources.iter().map(replacement).collect()
    }

    /// Builds the sinks that differ under `next`; `None` stands for each of the others.
    fn changed_sinks(
        &self,
        next: &Self,
        loaded: &LoadedConfig,
        context: &AgentContext,
    ) -> Result<Vec<Replacement<dyn Sink>>, ConfigError> {
        // Sinks to a receiver are built with the keys of the organisation.
        let has_same_keys = self.settings.managed_keys == next.settings.managed_keys;
        let replacement = |table: &StageTable| {
            let mut files = files_of(table, context).into_iter();
            let has_same_files = files.all(|file| self.files.get(&file) == next.files.get(&file));
            let is_same = has_same_files
                && (has_same_keys || table.stage != HTTP_SIEM)
                && self.settings.pipeline.sinks.contains(table);
            let sink = match is_same {
                true => None,
                false => {
                    assembly::check_sandbox(loaded, table, context)?;
                    Some(assembly::sink(loaded, table, context)?)
                }
            };
            Ok((table.name.clone(), sink))
        };
        next.settings.pipeline.sinks.iter().map(replacement).collect()
    }
}

/// A stage by the name of its instance, if it must be exchanged.
type Replacement<S> = (String, Option<Box<S>>);

/// Returns the names of the stages in `new` whose tables are the same in `old`.
fn unchanged(old: &[StageTable], new: &[StageTable]) -> BTreeSet<String> {
    new.iter().filter(|table| old.contains(table)).map(|table| table.name.clone()).collect()
}

/// Returns the files that the stages of a configuration name in options that end in `_file`.
#[must_use]
pub fn named_files(settings: &Settings, context: &AgentContext) -> BTreeSet<PathBuf> {
    let pipeline = &settings.pipeline;
    let all = [&pipeline.sources, &pipeline.filters, &pipeline.enrichers, &pipeline.sinks];
    all.into_iter().flatten().flat_map(|table| files_of(table, context)).collect()
}

fn files_of(table: &StageTable, context: &AgentContext) -> Vec<PathBuf> {
    table.options.files().iter().map(|path| context.paths.expand(path)).collect()
}
