//! Durable queue of entries that were accepted and not yet acknowledged by every sink.
//!
//! The outbox is one redb file. Entries, the checkpoints that cover them and the accounts of their
//! bytes are stored in one synced transaction, and an entry is deleted only after every sink has
//! acknowledged it. No other module uses redb.
//!
//! `docs/outbox-format.md` describes the tables, their keys and values, the checksums and the
//! recovery of a damaged store.

mod append;
mod backlog;
mod backup;
mod backup_file;
mod block;
mod block_hashes;
mod byte_accounts;
mod checkpoints;
mod checksum;
mod compact;
mod cursor_rows;
mod cursors;
mod dead_letters;
mod epoch_device;
mod error;
#[cfg(feature = "internals")]
pub mod fuzzing;
#[cfg(test)]
pub(super) mod io_error_tests;
mod memos;
mod migrate;
#[cfg(test)]
mod power_cuts;
mod read_frames;
mod recover;
mod renumber;
mod rows;
mod salvage;
#[cfg(test)]
pub(crate) mod simulated_disk;
mod snapshot;
mod stats;
mod store;
mod store_file;
mod tables;
#[cfg(test)]
mod tests;
mod transactions;
mod unreported;
mod verify;
mod waiting;

pub use backlog::SinkBacklog;
pub use cursor_rows::SinkRegistration;
pub use cursors::OrphanedSink;
pub use dead_letters::Purged;
pub use error::OutboxError;
pub use read_frames::ReadBlocks;
pub use recover::OpenOutcome;
pub use renumber::RenumberOutcome;
pub use rows::{Cursor, DeadLetter, EndedEpoch, EpochDevice, RescuedDeadLetters};
pub use siem_protocol::agent_event::DeadLetterId;
pub use snapshot::Snapshot;
pub use stats::{OutboxStats, SinkStats};
pub use store::{Head, LastGroup, Outbox};
#[cfg(test)]
pub(super) use store_file::builder;
