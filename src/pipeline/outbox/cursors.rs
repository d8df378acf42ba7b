//! Where each sink is in the outbox, and what may leave it.
//!
//! What a sink acknowledges counts at once, and is stored with whatever is written next: with the
//! entries that come while others are on their way, which costs no sync of its own. A crash before
//! that sends a batch again, which the receiver knows.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use redb::{ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};
use siem_protocol::ChainPoint;

use super::{
    BLOCKS, CURSORS, Group, Outbox, OutboxError, State, append_group, block,
    checksum::{open_json, seal_json},
};
use crate::config::Start;

/// A sink that is to have a place in the outbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkRegistration {
    /// Its instance's name.
    pub name: String,
    /// Where it delivers to; `None` when that is not known, and nothing can have moved.
    pub destination: Option<String>,
    /// Where it begins if it has no place yet.
    pub start: Start,
}

/// A sink that has a place in the outbox and is not configured: what it has not taken stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrphanedSink {
    /// Its instance's name.
    pub name: String,
    /// The last number that it acknowledged.
    pub acknowledged: u64,
    /// How many entries it has not taken.
    pub undelivered: u64,
}

/// How far a sink is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The epoch that counts.
    pub epoch: String,
    /// The last acknowledged number and the chain there.
    pub acknowledged: ChainPoint,
    /// Where a sink began that was added later; until its first acknowledgement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<ChainPoint>,
    /// The epoch before this one; until its first acknowledgement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_epoch: Option<String>,
    /// Where it delivers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Entries refused for good since the last one that was taken: a receiver that refuses
    /// everything must not get ten more of them after each restart.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refusals: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What sinks have acknowledged, as long as it is not stored.
pub(super) type PendingAcks = Mutex<Acks>;

/// The last acknowledgement of each sink.
pub(super) type Acks = BTreeMap<String, Ack>;

/// A sink's acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) epoch: String,
    pub(super) point: ChainPoint,
    refusals: u32,
}

impl Ack {
    /// Where a sink is then; nowhere else when this is of an epoch that has ended.
    fn moves(self, cursor: Cursor) -> Cursor {
        if self.epoch != cursor.epoch {
            return cursor;
        }
        Cursor {
            acknowledged: self.point,
            base: None,
            previous_epoch: None,
            refusals: self.refusals,
            ..cursor
        }
    }
}

