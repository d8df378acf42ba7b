//! Enrichers add facts beside a record, never inside it.

mod host;
mod labels;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

pub use super::Record;
use super::{BuildError, Context, Descriptor, Kind, StageOptions};

/// Adds one JSON object to the entry of each record, under the name of its instance: the facts of
/// `[enricher.host]` stand in `host`.
///
/// An enricher is pure and quick: it is asked for every record that is kept.
pub trait Enricher: Send {
    /// The object for `record`; `None` adds nothing.
    fn enrich(&mut self, record: &Record<'_>) -> Option<&RawValue>;
}

/// An enricher's options: its table, read and checked by serde, and made into an enricher.
pub trait EnricherOptions: DeserializeOwned + JsonSchema {
    /// What they make.
    type Enricher: Enricher + 'static;

    /// Makes the enricher.
    ///
    /// # Errors
    /// [`BuildError::Invalid`] when the options can't work together.
    fn build(self, context: &Context) -> Result<Self::Enricher, BuildError>;
}

type Build = fn(&StageOptions, &Context) -> Result<Box<dyn Enricher>, BuildError>;

/// An enricher's entry in the registry.
pub struct EnricherPlugin {
    pub(super) descriptor: Descriptor,
    build: Build,
}

inventory::collect!(EnricherPlugin);

impl EnricherPlugin {
    /// Registers an enricher of type `name`; see [`Descriptor`] for the rest.
    #[must_use]
    pub const fn new<O: EnricherOptions>(
        name: &'static str,
        summary: &'static str,
        sample: &'static str,
    ) -> Self {
        let descriptor = Descriptor::new::<O>(Kind::Enricher, name, summary, sample);
        Self { descriptor, build: build_from::<O> }
    }
}

fn build_from<O: EnricherOptions>(
    options: &StageOptions,
    context: &Context,
) -> Result<Box<dyn Enricher>, BuildError> {
    Ok(Box::new(super::parse::<O>(options)?.build(context)?))
}

/// Builds an enricher of type `name`.
///
/// # Errors
/// [`BuildError`] when there is no such type or an option is wrong.
pub fn build(
    name: &str,
    options: &StageOptions,
    context: &Context,
) -> Result<Box<dyn Enricher>, BuildError> {
    let plugins = inventory::iter::<EnricherPlugin>.into_iter();
    let plugin = super::find(Kind::Enricher, name, plugins, |plugin| &plugin.descriptor)?;
    (plugin.build)(options, context)
}
