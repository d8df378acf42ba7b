//! Sources read records from the machine.

use std::{any::Any, path::PathBuf, sync::Arc};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::{BadRow, BuildError, Context, GenerationId, Intake, Progress, Survey};

/// Reads records and hands them over in chunks, each with the checkpoint that covers it.
///
/// A source runs on a blocking thread and may do I/O there, never for long at a time. It has no
/// store of its own: the pipeline stores chunks and checkpoints, one group in one transaction. The
/// source advances only in memory, and starts again from the stored rows when
/// [`restore`](Self::restore) is called.
///
/// Building a source has no side effects: it reads nothing and changes no shared state, since
/// sources are also built to check a configuration.
pub trait Source: Any + Send {
    /// Value of `source` in the entries of this source.
    fn label(&self) -> &'static str;

    /// Directories that the source reads, as configured. By default none are known.
    fn roots(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Takes over the state of the files that `old` has beyond the stored rows. Called when the
    /// options of a running source change; [`restore`](Self::restore) follows. By default nothing is taken over.
    fn inherit(&mut self, _old: Box<dyn Any>) {}

    /// Starts from the stored rows: at start, and after a group could not be stored. Everything that
    /// was handed over since and not stored must be handed over again.
    ///
    /// # Errors
    /// [`BadRow`] if the store contains a row that this source cannot have written.
    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow>;

    /// Hands over chunks until the intake has no room or everything has been read.
    fn read(&mut self, intake: &mut dyn Intake) -> Progress;

    /// Releases resources that must not be held any longer, such as deleted files. Called
    /// periodically in place of [`read`](Self::read) while the outbox is full.
    fn tend(&mut self) {}

    /// Called after the machine has slept: the next [`read`](Self::read) should look for changes that
    /// otherwise wait for a time. By default nothing waits.
    fn resume(&mut self) {}

    /// Returns true if the next input is a backlog that no person is waiting for, so that it can be
    /// read with low priority. By default false.
    fn is_backfill(&self) -> bool {
        false
    }

    /// Called when the group with all chunks so far is on its way to the store. Chunks handed over
    /// from now on belong to the next group.
    fn sealed(&mut self) {}

    /// Called when all chunks handed over before the last call of [`sealed`](Self::sealed) are
    /// stored.
    fn committed(&mut self);

    /// Returns statistics about the input.
    fn survey(&self) -> Survey;
}

/// Wakes the pipeline when a source has new input before its next scheduled read.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// Options of a source: its table, deserialized and checked by serde, and turned into a source.
pub trait SourceOptions: DeserializeOwned + JsonSchema {
    /// The source that these options build.
    type Source: Source + 'static;

    /// Builds the source. Reading starts with the first call of [`Source::read`].
    ///
    /// # Errors
    /// [`BuildError::Invalid`] if the options cannot work together.
    fn build(self, context: &Context, waker: Waker) -> Result<Self::Source, BuildError>;
}
