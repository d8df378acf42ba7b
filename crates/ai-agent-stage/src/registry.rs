//! Registry of stages: one entry for each, found by kind and type.

use std::{fmt, path::PathBuf};

use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;

use crate::{
    Context, Enricher, EnricherOptions, Filter, FilterOptions, OptionError, Sink, SinkOptions,
    Source, SourceOptions, StageOptions, Waker,
};

/// Kind of a stage, in the order in which a record passes them. `Display` prints its name in a
/// configuration: `filter` in `[filter.meta]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StageKind {
    /// Reads records from the machine.
    Source,
    /// Keeps, drops or edits each record.
    Filter,
    /// Adds facts to the entry around a record.
    Enricher,
    /// Delivers batches of entries.
    Sink,
}

impl fmt::Display for StageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Source => "source",
            Self::Filter => "filter",
            Self::Enricher => "enricher",
            Self::Sink => "sink",
        })
    }
}

/// Registry entry of a stage, submitted with `inventory::submit!`.
///
/// Each constructor takes the type, the summary and the sample of the stage, which are described at
/// the fields, and the type of its options as a type parameter:
/// `Plugin::filter::<Options>("my-filter", "Drops records.", "")`.
#[non_exhaustive]
pub struct Plugin {
    /// Kind of the stage.
    pub kind: StageKind,
    /// Type: short, kebab-case, unique within its kind.
    pub name: &'static str,
    /// Description of the stage in one sentence.
    pub summary: &'static str,
    /// Table of the stage with every option, its default, and a comment above each, as TOML.
    pub sample: &'static str,
    /// Returns the JSON Schema of the options.
    pub schema: fn() -> Schema,
    /// Checks options without building the stage, so that no files or secrets are needed.
    pub check: fn(&StageOptions) -> Result<(), OptionError>,
    build: Build,
}

inventory::collect!(Plugin);

type BuildSource = fn(&StageOptions, &Context, Waker) -> Result<Box<dyn Source>, BuildError>;
type BuildFilter = fn(&StageOptions) -> Result<Box<dyn Filter>, BuildError>;
type BuildEnricher = fn(&StageOptions, &Context) -> Result<Box<dyn Enricher>, BuildError>;
type BuildSink = fn(&StageOptions, &Context) -> Result<Box<dyn Sink>, BuildError>;
type SinkFiles = fn(&StageOptions) -> Result<Vec<PathBuf>, OptionError>;

/// Builds a stage from its options.
#[derive(Clone, Copy)]
enum Build {
    Source(BuildSource),
    Filter(BuildFilter),
    Enricher(BuildEnricher),
    Sink(BuildSink, SinkFiles),
}

impl Plugin {
    /// Creates the entry of a source.
    #[must_use]
    pub const fn source<O: SourceOptions>(
        name: &'static str,
        summary: &'static str,
        sample: &'static str,
    ) -> Self {
        Self::new::<O>(name, summary, sample, Build::Source(source_from::<O>))
    }

    /// Creates the entry of a filter.
    #[must_use]
    pub const fn filter<O: FilterOptions>(
        name: &'static str,
        summary: &'static str,
        sample: &'static str,
    ) -> Self {
        Self::new::<O>(name, summary, sample, Build::Filter(filter_from::<O>))
    }

    /// Creates the entry of an enricher.
    #[must_use]
    pub const fn enricher<O: EnricherOptions>(
        name: &'static str,
        summary: &'static str,
        sample: &'static str,
    ) -> Self {
        Self::new::<O>(name, summary, sample, Build::Enricher(enricher_from::<O>))
    }

    /// Creates the entry of a sink.
    #[must_use]
    pub const fn sink<O: SinkOptions>(
        name: &'static str,
        summary: &'static str,
        sample: &'static str,
    ) -> Self {
        Self::new::<O>(name, summary, sample, Build::Sink(sink_from::<O>, sink_files_from::<O>))
    }

