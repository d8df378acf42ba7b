//! Where the bytes of each file went, in the transaction that moves its checkpoint.
//!
//! A row for each generation that is there, and one for all that are gone: together they are the
//! totals of the epoch.

use redb::{ReadableTable as _, Table, TableDefinition, WriteTransaction};

use super::{
    super::accounting::Share,
    Group, Outbox, OutboxError,
    checksum::{open_json, seal_json},
};
use crate::tail::GenerationId;

/// Shares by generation.
pub(super) const ACCOUNTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("accounts");

/// What a row of it is.
const ACCOUNT: &str = "an account";

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
        let key = generation.0.as_str();
        let share = accounts.remove(key)?.map(|row| open_json(key, row.value(), ACCOUNT));
        if let Some(share) = share {
            add(&mut accounts, GONE, &share?)?;
        }
    }
    Ok(())
}

fn add(accounts: &mut Table<'_, &str, &[u8]>, key: &str, share: &Share) -> Result<(), redb::Error> {
    let known = accounts.get(key)?.map(|row| open_json::<Share>(key, row.value(), ACCOUNT));
    let mut sum = known.transpose()?.unwrap_or_default();
    sum += *share;
    accounts.insert(key, seal_json(key, &sum).as_slice())?;
    Ok(())
}

impl Outbox {
    /// Where the bytes went: of each generation that is there, and under `None` of all that are
    /// gone.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a row in it is damaged.
    pub fn accounts(&self) -> Result<Vec<(Option<GenerationId>, Share)>, OutboxError> {
        self.read("read", |transaction| {
            let mut all = Vec::new();
            for row in transaction.open_table(ACCOUNTS)?.iter()? {
                let (key, row) = row?;
                let key = key.value();
                let share = open_json(key, row.value(), ACCOUNT)?;
                all.push(((key != GONE).then(|| GenerationId(key.to_owned())), share));
            }
            Ok(all)
        })
    }
}
