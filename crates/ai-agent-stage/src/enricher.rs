//! Enrichers add facts to the entry around a record, never to the record.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::{BuildError, Context, Record};

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