impl Outbox {
    /// How far `sink` is.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn cursor(&self, sink: &str) -> Result<Cursor, OutboxError> {
        // Taken first: what is stored meanwhile only says the same.
        let ahead = self.pending_acks().get(sink).cloned();
        let cursor = self.read("read", |transaction| {
            let row = transaction.open_table(CURSORS)?.get(sink)?;
            row.map(|row| open_cursor(sink, row.value())).transpose()
        })?;
        let cursor = cursor.ok_or_else(|| self.damaged("a cursor is gone"))?;
        Ok(match ahead {
            Some(ahead) => ahead.moves(cursor),
            None => cursor,
        })
    }

    /// The sinks that have a place and are not among those that it was given to last.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn orphaned_sinks(&self) -> Result<Vec<OrphanedSink>, OutboxError> {
        let last_seq = self.state().next_seq - 1;
        let cursors =
            self.read("read", |transaction| read_cursors(&transaction.open_table(CURSORS)?))?;
        let registrations = self.registrations().clone();
        let is_seated =
            |name: &String| registrations.iter().any(|register_sinks| register_sinks.name == *name);
        let removed = cursors.into_iter().filter(|(name, _)| !is_seated(name));
        Ok(removed
            .map(|(name, cursor)| {
                let acknowledged = cursor.acknowledged.seq;
                OrphanedSink {
                    name,
                    acknowledged,
                    undelivered: last_seq.saturating_sub(acknowledged),
                }
            })
            .collect())
    }

    /// Takes a sink's place away and appends the group that tells of it, in one transaction. What
    /// only this sink had not taken is deleted; without any other sink everything stays, for the
    /// next that comes. There is nothing but events in the group.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed.
    pub fn forget_sink(&self, sink: &str, group: &Group) -> Result<(), OutboxError> {
        self.pending_acks().remove(sink);
        self.write("take a sink's place away in", |transaction, state| {
            let mut cursors = transaction.open_table(CURSORS)?;
            cursors.remove(sink)?;
            let left = read_cursors(&cursors)?;
            if let Some(slowest) = left.iter().map(|(_, it)| it.acknowledged.seq).min() {
                delete_blocks(transaction, state, slowest)?;
            }
            append_group(transaction, state, group)
        })
    }

    /// Moves `sink`'s cursor to `point` of `epoch`, where so many entries were refused for good
    /// since the last one that was taken. A point of an epoch that has ended changes nothing.
    ///
    /// Never waits for the disk. What every sink has acknowledged is deleted with whatever is
    /// written next; [`Outbox::persist_acks`] writes when nothing else does. Says whether the one before it
    /// still waits for that.
    pub fn advance(&self, sink: &str, epoch: &str, point: ChainPoint, refusals: u32) -> bool {
        let acknowledged = Ack { epoch: epoch.to_owned(), point, refusals };
        self.pending_acks().insert(sink.to_owned(), acknowledged).is_some()
    }

    /// Moves `sink`'s cursor, and stores that.
    #[cfg(test)]
    pub(crate) fn acknowledge(
        &self,
        sink: &str,
        epoch: &str,
        point: ChainPoint,
    ) -> Result<(), OutboxError> {
        self.advance(sink, epoch, point, 0);
        self.persist_acks()
    }

    /// Stores what was acknowledged, if that has not happened by the way.
    ///
    /// # Errors
    /// [`OutboxError`]: it still counts, and is stored with what is written next.
    pub fn persist_acks(&self) -> Result<(), OutboxError> {
        if self.pending_acks().is_empty() {
            return Ok(());
        }
        self.write("acknowledge entries of", |_, _| Ok(Ok(())))
    }

    /// Moves cursors to what was acknowledged, in a transaction that may be there for more.
    pub(super) fn persist_acks_within(
        &self,
        transaction: &WriteTransaction,
        state: &mut State,
    ) -> Result<Acks, redb::Error> {
        let acks = self.pending_acks().clone();
        if acks.is_empty() {
            return Ok(acks);
        }
        let mut cursors = transaction.open_table(CURSORS)?;
        for (sink, acknowledged) in &acks {
            let sink = sink.as_str();
            let known = cursors.get(sink)?.map(|row| open_cursor(sink, row.value()));
            if let Some(cursor) = known.transpose()? {
                let cursor = acknowledged.clone().moves(cursor);
                cursors.insert(sink, seal_json(sink, &cursor).as_slice())?;
            }
        }
        let slowest = read_cursors(&cursors)?.iter().map(|(_, it)| it.acknowledged.seq).min();
        delete_blocks(transaction, state, slowest.unwrap_or_default())?;
        Ok(acks)
    }

    /// What was acknowledged is stored, unless a sink has acknowledged more meanwhile.
    pub(super) fn clear_persisted_acks(&self, acks: &Acks) {
        self.pending_acks().retain(|sink, acknowledged| acks.get(sink) != Some(acknowledged));
    }

    pub(super) fn pending_acks(&self) -> MutexGuard<'_, Acks> {
        self.pending_acks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All cursors, by sink.
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
    open_json(sink, row, "a cursor")
}

impl Outbox {
    /// Gives places to these sinks, as opening does. Others keep theirs until they are forgotten.
    ///
    /// # Errors
    /// [`OutboxError`]; those that had places still have them.
    pub fn register_sinks(&self, sinks: &[SinkRegistration]) -> Result<(), OutboxError> {
        self.write("change the sinks of", |transaction, state| {
            register_cursors(transaction, state, sinks)?;
            Ok(Ok(()))
        })?;
        *self.registrations() = sinks.to_vec();
        Ok(())
    }

