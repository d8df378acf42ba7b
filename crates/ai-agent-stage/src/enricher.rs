//! Enrichers add facts to the entry around a record, never to the record.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::{BuildError, Context, Event, FileKey, Record};

/// Adds one JSON object to the entry of each record, and to that of an event if it wants, under the
/// name of the instance: the facts of `[enricher.host]` are the member `host`.
///
/// An enricher is pure and fast: it runs for every record that is kept, and sees the line as the
/// filters left it. Of a line that is sent in parts it sees the first part; for each later part it
/// gets a record without bytes.
///
/// Records are stored in groups. An enricher that remembers records is notified about them like a
/// [`Filter`](crate::Filter).
pub trait Enricher: Send {
    /// Returns the object for `record`; `None` adds nothing.
    fn enrich(&mut self, record: &Record<'_>) -> Option<&RawValue>;

    /// Appends the object for `record` to `json`, and returns whether there is one: what the pipeline
    /// calls. An enricher that writes a new object for each record implements it, because a
    /// [`RawValue`] can only be made by checking its text once more.
    fn append(&mut self, record: &Record<'_>, json: &mut String) -> bool {
        let object = self.enrich(record);
        json.push_str(object.map_or("", RawValue::get));
        object.is_some()
    }

    /// Returns the object for an event of the agent or of a source; `None`, the default, adds nothing.
    ///
    /// Events pass no filters. An enricher that adds the same facts to everything implements it.
    #[expect(unused_variables, reason = "names the argument in the documentation")]
    fn enrich_event(&mut self, event: &Event) -> Option<&RawValue> {
        None
    }

    /// Called when the records seen since the last `commit` or [`rollback`](Self::rollback) are
    /// stored.
    fn commit(&mut self) {}

    /// Called when the records seen since the last [`commit`](Self::commit) or `rollback` were not
    /// stored: they will be seen again, and must get the same object.
    fn rollback(&mut self) {}

    /// Called when a file was deleted: memory about it can be freed.
    fn forget(&mut self, _file: FileKey) {}
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
