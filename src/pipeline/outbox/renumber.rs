//! Start of a new epoch: unacknowledged entries are renumbered from 1.
//!
//! A store that was restored from a copy reuses sequence numbers that the receiver already holds
//! with other entries. The receiver reports the conflict, and the remaining entries get numbers in
//! a new epoch. Another device key starts one too, see [`Outbox::start_epoch_for_device`].

use std::{mem, time::Duration};

use redb::{ReadableTable as _, WriteTransaction};
use siem_protocol::{
    AgentEvent, ChainPoint, Digest,
    agent_event::{EpochReason, EpochStarted},
};

use super::{
    super::accounting::Totals,
    Cursor, Outbox, OutboxError, block,
    checksum::protect_json,
    cursor_rows::{read_cursors, slowest},
    dead_letters::revert_unreported,
    rows::OutboxState,
    tables::{ACCOUNTS, BLOCKS, CURSORS},
    unreported::UnreportedEvent,
};
use crate::{
    frame::{Encoder, Frame},
    platform::Timestamp,
};

/// Shortest time between two new epochs: a receiver that always reports a conflict must not cause
/// one with every batch.
const MIN_INTERVAL: Duration = Duration::from_secs(3600);

/// Result of [`Outbox::renumber`].
#[derive(Clone, Debug, PartialEq)]
pub enum RenumberOutcome {
    /// A new epoch has started. The event has the final totals of the one before, which no heartbeat may
    /// ever report; it is one of [`Outbox::unreported_events`] until an entry is stored.
    Started(Box<EpochStarted>),
    /// Another sink has already started a new epoch.
    AlreadyDone,
    /// The last new epoch started less than an hour ago.
    TooSoon,
}

/// Cursors by sink.
type Cursors = Vec<(String, Cursor)>;

impl Outbox {
    /// Ends `epoch` and starts `new` in its place, in one transaction: every entry that some sink
    /// has not acknowledged gets a new number, unreported dead letters become ordinary entries, and
    /// each cursor keeps its position.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed.
    pub fn renumber(
        &self,
        epoch: &str,
        new: String,
        now: Timestamp,
    ) -> Result<RenumberOutcome, OutboxError> {
        let mut outcome = RenumberOutcome::AlreadyDone;
        self.write("renumber the entries of", |transaction, state| {
            if state.epoch != epoch {
                return Ok(Ok(()));
            }
            if is_too_soon(state, now) {
                outcome = RenumberOutcome::TooSoon;
                return Ok(Ok(()));
            }
            match start_epoch(transaction, state, new, EpochReason::Conflict, now)? {
                Ok(started) => outcome = RenumberOutcome::Started(Box::new(started)),
                Err(what) => return Ok(Err(self.damaged(what))),
            }
            Ok(Ok(()))
        })?;
        self.backup().invalidate();
        Ok(outcome)
    }
}

/// Starts the epoch `new` in place of the current one, and records the event that says so. Returns the
/// event, or a description of the damage.
pub(super) fn start_epoch(
    transaction: &WriteTransaction,
    state: &mut OutboxState,
    new: String,
    reason: EpochReason,
    now: Timestamp,
) -> Result<Result<EpochStarted, &'static str>, redb::Error> {
    let cursors = read_cursors(&transaction.open_table(CURSORS)?)?;
    let last_seq = state.next_seq - 1;
    let positions = match renumber_blocks(transaction, state, &cursors)? {
        Ok(positions) => positions,
        Err(what) => return Ok(Err(what)),
    };
    let previous = mem::replace(&mut state.epoch, new.clone());
    // Totals count for one epoch, and the remaining entries were counted in the old one.
    let totals = mem::replace(&mut state.totals, Totals::after(state.next_seq - 1));
    state.dead_lettered.clear();
    transaction.open_table(ACCOUNTS)?.retain(|_, _| false)?;
    revert_unreported(transaction, &previous, &cursors)?;
    move_cursors(transaction, &cursors, positions, &new)?;
    state.renumbered_at = now;
    let started = EpochStarted {
        epoch: new,
        previous_epoch: Some(previous),
        reason,
        entries: Some(state.next_seq - 1),
        previous_last_seq: Some(last_seq),
        previous_totals: Some(totals),
    };
    let event = AgentEvent::EpochStarted(Box::new(started.clone()));
    state.unreported.push(UnreportedEvent::from(event));
    Ok(Ok(started))
}

/// Returns true if the last new epoch started less than [`MIN_INTERVAL`] ago. If the clock was set
/// back, that is unknown and does not count.
fn is_too_soon(state: &OutboxState, now: Timestamp) -> bool {
    let is_first = state.renumbered_at == Timestamp::default();
    let is_known = !is_first && now >= state.renumbered_at;
    is_known && now - state.renumbered_at < MIN_INTERVAL
}

fn move_cursors(
    transaction: &WriteTransaction,
    cursors: &Cursors,
    positions: Vec<ChainPoint>,
    new: &str,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(CURSORS)?;
    for ((name, cursor), position) in cursors.iter().zip(positions) {
        let cursor = cursor.in_epoch(new, position);
        table.insert(name.as_str(), protect_json(name.as_str(), &cursor).as_slice())?;
    }
    Ok(())
}

/// Renumbers all entries after the slowest cursor from 1. Returns the position of each cursor in
/// the new epoch, or a description of the damage.
fn renumber_blocks(
    transaction: &WriteTransaction,
    state: &mut OutboxState,
    cursors: &Cursors,
) -> Result<Result<Vec<ChainPoint>, &'static str>, redb::Error> {
    let slowest = slowest(cursors).unwrap_or(state.next_seq - 1);
    let mut at = ChainPoint { seq: 0, hash: Digest::ZERO };
    let mut positions = vec![at; cursors.len()];
    let mut blocks = transaction.open_table(BLOCKS)?;
    let keys: Vec<u64> =
        blocks.iter()?.map(|row| Ok(row?.0.value())).collect::<Result<_, redb::StorageError>>()?;
    state.stored = 0;
    state.urgent_seq = state.urgent_seq.saturating_sub(slowest);
    // New numbers are never above the old ones, so no block is overwritten before it is read.
    for key in keys {
        let old: Vec<Frame> = {
            let Some(old) = blocks.remove(key)? else { continue };
            let Some(frames) = block::decode(old.value()) else {
                return Ok(Err("a block cannot be decoded"));
            };
            frames.map(|(head, body)| Frame { head, body: body.to_vec() }).collect()
        };
        let mut frames = Vec::with_capacity(old.len());
        for frame in old.iter().filter(|frame| frame.head.last_seq() > slowest) {
            let mut encoder = Encoder::new(frame.head.codec);
            let visit = |point: ChainPoint| {
                for (position, (_, cursor)) in positions.iter_mut().zip(cursors) {
                    if cursor.acknowledged.seq == slowest + point.seq {
                        *position = point;
                    }
                }
            };
            let Ok(new) = frame.renumbered(slowest, at, &mut encoder, visit) else {
                return Ok(Err("a frame cannot be decoded"));
            };
            at = ChainPoint { seq: new.head.last_seq(), hash: new.head.after };
            frames.push(new);
        }
        if let Some(first) = frames.first() {
            let block = block::encode(&frames);
            state.stored += block.len() as u64;
            blocks.insert(first.head.first_seq, block.as_slice())?;
        }
    }
    state.next_seq = at.seq + 1;
    state.chain = at.hash;
    Ok(Ok(positions))
}
