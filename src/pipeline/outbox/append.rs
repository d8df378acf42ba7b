//! Appending groups: entries, checkpoints and byte accounts in one transaction.

use redb::WriteTransaction;

use super::{
    super::group::Group,
    Outbox, OutboxError, block,
    block_hashes::store_block_hashes,
    byte_accounts::add_shares,
    checkpoints::open_checkpoint,
    checksum::{protect, protect_json},
    rows::OutboxState,
    tables::{BLOCKS, CHECKPOINTS, DROPPED_PARTS},
};
use crate::{
    frame::Frame,
    tail::{self, GenerationId},
};

/// Checkpoint rows with which generations started.
type StartedRows<'a> = Vec<(&'a (String, GenerationId), &'a Vec<u8>)>;

impl Outbox {
    /// Appends the group's entries and moves its checkpoints, in one transaction.
    ///
    /// After `Ok` a crash loses nothing; after `Err` nothing has changed.
    ///
    /// # Errors
    /// [`OutboxError`]: the caller rolls back and tries again later.
    pub fn commit(&self, group: &Group) -> Result<(), OutboxError> {
        let mut started = Vec::new();
        self.write("append to", |transaction, state| {
            started = store_checkpoints(transaction, group)?;
            store_block_hashes(transaction, group)?;
            store_dropped_parts(transaction, group)?;
            add_shares(transaction, group)?;
            append_group(transaction, state, group)
        })?;
        let mut backup = self.backup();
        backup.mark_changed(group.checkpoints.keys());
        backup.record_started(&self.epoch(), &started);
        Ok(())
    }
}

/// Stores the group's checkpoint rows. Returns those of generations that had no row with a start
/// before.
fn store_checkpoints<'a>(
    transaction: &WriteTransaction,
    group: &'a Group,
) -> Result<StartedRows<'a>, redb::Error> {
    let mut started = Vec::new();
    let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
    for (key, row) in &group.checkpoints {
        let at = (key.0.as_str(), key.1.0.as_str());
        let Some(row) = row else {
            checkpoints.remove(at)?;
            continue;
        };
        let before = checkpoints.insert(at, protect(at, row).as_slice())?;
        let before = before.and_then(|row| open_checkpoint(at, row.value()).ok());
        if !before.is_some_and(|row| tail::has_starting_row(&row)) {
            started.push((key, row));
        }
    }
    Ok(started)
}

fn store_dropped_parts(transaction: &WriteTransaction, group: &Group) -> Result<(), redb::Error> {
    if group.dropped_parts.is_empty() {
        return Ok(());
    }
    let mut dropped = transaction.open_table(DROPPED_PARTS)?;
    for (generation, row) in &group.dropped_parts {
        let key = generation.0.as_str();
        match row {
            Some(row) => dropped.insert(key, protect_json(key, row).as_slice())?,
            None => dropped.remove(key)?,
        };
    }
    Ok(())
}

/// Appends the group's entries and updates the state; the inner error refuses a stale group.
pub(super) fn append_group(
    transaction: &WriteTransaction,
    state: &mut OutboxState,
    group: &Group,
) -> Result<Result<(), OutboxError>, redb::Error> {
    let expected = (state.epoch.as_str(), state.next_seq);
    let found = (group.start.epoch.as_str(), group.start.seq);
    if found != expected {
        // A new epoch may have the same next number, but its totals are others.
        let place = |(epoch, seq): (&str, u64)| format!("{epoch}:{seq}");
        let (found, expected) = (place(found), place(expected));
        return Ok(Err(OutboxError::Stale { found, expected }));
    }
    append_frames(transaction, state, &group.frames)?;
    if !group.frames.is_empty() {
        state.creation = None;
        state.unreported.clear();
    }
    state.totals = group.totals.clone();
    state.groups += 1;
    Ok(Ok(()))
}

fn append_frames(
    transaction: &WriteTransaction,
    state: &mut OutboxState,
    frames: &[Frame],
) -> Result<(), redb::Error> {
    let mut blocks = transaction.open_table(BLOCKS)?;
    for run in block::runs(frames) {
        let block = block::encode(run);
        state.stored += block.len() as u64;
        state.appended += block.len() as u64;
        blocks.insert(run[0].head.first_seq, block.as_slice())?;
    }
    for Frame { head, .. } in frames {
        (state.next_seq, state.chain) = (head.last_seq() + 1, head.after);
        if head.urgent {
            state.urgent_seq = head.last_seq();
        }
    }
    Ok(())
}
