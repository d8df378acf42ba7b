//! Cursor rows within a transaction: registering sinks, storing acknowledgements, and deleting
//! entries that every sink has acknowledged.

use std::collections::BTreeMap;

use redb::{ReadableTable, WriteTransaction};
use siem_protocol::ChainPoint;

use super::{
    block,
    checksum::{protect_json, verify_json},
    rows::{Cursor, OutboxState},
    tables::{BLOCKS, CURSORS},
};
use crate::config::Start;

/// Sink that entries are kept for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkRegistration {
    /// Instance name of the sink.
    pub name: String,
    /// Destination of the sink; `None` when it is unknown, which never counts as a change.
    pub destination: Option<String>,
    /// Position at which a sink without a cursor starts.
    pub start: Start,
}

/// Last acknowledgement of each sink.
pub(super) type Acks = BTreeMap<String, Ack>;

/// Acknowledgement of a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) epoch: String,
    pub(super) point: ChainPoint,
    pub(super) refusals: u32,
    /// Note of a receipt for the epoch; `None` keeps the one before.
    pub(super) receipt: Option<String>,
}

impl Ack {
    /// Moves the cursor; an acknowledgement from an epoch that has ended changes nothing.
    pub(super) fn apply_to(self, cursor: Cursor) -> Cursor {
        if self.epoch != cursor.epoch {
            return cursor;
        }
        Cursor {
            acknowledged: self.point,
            base: None,
            previous_epoch: None,
            refusals: self.refusals,
            receipt: self.receipt.or(cursor.receipt),
            ..cursor
        }
    }
}

/// Returns all cursors by sink.
pub(super) fn read_cursors(
    rows: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Vec<(String, Cursor)>, redb::Error> {
    let mut cursors = Vec::new();
    for row in rows.iter()? {
        let (sink, row) = row?;
        let cursor = open_cursor(sink.value(), row.value())?;
        cursors.push((sink.value().to_owned(), cursor));
    }
    Ok(cursors)
}

pub(super) fn open_cursor(sink: &str, row: &[u8]) -> Result<Cursor, redb::Error> {
    verify_json(sink, row, "a cursor")
}

/// Moves cursors to the acknowledgements and deletes blocks that are no longer needed.
pub(super) fn apply_acks(
    transaction: &WriteTransaction,
    state: &mut OutboxState,
    acks: &Acks,
) -> Result<(), redb::Error> {
    if acks.is_empty() {
        return Ok(());
    }
    let mut rows = transaction.open_table(CURSORS)?;
    let mut cursors = read_cursors(&rows)?;
    for (sink, cursor) in &mut cursors {
        if let Some(ack) = acks.get(sink) {
            *cursor = ack.clone().apply_to(cursor.clone());
            rows.insert(sink.as_str(), protect_json(sink.as_str(), cursor).as_slice())?;
        }
    }
    delete_blocks(transaction, state, slowest(&cursors).unwrap_or_default())
}

/// Gives every sink a cursor. Cursors of other sinks stay, and with them the entries that these
/// have not acknowledged: a sink that was left out by mistake loses nothing.
pub(super) fn register(
    transaction: &WriteTransaction,
    state: &mut OutboxState,
    sinks: &[SinkRegistration],
) -> Result<(), redb::Error> {
    if sinks.is_empty() {
        return Ok(());
    }
    let mut cursors = transaction.open_table(CURSORS)?;
    let oldest = point_before_first(transaction, state)?;
    for SinkRegistration { name, destination, start } in sinks {
        let known = cursors.get(name.as_str())?.map(|row| open_cursor(name, row.value()));
        let cursor = match known.transpose()? {
            Some(cursor) => with_destination(cursor, destination.as_ref()),
            None => {
                let start = match start {
                    Start::Oldest => oldest,
                    Start::Now => state.end(),
                };
                Cursor {
                    epoch: state.epoch.clone(),
                    acknowledged: start,
                    base: (start.seq > 0).then_some(start),
                    previous_epoch: None,
                    destination: destination.clone(),
                    refusals: 0,
                    receipt: None,
                    ended: Vec::new(),
                }
            }
        };
        cursors.insert(name.as_str(), protect_json(name.as_str(), &cursor).as_slice())?;
    }
    let slowest = slowest(&read_cursors(&cursors)?);
    delete_blocks(transaction, state, slowest.unwrap_or_default())
}

/// Sets the base of a sink whose destination has changed: the new receiver may have none of the
/// earlier entries.
fn with_destination(cursor: Cursor, destination: Option<&String>) -> Cursor {
    let known = cursor.destination.as_ref();
    let has_changed = known.zip(destination).is_some_and(|(from, to)| from != to);
    let point = cursor.acknowledged;
    let base = if has_changed && point.seq > 0 { Some(point) } else { cursor.base };
    let destination = destination.or(known).cloned();
    let cursor = Cursor { base, destination, ..cursor };
    // What the earlier receiver has stored says nothing about this one.
    if has_changed { Cursor { receipt: None, ended: Vec::new(), ..cursor } } else { cursor }
}

/// Point before the oldest stored entry.
fn point_before_first(
    transaction: &WriteTransaction,
    state: &OutboxState,
) -> Result<ChainPoint, redb::Error> {
    let blocks = transaction.open_table(BLOCKS)?;
    let first = blocks.first()?.and_then(|(_, block)| {
        let head = block::decode(block.value())?.next()?.0;
        Some(ChainPoint { seq: head.first_seq - 1, hash: head.before })
    });
    Ok(first.unwrap_or(state.end()))
}

/// Lowest acknowledged sequence number; `None` without any cursor.
pub(super) fn slowest(cursors: &[(String, Cursor)]) -> Option<u64> {
    cursors.iter().map(|(_, cursor)| cursor.acknowledged.seq).min()
}

/// Deletes the blocks that end at or before `seq`.
pub(super) fn delete_blocks(
    transaction: &WriteTransaction,
    state: &mut OutboxState,
    seq: u64,
) -> Result<(), redb::Error> {
    let mut blocks = transaction.open_table(BLOCKS)?;
    let end = seq.saturating_add(1);
    let last = blocks.range(..=end)?.next_back().transpose()?.map(|(key, _)| key.value());
    // A block ends where the next one starts, so only the last of these may end later.
    let Some(first_kept) = (if state.next_seq <= end { Some(end) } else { last }) else {
        return Ok(());
    };
    // Each block is read once: a page of redb is freed only after it was read.
    for deleted in blocks.extract_from_if(..first_kept, |_, _| true)? {
        let (_, block) = deleted?;
        state.stored = state.stored.saturating_sub(block.value().len() as u64);
    }
    Ok(())
}
