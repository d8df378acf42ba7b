//! Faults that end a running pipeline, and why catching up did not finish.

use tokio::sync::watch;

/// A fault after which a pipeline must be stopped and a new one started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The store is damaged.
    #[error("the outbox is damaged")]
    OutboxDamaged,
    /// A part of the pipeline panicked. Without the panic's message, which may quote a record.
    #[error("{0} stopped unexpectedly: see the log")]
    Panicked(String),
}

/// Reason that not everything was read and delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatchUpError {
    /// The pipeline has ended with a fault.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Neither reading nor a sink makes progress.
    #[error("reading is stalled, unread records remain in the files: {0}")]
    Reading(String),
    /// A sink does not make progress with the entries that were read.
    #[error("sink `{sink}` is stalled, unacknowledged entries remain in the outbox: {problem}")]
    Delivery {
        /// Instance name of the sink.
        sink: String,
        /// Reason that nothing is delivered.
        problem: String,
    },
}

/// Publishes the first fault of a pipeline.
#[derive(Clone)]
pub(super) struct Faults(watch::Sender<Option<Fault>>);

impl Faults {
    pub(super) fn new() -> Self {
        Self(watch::Sender::default())
    }

    /// Publishes `fault` if the sender of `value` is dropped before the value is `expected`.
    pub(super) fn unless<T: Send + Sync + 'static>(
        &self,
        mut value: watch::Receiver<T>,
        expected: fn(&T) -> bool,
        fault: Fault,
    ) {
        let faults = self.clone();
        tokio::spawn(async move {
            if value.wait_for(expected).await.is_err() {
                faults.publish(fault);
            }
        });
    }

    /// Publishes `fault` once `value` is true.
    pub(super) fn when(&self, mut value: watch::Receiver<bool>, fault: Fault) {
        let faults = self.clone();
        tokio::spawn(async move {
            if value.wait_for(|is_so| *is_so).await.is_ok() {
                faults.publish(fault);
            }
        });
    }

    /// Waits for the first fault, possibly forever.
    pub(super) fn first(&self) -> impl Future<Output = Fault> + Send + use<> {
        let mut fault = self.0.subscribe();
        async move {
            let found = fault.wait_for(Option::is_some).await.ok().and_then(|fault| fault.clone());
            match found {
                Some(fault) => fault,
                None => std::future::pending().await,
            }
        }
    }

    fn publish(&self, fault: Fault) {
        self.0.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(fault);
            is_first
        });
    }
}
