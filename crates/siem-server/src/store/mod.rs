//! Where batches are kept: the trait, and the store in files that comes with it.

mod applier;
mod catalog;
mod checkpoint;
mod epoch;
mod files;
mod frame;
mod journal;
mod names;
mod note;
mod recover;
mod repeats;
mod starts;
mod writer;

use std::{fs, io, path::Path, pin::Pin, time::Duration};

pub use files::{FileStore, FileStoreOptions, OpenError};
use siem_protocol::Receipt;

use crate::{batch::Batch, stats::Stats};

/// What a storage will answer.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Keeps batches. Implement it to put the receiver in front of a store of your own; a
/// [`Ledger`](crate::ledger::Ledger) for each machine and epoch then says what to store.
pub trait Storage: Send + Sync + 'static {
    /// Stores a batch: all of its new lines or none, each once, their bytes unchanged.
    ///
    /// `Ok` only after they are on stable storage. The future may be dropped at any time: what was
    /// begun may be finished or not, since the sender sends again what was not answered.
    ///
    /// # Errors
    /// [`StoreError`]: nothing of the batch was stored, as far as the sender can know.
    fn store(&self, batch: Batch) -> Answer<'_, Receipt>;

    /// What is held.
    ///
    /// # Errors
    /// [`StoreError`] when it can't be told now.
    fn stats(&self) -> Answer<'_, Stats>;
}

/// Why a batch was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A number that is held came with another chain value.
    #[error("a number that is held came with another chain value, expected seq {expected_seq}")]
    Conflict {
        /// The number expected next.
        expected_seq: u64,
    },
    /// There is no space.
    #[error("there is no space to store the batch")]
    Full(#[source] io::Error),
    /// More batches wait than may.
    #[error("too many batches are waiting")]
    Busy {
        /// When to come again.
        retry_after: Duration,
    },
    /// The store can't write or read at present.
    #[error("the store is not available")]
    Unavailable(#[source] io::Error),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Tells a full disk from other troubles.
    #[must_use]
    pub fn from_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(error),
            _ => Self::Unavailable(error),
        }
    }
}

/// An error for each of several who wait.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// Makes a directory, and those above it, for its owner only: it holds what developers wrote.
fn create_private(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

/// Makes a directory's entries durable. Windows has no such thing: there the file system sees to it.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(windows) {
        return Ok(());
    }
    fs::File::open(path)?.sync_all()
}
