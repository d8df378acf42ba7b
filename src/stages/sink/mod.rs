//! Sinks deliver batches.

mod answer;
mod batch;
mod file;
mod http_siem;
mod stdout;

use std::{future::Future, pin::Pin, time::Duration};

pub(crate) use answer::gist;
/// For fuzzing: what a receiver may answer is anything.
#[doc(hidden)]
pub use answer::retry_after;
pub use batch::Batch;
pub(crate) use http_siem::connect;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::{BuildError, Context, Descriptor, Kind, StageOptions};
use crate::frame::Codec;

/// What a sink answers, in time.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Delivery> + Send + 'a>>;

/// Delivers batches, one at a time, and says of each what became of it.
///
/// Batches come in order and without gaps. One that was not acknowledged comes again, with the
/// same bytes for each entry, though perhaps with other borders. What a sink acknowledges is
/// deleted from the outbox: it says [`Delivery::Acknowledged`] only when the entries are safe
/// elsewhere. When the future is dropped in mid-batch, the batch counts as not delivered.
///
/// A sink does not retry, wait or split by itself: the pipeline's policy does.
pub trait Sink: Send {
    /// Delivers a batch.
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> Answer<'a>;

    /// Where it delivers to, without secrets; `None` when that never changes. A sink that moves
    /// tells the receiver there where it begins.
    fn destination(&self) -> Option<String> {
        None
    }

    /// How many bytes the last delivery, that of `batch`, has sent, whatever came of it: what
    /// `max_bytes_per_second` counts.
    fn sent(&self, batch: &Batch) -> u64 {
        batch.raw() as u64
    }

    /// How the sink likes frames stored; others are encoded anew for it.
    fn codec(&self) -> Codec {
        Codec::Plain
    }
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is safe: it leaves the outbox.
    Acknowledged,
    /// It could not be delivered now; the same again later.
    Retry {
        /// When the receiver wants it again, if it said so.
        after: Option<Duration>,
        /// What happened, for people. No secret, no content.
        reason: String,
    },
    /// No answer came in time: less of it again later, the way to the receiver may be slow.
    Slow {
        /// How long it was waited for.
        waited: Duration,
        /// What happened, for people. No secret, no content.
        reason: String,
    },
    /// Something is wrong that is no verdict on the data: an alarm, and the same again later.
    Hold {
        /// When the receiver wants it again, if it said so.
        after: Option<Duration>,
        /// What happened, for people. No secret, no content.
        reason: String,
    },
    /// The receiver refuses the batch for what is in it; of one entry alone it is a verdict.
    Refused {
        /// The HTTP status, 413 or 422.
        status: u16,
        /// The receiver's words, at most 4 KiB.
        answer: String,
    },
    /// The receiver holds other entries under these numbers.
    Conflict {
        /// The number that it expects next, if it said so.
        expected: Option<u64>,
    },
}

/// A sink's options: its table, read and checked by serde, and made into a sink.
pub trait SinkOptions: DeserializeOwned + JsonSchema {
    /// What they make.
    type Sink: Sink + 'static;

    /// Makes the sink. Files named by options may be read here; the network is not touched.
    ///
    /// # Errors
    /// [`BuildError::Invalid`] when the options can't work together.
    fn build(self, context: &Context) -> Result<Self::Sink, BuildError>;
}

type Build = fn(&StageOptions, &Context) -> Result<Box<dyn Sink>, BuildError>;

/// A sink's entry in the registry.
pub struct SinkPlugin {
    pub(super) descriptor: Descriptor,
    build: Build,
    check: fn(&StageOptions) -> Result<(), BuildError>,
}

inventory::collect!(SinkPlugin);

impl SinkPlugin {
    /// Registers a sink of type `name`; see [`Descriptor`] for the rest.
    #[must_use]
    pub const fn new<O: SinkOptions>(
        name: &'static str,
        summary: &'static str,
        sample: &'static str,
    ) -> Self {
        let descriptor = Descriptor::new::<O>(Kind::Sink, name, summary, sample);
        Self { descriptor, build: build_from::<O>, check: check_options::<O> }
    }
}

fn build_from<O: SinkOptions>(
    options: &StageOptions,
    context: &Context,
) -> Result<Box<dyn Sink>, BuildError> {
    Ok(Box::new(super::parse::<O>(options)?.build(context)?))
}

fn check_options<O: SinkOptions>(options: &StageOptions) -> Result<(), BuildError> {
    super::parse::<O>(options).map(drop)
}

/// Checks the options of a sink of type `name` without building it: for what needs no secrets.
///
/// # Errors
/// [`BuildError`] when there is no such type or an option is unknown or of another type.
pub fn check(name: &str, options: &StageOptions) -> Result<(), BuildError> {
    let plugins = inventory::iter::<SinkPlugin>.into_iter();
    let plugin = super::find(Kind::Sink, name, plugins, |plugin| &plugin.descriptor)?;
    (plugin.check)(options)
}

/// Builds a sink of type `name`.
///
/// # Errors
/// [`BuildError`] when there is no such type or an option is wrong.
pub fn build(
    name: &str,
    options: &StageOptions,
    context: &Context,
) -> Result<Box<dyn Sink>, BuildError> {
    let plugins = inventory::iter::<SinkPlugin>.into_iter();
    let plugin = super::find(Kind::Sink, name, plugins, |plugin| &plugin.descriptor)?;
    (plugin.build)(options, context)
}
