//! Sinks deliver batches of entries.

use std::{
    any::Any, error::Error, fmt, future::Future, path::PathBuf, pin::Pin, sync::Arc, time::Duration,
};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use siem_protocol::{
    BatchHeader, Encoding,
    delivery::{Acknowledged, Delivery},
};

use crate::{BuildError, Context};

/// Future of [`Sink::deliver`].
pub type DeliveryFuture<'a> = Pin<Box<dyn Future<Output = Delivery> + Send + 'a>>;

/// Future of [`Sink::probe`].
pub type ProbeFuture<'a> = Pin<Box<dyn Future<Output = Result<String, String>> + Send + 'a>>;

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
        batch.body.raw_bytes() as u64
    }

    /// Meaning of an acknowledgement of this sink, for the status.
    fn acknowledged(&self) -> Acknowledged {
        Acknowledged::default()
    }

    /// Returns whether each entry is sent with its epoch and number, or an id, by which the receiver can
    /// drop one that it has already. If not, acknowledgements are stored at once, with a sync of
    /// their own, since each that a crash loses is a duplicate. If so, they are stored within a second,
    /// usually with the next entries.
    fn repetitions_are_recognisable(&self) -> bool {
        self.acknowledged() == Acknowledged::Verified
    }

    /// Tests the connection without delivering anything, at most for `within`; `None` if the sink
    /// has no such test. Returns a description of the receiver for people, or the reason, without
    /// secrets, why a batch would not be accepted. `ai-agent doctor` calls it.
    #[expect(unused_variables, reason = "names the argument in the documentation")]
    fn probe<'a>(&'a mut self, within: Duration) -> Option<ProbeFuture<'a>> {
        None
    }

    /// Returns whether the last successful [`probe`](Self::probe) proved that the receiver accepts what
    /// this sink sends, and not only that something responds.
    fn probe_is_proof(&self) -> bool {
        true
    }

    /// Encoding in which the sink sends entries. The pipeline stores entries in that encoding if it
    /// can, so that they are compressed only once.
    fn encoding(&self) -> Encoding {
        Encoding::Identity
    }
}

/// Consecutive entries under one configuration, with the header that describes them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Batch {
    /// Header of the batch: the first line of a request. It has the numbers of the entries.
    pub header: BatchHeader,
    /// The entries.
    pub body: Arc<dyn BatchBody>,
    /// Time that the delivery may take, if that is more than the sink's own timeout.
    pub patience: Option<Duration>,
}

impl Batch {
    /// Creates a batch, to be delivered within the sink's own timeout.
    #[must_use]
    pub fn new(header: BatchHeader, body: impl BatchBody) -> Self {
        Self { header, body: Arc::new(body), patience: None }
    }
}

/// Entries of a batch, in the form in which the program that runs the pipeline stores them.
pub trait BatchBody: Any + fmt::Debug + Send + Sync {
    /// Number of bytes of the entries' lines, newlines included.
    fn raw_bytes(&self) -> usize;

    /// Returns the entries as NDJSON: a line for each, with its newline, without the header.
    ///
    /// # Errors
    /// If the stored entries are damaged. The sink returns [`Delivery::Hold`].
    fn lines(&self) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>>;
}

/// Options of a sink: its table, deserialized and checked by serde, and turned into a sink.
pub trait SinkOptions: DeserializeOwned + JsonSchema {
    /// The sink that these options build.
    type Sink: Sink + 'static;

    /// Files that the sink writes, as absolute paths. It may create other files in their directories.
    ///
    /// On Linux the running agent can write nowhere else. The directories must exist when the agent
    /// starts.
    fn files(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Builds the sink. Files named by options may be read; the network is not used.
    ///
    /// # Errors
    /// [`BuildError::Invalid`] if the options cannot work together.
    fn build(self, context: &Context) -> Result<Self::Sink, BuildError>;
}
