//! Sinks deliver batches of entries.

use std::{any::Any, error::Error, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use siem_protocol::{
    BatchHeader, Encoding,
    delivery::{Acknowledged, Delivery},
};

use crate::{BuildError, Context, Descriptor, StageKind, StageOptions, registry};

/// Future of [`Sink::deliver`].
pub type DeliveryFuture<'a> = Pin<Box<dyn Future<Output = Delivery> + Send + 'a>>;

/// Delivers batches, one at a time, and reports the result of each.
///
/// Batches arrive in order and without gaps. A batch that was not acknowledged is delivered again,
/// with the same bytes for each entry, but possibly with other batch boundaries. Acknowledged
/// entries are deleted from the outbox: a sink returns [`Delivery::Acknowledged`] only when they
/// are stored safely elsewhere. If the future is dropped, the batch counts as not delivered.
///
/// A sink does not retry, wait or split batches; the pipeline does.
pub trait Sink: Send {
    /// Delivers a batch.
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a>;

    /// Destination without secrets, such as a URL; `None` if it never changes. When it changes, the
    /// first batch announces to the new receiver at which number it starts.
    fn destination(&self) -> Option<String> {
        None
    }

    /// Number of bytes sent during the last delivery, that of `batch`, with any result:
    /// `max_bytes_per_second` limits them.
    fn sent(&self, batch: &Batch) -> u64 {
        batch.raw_bytes() as u64
    }

    /// Meaning of an acknowledgement of this sink, for the status.
    fn acknowledged(&self) -> Acknowledged {
        Acknowledged::default()
    }

    /// Tests the connection without delivering anything, at most for `within`; `None` if the sink
    /// has no such test. Returns a description of the receiver for people, or the reason, without
    /// secrets, why a batch would not be accepted. `ai-agent doctor` calls it.
    #[expect(unused_variables, reason = "names the argument in the documentation")]
    fn probe<'a>(
        &'a mut self,
        within: Duration,
    ) -> Option<Pin<Box<dyn Future<Output = Result<String, String>> + Send + 'a>>> {
        None
    }

    /// Encoding in which the sink sends entries. The pipeline stores entries in that encoding if it
    /// can, so that they are compressed only once.
    fn encoding(&self) -> Encoding {
        Encoding::Identity
    }
}

/// Consecutive entries under one configuration, with the header that describes them.
#[derive(Clone, Debug)]
pub struct Batch {
    header: BatchHeader,
    body: Arc<dyn BatchBody>,
    patience: Option<Duration>,
}

/// Entries of a batch, in the form in which the program that runs the pipeline stores them.
pub trait BatchBody: Any + fmt::Debug + Send + Sync {
    /// Number of bytes of the entries' lines, newlines included.
    fn raw_bytes(&self) -> usize;

    /// Returns the entries as NDJSON: a line for each, with its newline.
    ///
    /// # Errors
    /// [`BatchError`] if the stored entries are damaged.
    fn lines(&self) -> Result<Vec<u8>, BatchError>;
}

/// Error returned when the entries of a batch cannot be read back from the outbox.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct BatchError(Box<dyn Error + Send + Sync>);

impl BatchError {
    /// Wraps the cause.
    #[must_use]
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

impl Batch {
    /// Creates a batch.
    #[must_use]
    pub fn new(header: BatchHeader, body: impl BatchBody) -> Self {
        Self { header, body: Arc::new(body), patience: None }
    }

    /// Sets the time that the delivery may take; `None` for the sink's own limit.
    pub fn set_patience(&mut self, patience: Option<Duration>) {
        self.patience = patience;
    }

    /// Header of the batch: the first line of a request.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Time that the delivery may take, if that is more than the sink's own timeout.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        self.patience
    }

    /// Number of the last entry that the batch covers.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.header.last_seq.unwrap_or_default()
    }

    /// Number of bytes of the entries' lines, newlines included.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        self.body.raw_bytes()
    }

    /// Returns the entries as NDJSON: a line for each, with its newline, without the header.
    ///
    /// # Errors
    /// [`BatchError`] if the stored entries are damaged.
    pub fn lines(&self) -> Result<Vec<u8>, BatchError> {
        self.body.lines()
    }

    /// The entries as they are stored, if they are a `T`. The agent's built-in sinks use this to
    /// send stored bytes unchanged; it is not a stable interface.
    #[must_use]
    pub fn body<T: BatchBody>(&self) -> Option<&T> {
        (&*self.body as &dyn Any).downcast_ref()
    }
}

/// Options of a sink: its table, deserialized and checked by serde, and turned into a sink.
pub trait SinkOptions: DeserializeOwned + JsonSchema {
    /// The sink that these options build.
    type Sink: Sink + 'static;

    /// Builds the sink. Files named by options may be read; the network is not used.
    ///
    /// # Errors
    /// [`BuildError::Invalid`] if the options cannot work together.
    fn build(self, context: &Context) -> Result<Self::Sink, BuildError>;
}

type Build = fn(&StageOptions, &Context) -> Result<Box<dyn Sink>, BuildError>;

/// Registry entry of a sink.
pub struct SinkPlugin {
    pub(crate) descriptor: Descriptor,
    build: Build,
    check: fn(&StageOptions) -> Result<(), BuildError>,
}

inventory::collect!(SinkPlugin);

impl SinkPlugin {
    /// Creates the entry of a sink of type `name`. See [`Descriptor`] for the arguments.
    #[must_use]
    pub const fn new<O: SinkOptions>(
        name: &'static str,
        summary: &'static str,
        sample: &'static str,
    ) -> Self {
        let descriptor = Descriptor::new::<O>(StageKind::Sink, name, summary, sample);
        Self { descriptor, build: build_from::<O>, check: check_from::<O> }
    }
}

fn build_from<O: SinkOptions>(
    options: &StageOptions,
    context: &Context,
) -> Result<Box<dyn Sink>, BuildError> {
    Ok(Box::new(options.parse::<O>()?.build(context)?))
}

fn check_from<O: SinkOptions>(options: &StageOptions) -> Result<(), BuildError> {
    options.parse::<O>()?;
    Ok(())
}

fn plugin(name: &str) -> Result<&'static SinkPlugin, BuildError> {
    let plugins = inventory::iter::<SinkPlugin>.into_iter();
    registry::find(StageKind::Sink, name, plugins, |plugin| &plugin.descriptor)
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
    (plugin(name)?.build)(options, context)
}

/// Checks the options of a sink of type `name` without building it, so that no secrets are needed.
///
/// # Errors
/// [`BuildError`] if no such sink is registered or an option is wrong.
pub fn check_sink_options(name: &str, options: &StageOptions) -> Result<(), BuildError> {
    (plugin(name)?.check)(options)
}
