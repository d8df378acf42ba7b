//! Enrichers add facts to the entry around a record, never to the record.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::{BuildError, Context, Descriptor, Record, StageKind, StageOptions, registry};

/// Adds one JSON object to the entry of each record, under the name of the instance: the facts of
/// `[enricher.host]` are the member `host`.
///
/// An enricher is pure and fast: it runs for every record that is kept.
pub trait Enricher: Send {
    /// Returns the object for `record`; `None` adds nothing.
    fn enrich(&mut self, record: &Record<'_>) -> Option<&RawValue>;
}

/// Options of an enricher: its table, deserialized and checked by serde, and turned into an
/// enricher.
pub trait EnricherOptions: DeserializeOwned + JsonSchema {
    /// The enricher that these options build.
    type Enricher: Enricher + 'static;

    /// Builds the enricher.
    ///
    /// # Errors
    /// [`BuildError::Invalid`] if the options cannot work together.
    fn build(self, context: &Context) -> Result<Self::Enricher, BuildError>;
}

type Build = fn(&StageOptions, &Context) -> Result<Box<dyn Enricher>, BuildError>;

/// Registry entry of an enricher.
pub struct EnricherPlugin {
    pub(crate) descriptor: Descriptor,
    build: Build,
}

inventory::collect!(EnricherPlugin);

impl EnricherPlugin {
    /// Creates the entry of an enricher of type `name`. See [`Descriptor`] for the arguments.
    #[must_use]
    pub const fn new<O: EnricherOptions>(
        name: &'static str,
        summary: &'static str,
        sample: &'static str,
    ) -> Self {
        let descriptor = Descriptor::new::<O>(StageKind::Enricher, name, summary, sample);
        Self { descriptor, build: build_from::<O> }
    }
}

fn build_from<O: EnricherOptions>(
    options: &StageOptions,
    context: &Context,
) -> Result<Box<dyn Enricher>, BuildError> {
    Ok(Box::new(options.parse::<O>()?.build(context)?))
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
    let plugins = inventory::iter::<EnricherPlugin>.into_iter();
    let plugin = registry::find(StageKind::Enricher, name, plugins, |plugin| &plugin.descriptor)?;
    (plugin.build)(options, context)
}
