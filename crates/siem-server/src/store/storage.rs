//! The contract of a store, on which the receiver's HTTP layer depends.

use std::{io, pin::Pin, time::Duration};

use serde::{Deserialize, Serialize};
use siem_protocol::{Digest, Receipt};

use crate::{
    batch::Batch,
    fleet::StatsQuery,
    ledger::{Ledger, Range},
    stats::Stats,
    trust::policy::Denial,
};

/// Future of a storage's result.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Stores batches of entries, and returns what it holds.
///
/// A store holds, for each epoch of each machine, lines by their sequence number and one
/// [`Ledger`], which decides what a batch changes. Implement it to use the receiver with another
/// store.
///
/// # Contract
/// - **One durable step.** [`store`](Self::store) makes the new lines of a batch and the change of
///   its epoch's ledger durable together. After a crash at any time, both are there or neither.
/// - **Acknowledged is durable.** What a response counts as stored is held after a crash.
/// - **Idempotent.** A batch that arrives again, whole or with other boundaries, stores no line
///   twice and changes none: lines that are held are counted as duplicates. A response may be lost
///   at any time, and the sender then sends again.
/// - **Order within an epoch only.** Batches of one epoch take effect in the order in which they are
///   passed to [`store`](Self::store). There is no order among epochs and machines.
/// - **Bytes unchanged.** A line is returned as it was received.
/// - **Reads see acknowledged writes.** [`read`](Self::read), [`ledger`](Self::ledger) and
///   [`scan`](Self::scan) include each batch whose response was sent before the call.
///
/// The tests in `store/suite.rs` check these rules; a new implementation runs all of them.
pub trait Storage: Send + Sync + 'static {
    /// Stores a batch: all of its new lines or none, each once, their bytes unchanged.
    ///
    /// Returns `Ok` only after they are on stable storage. The future may be dropped at any time:
    /// the work may then be completed or not, since the sender sends again if it gets no response.
    ///
    /// # Errors
    /// [`StoreError`]: to the sender's knowledge, no part of the batch was stored.
    fn store(&self, batch: Batch) -> Answer<'_, StoredBatch>;

    /// Returns lines of an epoch whose numbers are in `range`, in the order of their numbers.
    ///
    /// Ends after the line with which the result has `max_bytes` bytes of text or more: continue
    /// after its number. The result is empty if no line in the range is held; numbers without a line
    /// are skipped.
    ///
    /// # Errors
    /// [`StoreError`] if lines cannot be read.
    fn read(&self, epoch: EpochKey, range: Range, max_bytes: u64) -> Answer<'_, Vec<StoredLine>>;

    /// Returns the ledger of an epoch; `None` if nothing of it is held.
    ///
    /// # Errors
    /// [`StoreError`] if it is not available.
    fn ledger(&self, epoch: EpochKey) -> Answer<'_, Option<Ledger>>;

    /// Returns up to `limit` epochs in the order of their keys, from the first one after `after` on.
    ///
    /// # Errors
    /// [`StoreError`] if they are not available.
    fn scan(&self, after: Option<EpochKey>, limit: usize) -> Answer<'_, Vec<EpochKey>>;

    /// Returns statistics about the entries held, with the rows that `query` asks for.
    ///
    /// # Errors
    /// [`StoreError`] if they are not available.
    fn stats(&self, query: StatsQuery) -> Answer<'_, Stats>;
}

/// Key of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EpochKey {
    /// Id of the machine, as in the header of its batches.
    pub machine: String,
    /// Id of the epoch.
    pub epoch: String,
}

impl EpochKey {
    pub(super) fn into_key(self) -> (String, String) {
        (self.machine, self.epoch)
    }
}

/// A line that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLine {
    /// Sequence number.
    pub seq: u64,
    /// Time at which it was received, RFC 3339.
    pub received_at: String,
    /// Its bytes, without a newline.
    pub line: Vec<u8>,
}

/// A batch that is on stable storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredBatch {
    /// Response to the sender, without a signed receipt.
    pub receipt: Receipt,
    /// Facts for a signed receipt; `None` if the storage has none.
    pub point: Option<HeldPoint>,
}

/// State of an epoch up to a number, as stored. The same number has the same facts later, except
/// that a device may seal it that adopts the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldPoint {
    /// The number.
    pub last_seq: u64,
    /// Value of the chain there.
    pub chain: Digest,
    /// Digest of the first stored seal that covers the number.
    pub seal: Option<Digest>,
    /// Time at which the number arrived, RFC 3339.
    pub received_at: String,
}

/// Reason why a batch was not stored, or a request not answered.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A number that is held has another chain value in the batch; or the epoch has no device, and
    /// the batch does not continue it.
    #[error("the batch does not continue what is held, expected seq {expected_seq}")]
    Conflict {
        /// The next number expected.
        expected_seq: u64,
    },
    /// The sender may not send these entries.
    #[error(transparent)]
    Denied(Denial),
    /// The disk is full.
    #[error("no space left to store the batch")]
    Full(#[source] io::Error),
    /// Too many batches are waiting.
    #[error("too many batches are waiting")]
    Busy {
        /// Time after which to try again.
        retry_after: Duration,
    },
    /// The store cannot write or read at present.
    #[error("the store is not available")]
    Unavailable(#[source] io::Error),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Distinguishes a full disk from other errors.
    #[must_use]
    pub fn from_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(error),
            _ => Self::Unavailable(error),
        }
    }
}
