//! Stores that older agents wrote. They are taken over when they are opened; an agent that is
//! older than the store refuses it.
//!
//! | schema | what is other |
//! | --- | --- |
//! | 1 | totals count bytes of lines with their endings; no accounts of generations |
//! | 1, 2 | rows have no checksums of their own |

use redb::{ReadableTable as _, TableDefinition, WriteTransaction};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::{
    super::accounting::Totals,
    ACCOUNTS, CHECKPOINTS, CURSORS, DEAD_LETTERS, DROPPED_PARTS, State,
    checksum::{damaged, seal},
    from_json,
};

/// The last schema without checksums.
pub(super) const UNSEALED: u32 = 2;

/// The state of a store of schema 1. What it counted can't be split as it is counted now: its
/// entries are uncounted, and the totals begin behind them.
pub(super) fn from_1(row: &[u8]) -> Option<State> {
    let mut state: Value = serde_json::from_slice(row).ok()?;
    let next_seq = state.get("next_seq")?.as_u64()?;
    let totals = Totals::after(next_seq.checked_sub(1)?);
    state.as_object_mut()?.insert("totals".into(), json!(totals));
    serde_json::from_value(state).ok()
}

/// Puts every row under a checksum, one after the other: there may be many.
pub(super) fn seal_rows(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    for table in [DROPPED_PARTS, CURSORS, ACCOUNTS] {
        seal_table(transaction, table)?;
    }
    let mut table = transaction.open_table(CHECKPOINTS)?;
    let keys = table.iter()?.map(|row| {
        let (key, _) = row?;
        let (source, generation) = key.value();
        Ok((source.to_owned(), generation.to_owned()))
    });
    for (source, generation) in keys.collect::<Result<Vec<_>, redb::StorageError>>()? {
        let key = (source.as_str(), generation.as_str());
        let row = table.get(key)?.map(|row| whole(row.value()).map(|row| seal(key, row)));
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
        let row = table.get(key)?.map(|row| whole(row.value()).map(|row| seal(key, row)));
        if let Some(row) = row {
            table.insert(key, row?.as_slice())?;
        }
    }
    Ok(())
}

fn seal_table(
    transaction: &WriteTransaction,
    table: TableDefinition<'_, &str, &[u8]>,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(table)?;
    let keys = table.iter()?.map(|row| Ok(row?.0.value().to_owned()));
    for key in keys.collect::<Result<Vec<_>, redb::StorageError>>()? {
        let row = table.get(&*key)?.map(|row| whole(row.value()).map(|row| seal(&*key, row)));
        if let Some(row) = row {
            table.insert(&*key, row?.as_slice())?;
        }
    }
    Ok(())
}

/// A row of an older schema, which was JSON when it was written.
fn whole(row: &[u8]) -> Result<&[u8], redb::Error> {
    from_json::<IgnoredAny>(row).map(|_| row).ok_or_else(|| damaged("a row"))
}
