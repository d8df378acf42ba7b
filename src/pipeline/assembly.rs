//! Builds the stages that a configuration names. Errors name the layer and the key; nothing is read,
//! written or sent.

use std::{path::PathBuf, sync::Arc};

use siem_protocol::{Entry, names};
use siem_sinks::lines;

use super::{
    filter_chain::FilterChain, outbox::SinkRegistration, own_files, record_stages::RecordStages,
};
use crate::{
    config::{ConfigError, HTTP_SIEM, LoadedConfig, PipelineSettings, StageError, StageTable},
    siem::Connection,
    stages::{
        AgentContext, BuildError, Named, StageKind, enricher, filter,
        sink::{self, Sink},
        source::{self, Source, Waker},
    },
};

/// Builds filters and enrichers.
///
/// # Errors
/// [`ConfigError`] for the first stage that cannot be built.
pub fn stages(loaded: &LoadedConfig, context: &AgentContext) -> Result<RecordStages, ConfigError> {
    let pipeline = &loaded.settings.pipeline;
    let filters = filters(loaded)?;
    if let Some(table) = pipeline.enrichers.iter().find(|table| is_reserved(table)) {
        return Err(reserved_name(loaded, table));
    }
    let enrichers = build(loaded, StageKind::Enricher, &pipeline.enrichers, |table| {
        enricher::build(&table.stage, &table.options.to_options(), context)
    })?;
    Ok(RecordStages::new(filters, enrichers))
}

/// Returns whether the enricher has the name of a member of an entry, or of a line of a file.
fn is_reserved(enricher: &StageTable) -> bool {
    let mut reserved = Entry::MEMBERS.into_iter().chain(lines::MEMBERS);
    reserved.any(|name| name == &*enricher.name)
}

fn reserved_name(loaded: &LoadedConfig, enricher: &StageTable) -> ConfigError {
    let problem = "names a member that every entry has: give the enricher another name";
    loaded.value_error(&format!("enricher.{}", enricher.name), problem)
}

/// Builds the filters only.
///
/// # Errors
/// [`ConfigError`] for the first stage that cannot be built.
pub fn filters(loaded: &LoadedConfig) -> Result<FilterChain, ConfigError> {
    let filters = build(loaded, StageKind::Filter, &loaded.settings.pipeline.filters, |table| {
        filter::build(&table.stage, &table.options.to_options())
    })?;
    Ok(FilterChain::new(filters))
}

/// Builds the sources.
///
/// # Errors
/// [`ConfigError`] for the first stage that cannot be built.
pub fn sources(
    loaded: &LoadedConfig,
    context: &AgentContext,
    waker: &Waker,
) -> Result<Vec<Named<dyn Source>>, ConfigError> {
    let build = |table: &StageTable| {
        source(loaded, table, context, waker).map(|source| (table.name.clone(), source))
    };
    loaded.settings.pipeline.sources.iter().map(build).collect()
}