    const fn new<O: DeserializeOwned + JsonSchema>(
        name: &'static str,
        summary: &'static str,
        sample: &'static str,
        build: Build,
    ) -> Self {
        let kind = match build {
            Build::Source(_) => StageKind::Source,
            Build::Filter(_) => StageKind::Filter,
            Build::Enricher(_) => StageKind::Enricher,
            Build::Sink(..) => StageKind::Sink,
        };
        Self { kind, name, summary, sample, schema: schema::<O>, check: check::<O>, build }
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

fn source_from<O: SourceOptions>(
    options: &StageOptions,
    context: &Context,
    waker: Waker,
) -> Result<Box<dyn Source>, BuildError> {
    Ok(Box::new(options.parse::<O>()?.build(context, waker)?))
}

fn filter_from<O: FilterOptions>(options: &StageOptions) -> Result<Box<dyn Filter>, BuildError> {
    Ok(Box::new(options.parse::<O>()?.build()?))
}

fn enricher_from<O: EnricherOptions>(
    options: &StageOptions,
    context: &Context,
) -> Result<Box<dyn Enricher>, BuildError> {
    Ok(Box::new(options.parse::<O>()?.build(context)?))
}

fn sink_from<O: SinkOptions>(
    options: &StageOptions,
    context: &Context,
) -> Result<Box<dyn Sink>, BuildError> {
    Ok(Box::new(options.parse::<O>()?.build(context)?))
}

fn sink_files_from<O: SinkOptions>(options: &StageOptions) -> Result<Vec<PathBuf>, OptionError> {
    Ok(options.parse::<O>()?.files())
}

fn schema<O: JsonSchema>() -> Schema {
    schemars::schema_for!(O)
}

fn check<O: DeserializeOwned>(options: &StageOptions) -> Result<(), OptionError> {
    options.parse::<O>().map(drop)
}

/// Returns the entries of all stages in this binary, sorted by kind and name. Stages of another
/// crate are included if the binary names that crate (`use that_crate as _;`).
#[must_use]
pub fn registered() -> Vec<&'static Plugin> {
    let mut all: Vec<_> = inventory::iter::<Plugin>.into_iter().collect();
    all.sort_by_key(|stage| (stage.kind, stage.name));
    all
}

/// Builds a source of type `name`. It calls `waker` when it has input before its next scheduled
/// read.
///
/// # Errors
/// [`BuildError`] if no such source is registered or an option is wrong.
pub fn build_source(
    name: &str,
    options: &StageOptions,
    context: &Context,
    waker: Waker,
) -> Result<Box<dyn Source>, BuildError> {
    let build = find(StageKind::Source, name, |build| match build {
        Build::Source(build) => Some(build),
        _ => None,
    })?;
    build(options, context, waker)
}

/// Builds a filter of type `name`.
///
/// # Errors
/// [`BuildError`] if no such filter is registered or an option is wrong.
pub fn build_filter(name: &str, options: &StageOptions) -> Result<Box<dyn Filter>, BuildError> {
    let build = find(StageKind::Filter, name, |build| match build {
        Build::Filter(build) => Some(build),
        _ => None,
    })?;
    build(options)
}

/// Builds an enricher of type `name`.
///
/// # Errors
/// [`BuildError`] if no such enricher is registered or an option is wrong.
pub fn build_enricher(
    name: &str,
    options: &StageOptions,
    context: &Context,
) -> Result<Box<dyn Enricher>, BuildError> {
    let build = find(StageKind::Enricher, name, |build| match build {
        Build::Enricher(build) => Some(build),
        _ => None,
    })?;
    build(options, context)
}

/// Builds a sink of type `name`.
///
/// # Errors
/// [`BuildError`] if no such sink is registered or an option is wrong.
pub fn build_sink(
    name: &str,
    options: &StageOptions,
    context: &Context,
) -> Result<Box<dyn Sink>, BuildError> {
    let build = find(StageKind::Sink, name, |build| match build {
        Build::Sink(build, _) => Some(build),
        _ => None,
    })?;
    build(options, context)
}

/// Returns the files that a sink of type `name` would write: see [`SinkOptions::files`].
///
/// # Errors
/// [`BuildError`] if no such sink is registered or an option is wrong.
pub fn sink_files(name: &str, options: &StageOptions) -> Result<Vec<PathBuf>, BuildError> {
    let files = find(StageKind::Sink, name, |build| match build {
        Build::Sink(_, files) => Some(files),
        _ => None,
    })?;
    Ok(files(options)?)
}

/// Finds the one stage of type `name` for which `of_kind` returns a build function.
fn find<B>(
    kind: StageKind,
    name: &str,
    of_kind: impl Fn(Build) -> Option<B>,
) -> Result<B, BuildError> {
    let plugins = inventory::iter::<Plugin>.into_iter().filter(|plugin| plugin.name == name);
    let mut found = plugins.filter_map(|plugin| of_kind(plugin.build));
    let unknown = || BuildError::Unknown { kind, name: name.to_owned() };
    let build = found.next().ok_or_else(unknown)?;
    if found.next().is_some() {
        return Err(BuildError::Ambiguous { kind, name: name.to_owned() });
    }
    Ok(build)
}

/// Error returned when a stage cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No stage of that type is registered.
    #[error("there is no {kind} of type `{name}`{}", suggestion(.kind, .name))]
    Unknown {
        /// Kind of the stage.
        kind: StageKind,
        /// Requested type.
        name: String,
    },
    /// Two crates registered the same type.
    #[error("two {kind}s of type `{name}` are registered: rename one of them")]
    Ambiguous {
        /// Kind of the stages.
        kind: StageKind,
        /// Type that both have.
        name: String,
    },
    /// An option is unknown, missing or of the wrong type.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// The program that builds the stage does not offer a service that the stage needs.
    #[error("needs {service}, which this program does not offer")]
    Unavailable {
        /// Name of the service.
        service: &'static str,
    },
    /// The options have the right types but cannot work.
    #[error("`{option}` {problem}")]
    Invalid {
        /// Name of the option.
        option: &'static str,
        /// A predicate with the found and the expected value: `is 3, expected 4 or more`.
        problem: String,
    },
}

impl BuildError {
    /// Creates the error about the value of one option. `problem` is a predicate with the found
    /// and the expected value: `is 3, expected 4 or more`.
    #[must_use]
    pub fn invalid(option: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid { option, problem: problem.into() }
    }
}

fn suggestion(kind: &StageKind, name: &str) -> String {
    let known = registered().into_iter().filter(|stage| stage.kind == *kind);
    let known: Vec<_> = known.map(|stage| stage.name).collect();
    match did_you_mean(name, &known) {
        Some(near) => format!(", did you mean `{near}`?"),
        None => format!(", there are {}", known.join(", ")),
    }
}

/// Returns the element of `known` that is most similar to `found`, if it is similar enough to be
/// meant.
#[must_use]
pub fn did_you_mean<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |name: &&str| strsim::damerau_levenshtein(found, name);
    let nearest = known.iter().copied().min_by_key(distance)?;
    let near = distance(&nearest) <= (found.chars().count() / 3).max(1);
    near.then_some(nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn did_you_mean_suggests_only_similar_names() {
        let known = ["batch_size", "flush_interval", "max_batch_bytes"];
        assert_eq!(did_you_mean("bach_size", &known), Some("batch_size"));
        assert_eq!(did_you_mean("flush-interval", &known), Some("flush_interval"));
        assert_eq!(did_you_mean("colour", &known), None);
        assert_eq!(did_you_mean("x", &[]), None);
    }
}
