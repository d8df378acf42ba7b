//! Where the bytes of each file went, in the transaction that moves its checkpoint.
//!
//! A row for each generation that is there, and one for all that are gone: together they are the
//! totals of the epoch.

use redb::{ReadableTable as _, Table, TableDefinition, WriteTransaction};

use super::{super::accounting::Share, Group, Outbox, OutboxError, from_json, json};
use crate::tail::GenerationId;

/// Shares by generation.
pub(super) const ACCOUNTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("accounts");

/// The row of all generations that are gone.
const GONE: &str = "";

/// Adds the group's shares, and folds those of generations that end with it.
pub(super) fn add_shares(transaction: &WriteTransaction, group: &Group) -> Result<(), redb::Error> {
    let ended: Vec<&GenerationId> = group
        .checkpoints
        .iter()
        .filter(|(_, row)| row.is_none())
        .map(|((_, generation), _)| generation)
        .collect();
    if group.shares.is_empty() && ended.is_empty() {
        return Ok(());
    }
    let mut accounts = transaction.open_table(ACCOUNTS)?;
    for (generation, share) in &group.shares {
        add(&mut accounts, &generation.0, share)?;
    }
    for generation in ended {
        let share = accounts.remove(generation.0.as_str())?.and_then(|row| from_json(row.value()));
        if let Some(share) = share {
            add(&mut accounts, GONE, &share)?;
        }
    }
    Ok(())
}

fn add(accounts: &mut Table<'_, &str, &[u8]>, key: &str, share: &Share) -> Result<(), redb::Error> {
    let known = accounts.get(key)?.and_then(|row| from_json::<Share>(row.value()));
    let mut sum = known.unwrap_or_default();
    sum += *share;
    accounts.insert(key, json(&sum).as_slice())?;
    Ok(())
}

impl Outbox {
    /// Where the bytes went: of each generation that is there, and under `None` of all that are
    /// gone.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a row in it is damaged.
    pub fn accounts(&self) -> Result<Vec<(Option<GenerationId>, Share)>, OutboxError> {
        let accounts = self.read("read", |transaction| {
            let mut all = Vec::new();
            for row in transaction.open_table(ACCOUNTS)?.iter()? {
                let (key, row) = row?;
                let Some(share) = from_json(row.value()) else { return Ok(None) };
                let key = key.value();
                all.push(((key != GONE).then(|| GenerationId(key.to_owned())), share));
            }
            Ok(Some(all))
        })?;
        accounts.ok_or_else(|| self.damaged("an account"))
    }
}
