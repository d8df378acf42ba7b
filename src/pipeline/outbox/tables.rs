//! Names and types of the tables in the store.

use redb::{TableDefinition, TableError, WriteTransaction};

/// Blocks of frames, by the sequence number of the first entry in each.
pub(super) const BLOCKS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("values");
/// Checkpoint rows, by source instance and generation.
pub(super) const CHECKPOINTS: TableDefinition<'_, (&str, &str), &[u8]> =
    TableDefinition::new("checkpoints");
/// Hashes of the blocks of files, by source instance and generation.
pub(super) const BLOCK_HASHES: TableDefinition<'_, (&str, &str), &[u8]> =
    TableDefinition::new("block_hashes");
/// Filter verdicts on lines that are still arriving in parts, by generation.
pub(super) const DROPPED_PARTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("dropping");
/// Byte accounts, by generation.
pub(super) const ACCOUNTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("accounts");
/// Delivery progress, by sink.
pub(super) const CURSORS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cursors");
/// Refused entries, by sink, epoch and sequence number. The epoch is part of the key because
/// sequence numbers start at 1 again in each epoch.
pub(super) const DEAD_LETTERS: TableDefinition<'_, (&str, &str, u64), &[u8]> =
    TableDefinition::new("dead_letters");
/// Single rows: [`STATE`] and [`STATE_CHECKSUM`].
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Key of the state row in [`META`].
pub(super) const STATE: &str = "state";
/// Key of the state row's checksum in [`META`].
pub(super) const STATE_CHECKSUM: &str = "seal";

/// Version of the table layout. A store with a higher version is used if it says that this one is enough,
/// or else refused and left untouched.
pub(super) const SCHEMA: u32 = 3;

/// Lowest version whose agents can use a store of [`SCHEMA`]. A release that raises the schema keeps the
/// one of the minor release before, so that an update can be rolled back.
const READABLE_FROM: u32 = SCHEMA;

/// Version of the layout in which a store is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoreFormat {
    /// Version of the layout.
    pub(super) schema: u32,
    /// Lowest version whose agents can use the store.
    pub(super) readable_from: u32,
}

impl StoreFormat {
    /// Format of this release.
    pub(super) const CURRENT: Self = Self { schema: SCHEMA, readable_from: READABLE_FROM };
}

/// Creates the tables that do not exist yet, so that readers can rely on all of them.
pub(super) fn create_all(transaction: &WriteTransaction) -> Result<(), TableError> {
    transaction.open_table(BLOCKS)?;
    transaction.open_table(CHECKPOINTS)?;
    transaction.open_table(BLOCK_HASHES)?;
    transaction.open_table(DROPPED_PARTS)?;
    transaction.open_table(ACCOUNTS)?;
    transaction.open_table(CURSORS)?;
    transaction.open_table(DEAD_LETTERS)?;
    transaction.open_table(META)?;
    Ok(())
}
