//! Accounts of the bytes of each file, updated in the transaction that moves its checkpoint.
//!
//! There is one row for each generation with a checkpoint, and one for all generations that have
//! ended. Their sum equals the totals of the epoch.

use redb::{ReadableTable as _, Table, WriteTransaction};

use super::{
    super::{accounting::Share, group::Group},
    checksum::{protect_json, verify_json},
    tables::ACCOUNTS,
};
#[cfg(test)]
use super::{Outbox, OutboxError};
use crate::tail::GenerationId;

/// Name of a row in errors.
const ACCOUNT: &str = "a byte account";

/// Key of the row for all generations that have ended.
const ENDED: &str = "";

/// Adds the group's shares, and moves those of generations that end with it to the common row.
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
        let share = accounts.remove(key)?.map(|row| verify_json(key, row.value(), ACCOUNT));
        if let Some(share) = share {
            add(&mut accounts, ENDED, &share?)?;
        }
    }
    Ok(())
}

fn add(accounts: &mut Table<'_, &str, &[u8]>, key: &str, share: &Share) -> Result<(), redb::Error> {
    let known = accounts.get(key)?.map(|row| verify_json::<Share>(key, row.value(), ACCOUNT));
    let mut sum = known.transpose()?.unwrap_or_default();
    sum += *share;
    accounts.insert(key, protect_json(key, &sum).as_slice())?;
    Ok(())
}

#[cfg(test)]
impl Outbox {
    /// Returns the account of each generation with a checkpoint, and under `None` the account of
    /// all generations that have ended.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a row in it is damaged.
    pub fn accounts(&self) -> Result<Vec<(Option<GenerationId>, Share)>, OutboxError> {
        self.read("read", |transaction| {
            let mut all = Vec::new();
            for row in transaction.open_table(ACCOUNTS)?.iter()? {
                let (key, row) = row?;
                let key = key.value();
                let share = verify_json(key, row.value(), ACCOUNT)?;
                all.push(((key != ENDED).then(|| GenerationId(key.to_owned())), share));
            }
            Ok(all)
        })
    }
}
