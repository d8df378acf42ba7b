//! Registry of stages: kinds, descriptors and errors.

use std::fmt;

use schemars::{JsonSchema, Schema};

use crate::{EnricherPlugin, FilterPlugin, OptionError, SinkPlugin, SourcePlugin};

/// Kind of a stage.
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

impl StageKind {
    /// All kinds, in the order in which a record passes them.
    pub const ALL: [Self; 4] = [Self::Source, Self::Filter, Self::Enricher, Self::Sink];

    /// Name of the kind in a configuration: `filter` in `[filter.meta]`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Filter => "filter",
            Self::Enricher => "enricher",
            Self::Sink => "sink",
        }
    }
}

impl fmt::Display for StageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Description of a registered stage, available without building it.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Descriptor {
    /// Kind of the stage.
    pub kind: StageKind,
    /// Type: short, kebab-case, unique within its kind.
    pub name: &'static str,
    /// Description of the stage in one sentence.
    pub summary: &'static str,
    /// Table of the stage with every option, its default, and a comment above each, as TOML.
    pub sample: &'static str,
    schema: fn() -> Schema,
}

impl Descriptor {
    pub(crate) const fn new<O: JsonSchema>(
        kind: StageKind,
        name: &'static str,
        summary: &'static str,
        sample: &'static str,
    ) -> Self {
        Self { kind, name, summary, sample, schema: schema::<O> }
    }

    /// JSON Schema of the options.
    #[must_use]
    pub fn schema(&self) -> Schema {
        (self.schema)()
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

fn schema<O: JsonSchema>() -> Schema {
    schemars::schema_for!(O)
}

/// Returns all stages in this binary, sorted by kind and name. Stages of another crate are included
/// if the binary names that crate (`use that_crate as _;`).
#[must_use]
pub fn registered() -> Vec<Descriptor> {
    let sources = inventory::iter::<SourcePlugin>.into_iter().map(|plugin| plugin.descriptor);
    let filters = inventory::iter::<FilterPlugin>.into_iter().map(|plugin| plugin.descriptor);
    let enrichers = inventory::iter::<EnricherPlugin>.into_iter().map(|plugin| plugin.descriptor);
    let sinks = inventory::iter::<SinkPlugin>.into_iter().map(|plugin| plugin.descriptor);
    let mut all: Vec<_> = sources.chain(filters).chain(enrichers).chain(sinks).collect();
    all.sort_by_key(|stage| (stage.kind, stage.name));
    all
}

/// Finds the one plugin with the type `name`.
pub(crate) fn find<P: inventory::Collect>(
    kind: StageKind,
    name: &str,
    plugins: impl Iterator<Item = &'static P>,
    descriptor: fn(&P) -> &Descriptor,
) -> Result<&'static P, BuildError> {
    let mut found = plugins.filter(|plugin| descriptor(plugin).name == name);
    let unknown = || BuildError::Unknown { kind, name: name.to_owned() };
    let plugin = found.next().ok_or_else(unknown)?;
    if found.next().is_some() {
        return Err(BuildError::Ambiguous { kind, name: name.to_owned() });
    }
    Ok(plugin)
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
    /// Creates the error about a service that the program does not offer.
    #[must_use]
    pub fn unavailable(service: &'static str) -> Self {
        Self::Unavailable { service }
    }

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