/// Returns the roots of the enabled sources that read sessions, without duplicates.
///
/// # Errors
/// [`ConfigError`] for the first source that cannot be built.
pub fn session_roots(
    loaded: &LoadedConfig,
    context: &AgentContext,
) -> Result<Vec<PathBuf>, ConfigError> {
    let unused: Waker = Arc::new(|| ());
    let sources = sources(loaded, context, &unused)?;
    let sources = sources.iter().filter(|(_, it)| it.label() == names::source::CLAUDE_SESSIONS);
    let mut roots = Vec::new();
    for root in sources.flat_map(|(_, source)| source.roots()) {
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    Ok(roots)
}

/// Builds one source of a configuration.
///
/// # Errors
/// [`ConfigError`] when it cannot be built.
pub fn source(
    loaded: &LoadedConfig,
    table: &StageTable,
    context: &AgentContext,
    waker: &Waker,
) -> Result<Box<dyn Source>, ConfigError> {
    source::build(&table.stage, &table.options.to_options(), context, waker.clone())
        .map_err(|error| explain(loaded, StageKind::Source, table, error))
}

/// Builds the sinks.
///
/// # Errors
/// [`ConfigError`] for the first stage that cannot be built.
pub fn sinks(
    loaded: &LoadedConfig,
    context: &AgentContext,
) -> Result<Vec<Named<dyn Sink>>, ConfigError> {
    let build =
        |table: &StageTable| sink(loaded, table, context).map(|sink| (table.name.clone(), sink));
    loaded.settings.pipeline.sinks.iter().map(build).collect()
}

/// Builds one sink of a configuration.
///
/// # Errors
/// [`ConfigError`] when it cannot be built.
pub fn sink(
    loaded: &LoadedConfig,
    table: &StageTable,
    context: &AgentContext,
) -> Result<Box<dyn Sink>, ConfigError> {
    build_sink(loaded, table, context)
        .map_err(|error| explain(loaded, StageKind::Sink, table, error))
}

fn build_sink(
    loaded: &LoadedConfig,
    table: &StageTable,
    context: &AgentContext,
) -> Result<Box<dyn Sink>, BuildError> {
    let options = table.options.to_options();
    for file in sink::files(&table.stage, &options)? {
        let roots = || session_roots(loaded, context).unwrap_or_default();
        own_files::check(&file, &loaded.settings.agent.state_dir, roots)?;
    }
    sink::build(&table.stage, &options, &context_of(loaded, table, context))
}

/// Returns the files that the enabled sinks write.
///
/// # Errors
/// [`ConfigError`] for the first sink with an option that is wrong.
pub fn sink_files(loaded: &LoadedConfig) -> Result<Vec<PathBuf>, ConfigError> {
    let sinks = &loaded.settings.pipeline.sinks;
    let files = build(loaded, StageKind::Sink, sinks, |table| {
        sink::files(&table.stage, &table.options.to_options())
    })?;
    Ok(files.into_iter().flat_map(|(_, files)| files).collect())
}

/// Checks that the running agent may write the files of a sink that was not configured when it started.
///
/// # Errors
/// [`ConfigError`] for the first file that it may not write.
pub fn check_sandbox(
    loaded: &LoadedConfig,
    table: &StageTable,
    context: &AgentContext,
) -> Result<(), ConfigError> {
    let files = sink::files(&table.stage, &table.options.to_options())
        .map_err(|error| explain(loaded, StageKind::Sink, table, error))?;
    match files.iter().find(|file| !context.sandbox.may_write(file)) {
        None => Ok(()),
        Some(file) => Err(loaded.value_error(
            &format!("sink.{}", table.name),
            format!(
                "writes `{}`, in a directory that the running agent may not write to: restart needed \
                 (`ai-agent restart`)",
                file.display()
            ),
        )),
    }
}

/// Returns the registrations of `sinks` in the outbox.
#[must_use]
pub fn sink_registrations(
    loaded: &LoadedConfig,
    sinks: &[Named<dyn Sink>],
) -> Vec<SinkRegistration> {
    let tables = &loaded.settings.pipeline.sinks;
    let registration = |(name, sink): &Named<dyn Sink>| {
        let table = tables.iter().find(|table| table.name == *name);
        let start = table.map(|table| table.sink_settings.start).unwrap_or_default();
        SinkRegistration { name: name.clone(), destination: sink.destination(), start }
    };
    sinks.iter().map(registration).collect()
}

/// Checks the options of the sinks without building them: a dry run has no secrets.
///
/// # Errors
/// [`ConfigError`] for the first option that is wrong.
pub fn check_sinks(loaded: &LoadedConfig) -> Result<(), ConfigError> {
    let sinks = &loaded.settings.pipeline.sinks;
    build(loaded, StageKind::Sink, sinks, |table| {
        sink::check(&table.stage, &table.options.to_options())
    })
    .map(drop)
}

/// Checks all stages, also disabled ones, and returns all errors. Sinks are not built: they need
/// secrets.
#[must_use]
pub fn check(loaded: &LoadedConfig, context: &AgentContext) -> Vec<ConfigError> {
    let mut wrong = check_all(loaded, context, &loaded.settings.pipeline, check_sink);
    if let (true, Err(error)) = (wrong.is_empty(), stages(loaded, context)) {
        wrong.push(error);
    }
    wrong.extend(check_switched_off(loaded, context));
    wrong
}

/// Checks the disabled stages, so that nothing is wrong with them once they are enabled.
#[must_use]
pub fn check_switched_off(loaded: &LoadedConfig, context: &AgentContext) -> Vec<ConfigError> {
    check_all(loaded, context, &loaded.disabled, check_sink)
}

/// Builds all stages as an agent does when it starts, and returns one error of each that cannot be
/// built. Settings of sinks that are missing are not reported:
/// [`LoadedConfig::missing_for_delivery`] does that.
#[must_use]
pub fn problems(loaded: &LoadedConfig, context: &AgentContext) -> Vec<StageError> {
    let build_with_placeholders = |table: &StageTable| {
        build_sink(loaded, &loaded.with_placeholders(table), context).map(drop)
    };
    let mut found = errors_of(loaded, context, &loaded.settings.pipeline, build_with_placeholders);
    let reserved = loaded.settings.pipeline.enrichers.iter().filter(|it| is_reserved(it));
    found.extend(reserved.map(|table| StageError {
        kind: StageKind::Enricher.to_string(),
        name: table.name.clone(),
        error: reserved_name(loaded, table),
    }));
    found.extend(errors_of(loaded, context, &loaded.disabled, check_sink));
    found
}

fn check_all(
    loaded: &LoadedConfig,
    context: &AgentContext,
    pipeline: &PipelineSettings,
    check_sink: impl Fn(&StageTable) -> Result<(), BuildError>,
) -> Vec<ConfigError> {
    let found = errors_of(loaded, context, pipeline, check_sink);
    found.into_iter().map(|found| found.error).collect()
}

fn check_sink(table: &StageTable) -> Result<(), BuildError> {
    sink::check(&table.stage, &table.options.to_options())
}

fn errors_of(
    loaded: &LoadedConfig,
    context: &AgentContext,
    pipeline: &PipelineSettings,
    check_sink: impl Fn(&StageTable) -> Result<(), BuildError>,
) -> Vec<StageError> {
    let no_waker: Waker = Arc::new(|| ());
    let PipelineSettings { sources, filters, enrichers, sinks } = pipeline;
    let one = |kind: StageKind, table: &StageTable| {
        let (stage, options) = (&*table.stage, &table.options.to_options());
        let built = match kind {
            StageKind::Source => source::build(stage, options, context, no_waker.clone()).map(drop),
            StageKind::Filter => filter::build(stage, options).map(drop),
            StageKind::Enricher => enricher::build(stage, options, context).map(drop),
            StageKind::Sink => check_sink(table),
        };
        let error = explain(loaded, kind, table, built.err()?);
        Some(StageError { kind: kind.to_string(), name: table.name.clone(), error })
    };
    let all = [
        (StageKind::Source, sources),
        (StageKind::Filter, filters),
        (StageKind::Enricher, enrichers),
        (StageKind::Sink, sinks),
    ];
    all.into_iter()
        .flat_map(|(kind, tables)| tables.iter().map(move |table| (kind, table)))
        .filter_map(|(kind, table)| one(kind, table))
        .collect()
}

/// The receiver that manages this agent: that of the first sink that ships to one.
///
/// # Errors
/// [`ConfigError`] when that sink cannot be built.
pub fn manager(
    loaded: &LoadedConfig,
    context: &AgentContext,
) -> Result<Option<Connection>, ConfigError> {
    let sinks = &loaded.settings.pipeline.sinks;
    let Some(table) = sinks.iter().find(|table| table.stage == HTTP_SIEM) else { return Ok(None) };
    let connection = connection(loaded, table, context)?;
    let connection = connection.with_organisation_keys(loaded.settings.managed_keys.clone());
    Ok(Some(match loaded.settings.require_signature {
        true => connection,
        false => connection.without_signatures(),
    }))
}

/// The connection to the receiver of a sink of type `http-siem`.
///
/// # Errors
/// [`ConfigError`] when the sink cannot be built.
pub fn connection(
    loaded: &LoadedConfig,
    table: &StageTable,
    context: &AgentContext,
) -> Result<Connection, ConfigError> {
    let context = &context_of(loaded, table, context);
    sink::connect(&table.options.to_options(), context)
        .map_err(|error| explain(loaded, StageKind::Sink, table, error))
}

/// The context of a sink: without the variables that do not count for it.
fn context_of(loaded: &LoadedConfig, sink: &StageTable, context: &AgentContext) -> AgentContext {
    let ignored = loaded.ignored_variables(&sink.name);
    AgentContext { environment: context.environment.clone().hide(&ignored), ..context.clone() }
}

fn build<S>(
    loaded: &LoadedConfig,
    kind: StageKind,
    tables: &[StageTable],
    build: impl Fn(&StageTable) -> Result<S, BuildError>,
) -> Result<Vec<(String, S)>, ConfigError> {
    tables
        .iter()
        .map(|table| match build(table) {
            Ok(stage) => Ok((table.name.clone(), stage)),
            Err(error) => Err(explain(loaded, kind, table, error)),
        })
        .collect()
}

fn explain(
    loaded: &LoadedConfig,
    kind: StageKind,
    table: &StageTable,
    error: BuildError,
) -> ConfigError {
    match error {
        BuildError::Options(error) => loaded.explain_error(table, &kind.to_string(), &error),
        BuildError::Invalid { option, problem } => {
            loaded.value_error(&format!("{kind}.{}.{option}", table.name), problem)
        }
        error => {
            if table.stage == table.name {
                // Without a `type` the name, which the list contains, is the type.
                let problem = format!("names `{}`, but {error}", table.name);
                return loaded.value_error(&format!("pipeline.{kind}s"), problem);
            }
            let problem = format!("is `{}`, but {error}", table.stage);
            loaded.value_error(&format!("{kind}.{}.type", table.name), problem)
        }
    }
}