    pub(super) fn registrations(&self) -> MutexGuard<'_, Vec<SinkRegistration>> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sink that is behind the others, if they are not all at the same place.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn slowest_sink(&self) -> Result<Option<String>, OutboxError> {
        let registrations: Vec<SinkRegistration> = self.registrations().clone();
        let mut places = Vec::with_capacity(registrations.len());
        for SinkRegistration { name, .. } in &registrations {
            places.push((self.cursor(name)?.acknowledged.seq, name));
        }
        let fastest = places.iter().map(|(seq, _)| *seq).max();
        let slowest = places.into_iter().min().filter(|(seq, _)| Some(*seq) < fastest);
        Ok(slowest.map(|(_, name)| name.clone()))
    }
}

/// Gives every sink a cursor. Those of sinks that are no more stay, and hold what these have not
/// taken: who has left one out by mistake loses nothing.
pub(super) fn register_cursors(
    transaction: &WriteTransaction,
    state: &mut State,
    sinks: &[SinkRegistration],
) -> Result<(), redb::Error> {
    if sinks.is_empty() {
        return Ok(());
    }
    let mut cursors = transaction.open_table(CURSORS)?;
    let oldest = begin(transaction, state)?;
    for SinkRegistration { name, destination, start } in sinks {
        let known = cursors.get(name.as_str())?.map(|row| open_cursor(name, row.value()));
        let cursor = match known.transpose()? {
            Some(cursor) => moved(cursor, destination.as_ref()),
            None => {
                let begin = match start {
                    Start::Oldest => oldest,
                    Start::Now => end(state),
                };
                Cursor {
                    epoch: state.epoch.clone(),
                    acknowledged: begin,
                    base: (begin.seq > 0).then_some(begin),
                    previous_epoch: None,
                    destination: destination.clone(),
                    refusals: 0,
                }
            }
        };
        cursors.insert(name.as_str(), seal_json(name.as_str(), &cursor).as_slice())?;
    }
    let slowest = read_cursors(&cursors)?.iter().map(|(_, it)| it.acknowledged.seq).min();
    delete_blocks(transaction, state, slowest.unwrap_or_default())
}

/// A sink that delivers elsewhere now says where it begins: the receiver there may know nothing.
fn moved(cursor: Cursor, destination: Option<&String>) -> Cursor {
    let known = cursor.destination.as_ref();
    let is_moved = known.zip(destination).is_some_and(|(from, to)| from != to);
    let point = cursor.acknowledged;
    let base = if is_moved && point.seq > 0 { Some(point) } else { cursor.base };
    let destination = destination.or(known).cloned();
    Cursor { base, destination, ..cursor }
}

/// The point before the first entry that is still there.
fn begin(transaction: &WriteTransaction, state: &State) -> Result<ChainPoint, redb::Error> {
    let values = transaction.open_table(BLOCKS)?;
    let first = values.first()?.and_then(|(_, value)| {
        let head = block::decode(value.value())?.next()?.0;
        Some(ChainPoint { seq: head.first_seq - 1, hash: head.before })
    });
    Ok(first.unwrap_or(end(state)))
}

/// The point after the last entry.
fn end(state: &State) -> ChainPoint {
    ChainPoint { seq: state.next_seq - 1, hash: state.chain }
}

/// Deletes the values that end at or before `seq`.
pub(super) fn delete_blocks(
    transaction: &WriteTransaction,
    state: &mut State,
    seq: u64,
) -> Result<(), redb::Error> {
    let mut values = transaction.open_table(BLOCKS)?;
    loop {
        // A value ends where the next one begins.
        let end = {
            let mut two = values.iter()?;
            let Some(first) = two.next().transpose()? else { return Ok(()) };
            let next = two.next().transpose()?.map_or(state.next_seq, |(key, _)| key.value());
            if next > seq.saturating_add(1) {
                return Ok(());
            }
            first.0.value()
        };
        if let Some(value) = values.remove(end)? {
            state.stored = state.stored.saturating_sub(value.value().len() as u64);
        }
    }
}
