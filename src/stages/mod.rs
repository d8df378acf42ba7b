//! The stages that a record passes: source, filters, enrichers, sinks.
//!
//! A stage is one file. It names its options, says what it does, and registers itself with
//! `inventory::submit!`; nothing else has to be edited to add one, here or in a crate of your own.

pub mod enricher;
pub mod filter;
mod record;
mod sessions;
pub mod sink;
pub mod source;

use std::{fmt, path::PathBuf, sync::Arc};

pub use record::Record;
use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
pub use sessions::Sessions;
use siem_protocol::Identity;

pub use crate::config::StageOptions;
use crate::{
    config::did_you_mean,
    platform::{Clock, Environment, Paths, Power},
    siem::Revision,
};

/// What a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Reads records from the machine.
    Source,
    /// Decides whether a record is kept, dropped or edited.
    Filter,
    /// Adds facts beside a record.
    Enricher,
    /// Delivers batches.
    Sink,
}

impl Kind {
    /// All kinds, in the order that a record passes them.
    pub const ALL: [Self; 4] = [Self::Source, Self::Filter, Self::Enricher, Self::Sink];

    /// The kind's word, as it stands in a configuration: `filter` in `[filter.meta]`.
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

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What can be said of a stage without building it.
#[derive(Clone, Copy)]
pub struct Descriptor {
    /// What it is.
    pub kind: Kind,
    /// Its type: short, kebab-case, unique within its kind.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub summary: &'static str,
    /// Its table with every option, its default, and a comment above each, as TOML.
    pub sample: &'static str,
    schema: fn() -> Schema,
}

impl Descriptor {
    /// Describes a stage whose options are `O`.
    #[must_use]
    pub const fn new<O: JsonSchema>(
        kind: Kind,
        name: &'static str,
        summary: &'static str,
        sample: &'static str,
    ) -> Self {
        Self { kind, name, summary, sample, schema: schema::<O> }
    }

    /// JSON Schema of the stage's options.
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

/// All stages that this binary has, by kind and name. Stages of another crate are there when its
/// binary names the crate (`use that_crate as _;`).
#[must_use]
pub fn all() -> Vec<Descriptor> {
    let mut all: Vec<Descriptor> = inventory::iter::<source::SourcePlugin>
        .into_iter()
        .map(|plugin| plugin.descriptor)
        .chain(inventory::iter::<filter::FilterPlugin>.into_iter().map(|plugin| plugin.descriptor))
        .chain(
            inventory::iter::<enricher::EnricherPlugin>.into_iter().map(|plugin| plugin.descriptor),
        )
        .chain(inventory::iter::<sink::SinkPlugin>.into_iter().map(|plugin| plugin.descriptor))
        .collect();
    all.sort_by_key(|stage| (stage.kind, stage.name));
    all
}

/// Why a stage cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No stage of that type is registered.
    #[error("there is no {kind} of type `{name}`{}", suggestion(.kind, .name))]
    Unknown {
        /// What was looked for.
        kind: Kind,
        /// The type asked for.
        name: String,
    },
    /// Two crates registered the same type.
    #[error("two {kind}s of type `{name}` are registered: rename one of them")]
    Ambiguous {
        /// What they are.
        kind: Kind,
        /// The type they share.
        name: String,
    },
    /// The stage's table has a wrong option.
    #[error("{}", describe(.0))]
    Options(#[from] Box<figment::Error>),
    /// The options are well-formed, and still cannot work.
    #[error("`{option}` {problem}")]
    Invalid {
        /// The option.
        option: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
}

/// Names the option; not its value, which may be a secret.
fn describe(error: &figment::Error) -> String {
    if error.path.is_empty() {
        error.kind.to_string()
    } else {
        format!("`{}`: {}", error.path.join("."), error.kind)
    }
}

fn suggestion(kind: &Kind, name: &str) -> String {
    let known: Vec<_> =
        all().into_iter().filter(|stage| stage.kind == *kind).map(|stage| stage.name).collect();
    match did_you_mean(name, &known) {
        Some(near) => format!(", did you mean `{near}`?"),
        None => format!(", there are {}", known.join(", ")),
    }
}

/// A stage under its instance's name.
pub type Named<S> = (String, Box<S>);

/// What stages get from the agent when they are built.
#[derive(Clone)]
pub struct Context {
    /// Who the agent is.
    pub identity: Identity,
    /// The user's variables.
    pub environment: Environment,
    /// Where things lie for this user.
    pub paths: Paths,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Whether the machine runs on its battery.
    pub power: Arc<dyn Power>,
    /// Which managed configuration is in force.
    pub revision: Revision,
    /// Where the agent keeps its state; none for a dry run.
    pub state_dir: Option<PathBuf>,
    /// What sources tell each other of sessions.
    pub sessions: Sessions,
    /// Whether everything is read once and nothing after that: there are no changes to wait for.
    pub once: bool,
    /// How often everything is looked at anew.
    pub poll_interval: std::time::Duration,
}

/// Parses a stage's options.
fn parse<O: DeserializeOwned>(options: &StageOptions) -> Result<O, BuildError> {
    Ok(options.parse()?)
}

/// Finds the one plugin of a kind that `name` means.
fn find<P: inventory::Collect>(
    kind: Kind,
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
