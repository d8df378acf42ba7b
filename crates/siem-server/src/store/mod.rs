//! Storage of batches: the trait, and the store in files.

mod admission;
mod applier;
mod catalog;
mod checkpoint;
mod epoch;
mod files;
mod format;
mod frame;
mod journal;
mod names;
mod note;
mod note_index;
mod read_only;
mod recover;
mod repeats;
mod starts;
mod writer;

#[cfg(test)]
mod device_tests;

use std::{fs, io, path::Path, pin::Pin, time::Duration};

pub use files::{FileStore, FileStoreOptions, OpenError};
pub use format::{DataFormat, FormatError};
pub use read_only::{ReadError, StoredLines, read_lines, read_stats};
use siem_protocol::{Digest, Receipt};

use crate::{batch::Batch, fleet::StatsQuery, stats::Stats, trust::policy::Denial};

/// Future of a storage's result.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Stores batches. Implement it to use the receiver with another store; a
/// [`Ledger`](crate::ledger::Ledger) for each machine and epoch decides what to store.
pub trait Storage: Send + Sync + 'static {
    /// Stores a batch: all of its new lines or none, each once, their bytes unchanged.
    ///
    /// Returns `Ok` only after they are on stable storage. The future may be dropped at any time:
    /// the work may then be completed or not, since the sender sends again if it gets no response.
    ///
    /// # Errors
    /// [`StoreError`]: to the sender's knowledge, no part of the batch was stored.
    fn store(&self, batch: Batch) -> Answer<'_, StoredBatch>;

    /// Returns statistics about the entries held, with the rows that `query` asks for.
    ///
    /// # Errors
    /// [`StoreError`] if they are not available.
    fn stats(&self, query: StatsQuery) -> Answer<'_, Stats>;
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

/// Reason why a batch was not stored.
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

/// Copies an error, for several callers.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// Creates a directory and its parents with access for the owner only: it holds session records of
/// developers.
pub(crate) fn create_private(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

/// Makes the entries of a directory durable. Windows has no such call: its file systems do it on
/// their own.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(windows) {
        return Ok(());
    }
    fs::File::open(path)?.sync_all()
}
