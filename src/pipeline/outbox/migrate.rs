//! Migration of stores that older agents wrote. They are migrated when they are opened; an older
//! agent refuses a migrated store.
//!
//! | schema | difference to the current one |
//! | --- | --- |
//! | 1 | totals count bytes of lines with their endings; no byte accounts |
//! | 1, 2 | rows have no checksums of their own |

use redb::{ReadableTable as _, TableDefinition, WriteTransaction};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::{
    super::accounting::Totals,
    checksum::{corrupted, protect},
    rows::{OutboxState, from_json},
    tables::{ACCOUNTS, CHECKPOINTS, CURSORS, DEAD_LETTERS, DROPPED_PARTS},
};

/// Last schema version without row checksums.
pub(super) const LAST_WITHOUT_CHECKSUMS: u32 = 2;

/// Converts the state of a store of schema 1. Its totals cannot be converted: its entries become
/// uncounted, and the totals start behind them.
pub(super) fn state_from_1(row: &[u8]) -> Option<OutboxState> {
    let mut state: Value = serde_json::from_slice(row).ok()?;
    let next_seq = state.get("next_seq")?.as_u64()?;
    let totals = Totals::after(next_seq.checked_sub(1)?);
    state.as_object_mut()?.insert("totals".into(), json!(totals));
    serde_json::from_value(state).ok()
}

/// Adds a checksum to every row, one row at a time, since there may be many.
pub(super) fn protect_rows(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    for table in [DROPPED_PARTS, CURSORS, ACCOUNTS] {
        protect_table(transaction, table)?;
    }
    let mut table = transaction.open_table(CHECKPOINTS)?;
    let keys = table.iter()?.map(|row| {
        let (key, _) = row?;
        let (source, generation) = key.value();
        Ok((source.to_owned(), generation.to_owned()))
    });
    for (source, generation) in keys.collect::<Result<Vec<_>, redb::StorageError>>()? {
        let key = (source.as_str(), generation.as_str());
        let row = table.get(key)?.map(|row| valid(row.value()).map(|row| protect(key, row)));
        if let Some(row) = row {
            table.insert(key, row?.as_slice())?;
        }
    }
    let mut table = transaction.open_table(DEAD_LETTERS)?;
    let keys = table.iter()?.map(|row| {
        let (key, _) = row?;
        let (sink, epoch, seq) = key.value();
        Ok((sink.to_owned(), epoch.to_owned(), seq))
    });
    for (sink, epoch, seq) in keys.collect::<Result<Vec<_>, redb::StorageError>>()? {
        let key = (sink.as_str(), epoch.as_str(), seq);
        let row = table.get(key)?.map(|row| valid(row.value()).map(|row| protect(key, row)));
        if let Some(row) = row {
            table.insert(key, row?.as_slice())?;
        }
    }
    Ok(())
}

fn protect_table(
    transaction: &WriteTransaction,
    table: TableDefinition<'_, &str, &[u8]>,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(table)?;
    let keys = table.iter()?.map(|row| Ok(row?.0.value().to_owned()));
    for key in keys.collect::<Result<Vec<_>, redb::StorageError>>()? {
        let row = table.get(&*key)?.map(|row| valid(row.value()).map(|row| protect(&*key, row)));
        if let Some(row) = row {
            table.insert(&*key, row?.as_slice())?;
        }
    }
    Ok(())
}

/// Returns a row of an older schema if it is valid JSON, which is all that can be verified.
fn valid(row: &[u8]) -> Result<&[u8], redb::Error> {
    from_json::<IgnoredAny>(row).map(|_| row).ok_or_else(|| corrupted("a row"))
}
