//! What a pipeline that runs can't go on with, and why it did not get to its end.

use tokio::sync::watch;

/// What a pipeline can't go on with: it is to be stopped then, and another begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The store turned out to be damaged.
    #[error("the outbox is damaged")]
    OutboxDamaged,
    /// A part of it panicked and is gone. Without content: a panic's message may quote a record.
    #[error("{0} failed and is gone, the log says where")]
    Panicked(String),
}

/// Why not everything was read and delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatchUpError {
    /// The pipeline can't go on.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Neither reading nor a sink gets on.
    #[error("reading does not get on, the files keep the rest: {0}")]
    Reading(String),
    /// A sink does not get on with what was read.
    #[error("sink `{sink}` did not take everything, the rest stays in the outbox: {trouble}")]
    Delivery {
        /// Its instance's name.
        sink: String,
        /// What keeps it.
        trouble: String,
    },
}

/// Says the first fault of a pipeline.
#[derive(Clone)]
pub(super) struct Faults(watch::Sender<Option<Fault>>);

impl Faults {
    pub(super) fn new() -> Self {
        Self(watch::Sender::default())
    }

    /// Says `fault` when `value` can't come to be `expected` any more: who held the other end of it
    /// has died.
    pub(super) fn unless<T: Send + Sync + 'static>(
        &self,
        mut value: watch::Receiver<T>,
        expected: fn(&T) -> bool,
        fault: Fault,
    ) {
        let faults = self.clone();
        tokio::spawn(async move {
            if value.wait_for(expected).await.is_err() {
                faults.say(fault);
            }
        });
    }

    /// Says `fault` when `value` comes to be true.
    pub(super) fn when(&self, mut value: watch::Receiver<bool>, fault: Fault) {
        let faults = self.clone();
        tokio::spawn(async move {
            if value.wait_for(|is_so| *is_so).await.is_ok() {
                faults.say(fault);
            }
        });
    }

    /// Waits for the first fault, which may never come.
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

    fn say(&self, fault: Fault) {
        self.0.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(fault);
            is_first
        });
    }
}
