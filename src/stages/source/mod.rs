//! Sources read records from the machine.

pub(crate) mod auditd;
mod claude_sessions;
mod hook_spool;

use std::{any::Any, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::{BuildError, Context, Descriptor, Kind, StageOptions};
pub use crate::tail::{BadRow, Chunk, GenerationId, Intake, Origin, Piece, Survey};

/// Reads records and hands them over in chunks, each with the checkpoint that covers it.
///
/// A source runs on a blocking thread of its own pipeline and may do I/O there, never for long at
/// once. It is the pipeline that stores: a source moves on only in memory, and begins again from
/// the stored rows when [`restore`](Self::restore) is called.
pub trait Source: Any + Send {
    /// The `source` of its entries.
    fn label(&self) -> &'static str;

    /// Takes the place of `old`, whose options were others: what it knows of files, beyond what is
    /// stored, need not be lost. [`restore`](Self::restore) follows. By default nothing is taken.
    fn inherit(&mut self, _old: Box<dyn Any>) {}

    /// Begins from the stored rows: at start, and after a group could not be stored. What was
    /// handed over and not stored since must be handed over again.
    ///
    /// # Errors
    /// [`BadRow`]: the store holds what this source can't have handed over.
    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow>;

    /// Hands chunks over until the intake has no room or nothing is unread.
    fn read(&mut self, intake: &mut dyn Intake) -> Progress;

    /// Called now and then instead of [`read`](Self::read) while there is no room for anything:
    /// lets go of what may not be held any longer.
    fn tend(&mut self) {}

    /// Whether what it hands over next is old, and must not keep what is new from the machine: no
    /// person waits for it. By default never.
    fn is_backfill(&self) -> bool {
        false
    }

    /// All chunks handed over so far are in a group that is on its way to the store; what is
    /// handed over from now on is in another.
    fn sealed(&mut self) {}

    /// All chunks that were handed over before [`sealed`](Self::sealed) was called last are stored.
    fn committed(&mut self);

    /// What there is to read.
    fn survey(&self) -> Survey;
}

pub use crate::tail::Progress;

/// Wakes the pipeline when a source has something to read before it would be asked again.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// A source's options: its table, read and checked by serde, and made into a source.
pub trait SourceOptions: DeserializeOwned + JsonSchema {
    /// What they make.
    type Source: Source + 'static;

    /// Makes the source. Reading begins with the first call of [`Source::read`].
    ///
    /// # Errors
    /// [`BuildError::Invalid`] when the options can't work together.
    fn build(self, context: &Context, waker: Waker) -> Result<Self::Source, BuildError>;
}

type Build = fn(&StageOptions, &Context, Waker) -> Result<Box<dyn Source>, BuildError>;

/// A source's entry in the registry.
pub struct SourcePlugin {
    pub(super) descriptor: Descriptor,
    build: Build,
}

inventory::collect!(SourcePlugin);

impl SourcePlugin {
    /// Registers a source of type `name`; see [`Descriptor`] for the rest.
    #[must_use]
    pub const fn new<O: SourceOptions>(
        name: &'static str,
        summary: &'static str,
        sample: &'static str,
    ) -> Self {
        let descriptor = Descriptor::new::<O>(Kind::Source, name, summary, sample);
        Self { descriptor, build: build_from::<O> }
    }
}

fn build_from<O: SourceOptions>(
    options: &StageOptions,
    context: &Context,
    waker: Waker,
) -> Result<Box<dyn Source>, BuildError> {
    Ok(Box::new(super::parse::<O>(options)?.build(context, waker)?))
}

/// Builds a source of type `name`.
///
/// # Errors
/// [`BuildError`] when there is no such type or an option is wrong.
pub fn build(
    name: &str,
    options: &StageOptions,
    context: &Context,
    waker: Waker,
) -> Result<Box<dyn Source>, BuildError> {
    let plugins = inventory::iter::<SourcePlugin>.into_iter();
    let plugin = super::find(Kind::Source, name, plugins, |plugin| &plugin.descriptor)?;
    (plugin.build)(options, context, waker)
}

/// The longest that a source sleeps between two looks, whatever it says.
pub const LONGEST_SLEEP: Duration = Duration::from_secs(300);
