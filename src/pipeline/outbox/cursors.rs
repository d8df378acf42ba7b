//! Delivery progress of the sinks.
//!
//! An acknowledgement takes effect in memory at once, and is stored with the next write: usually
//! with entries that arrive meanwhile, so that it costs no sync of its own. A crash before that
//! repeats a batch, which the receiver recognises.

use std::sync::{MutexGuard, PoisonError};

use siem_protocol::ChainPoint;

use super::{
    super::group::Group,
    Outbox, OutboxError, SinkRegistration,
    append::append_group,
    cursor_rows::{self, Ack, Acks, delete_blocks, read_cursors, slowest},
    rows::Cursor,
    tables::CURSORS,
};

/// Sink that has a cursor but is not registered. Entries that it has not acknowledged are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrphanedSink {
    /// Instance name of the sink.
    pub name: String,
    /// Last sequence number that it acknowledged.
    pub acknowledged: u64,
    /// Number of entries that it has not acknowledged.
    pub undelivered: u64,
}

impl Outbox {
    /// Returns the progress of `sink`.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn cursor(&self, sink: &str) -> Result<Cursor, OutboxError> {
        self.snapshot()?.cursor(sink)
    }

    /// Returns the progress of `sink`; `None` if it has no cursor.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn known_cursor(&self, sink: &str) -> Result<Option<Cursor>, OutboxError> {
        self.snapshot()?.known_cursor(sink)
    }

    /// Returns the sinks that have a cursor and are not registered.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn orphaned_sinks(&self) -> Result<Vec<OrphanedSink>, OutboxError> {
        let last_seq = self.state().next_seq - 1;
        let cursors =
            self.read("read", |transaction| read_cursors(&transaction.open_table(CURSORS)?))?;
        let registrations = self.registrations().clone();
        let is_registered =
            |name: &String| registrations.iter().any(|registration| registration.name == *name);
        let orphaned = cursors.into_iter().filter(|(name, _)| !is_registered(name));
        Ok(orphaned
            .map(|(name, cursor)| {
                let acknowledged = cursor.acknowledged.seq;
                let undelivered = last_seq.saturating_sub(acknowledged);
                OrphanedSink { name, acknowledged, undelivered }
            })
            .collect())
    }

    /// Deletes a sink's cursor and appends the group that reports it, in one transaction. Entries
    /// that only this sink had not acknowledged are deleted; if it was the last sink, all entries
    /// are kept for the next one. The group holds only events.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed.
    pub fn forget_sink(&self, sink: &str, group: &Group) -> Result<(), OutboxError> {
        self.pending_acks().remove(sink);
        self.write("remove a sink from", |transaction, state| {
            let mut cursors = transaction.open_table(CURSORS)?;
            cursors.remove(sink)?;
            if let Some(slowest) = slowest(&read_cursors(&cursors)?) {
                delete_blocks(transaction, state, slowest)?;
            }
            append_group(transaction, state, group)
        })
    }

    /// Moves `sink`'s cursor to `point` of `epoch`. `refusals` is the number of permanent refusals
    /// since the last delivered entry. A point of an epoch that has ended changes nothing.
    ///
    /// Never waits for the disk: the cursor is stored, and entries that every sink has acknowledged
    /// are deleted, with the next write or by [`Outbox::persist_acks`]. Returns whether an earlier
    /// acknowledgement of the sink was still waiting for that.
    pub fn advance(&self, sink: &str, epoch: &str, point: ChainPoint, refusals: u32) -> bool {
        self.advance_with_receipt(sink, epoch, point, refusals, None)
    }

    /// Moves `sink`'s cursor as [`Outbox::advance`] does. With `receipt`, the note of the receiver is
    /// stored in the same transaction.
    pub fn advance_with_receipt(
        &self,
        sink: &str,
        epoch: &str,
        point: ChainPoint,
        refusals: u32,
        receipt: Option<String>,
    ) -> bool {
        let mut pending = self.pending_acks();
        let before = pending.remove(sink);
        let is_pending = before.is_some();
        let before = before.filter(|ack| ack.epoch == epoch).and_then(|ack| ack.receipt);
        let receipt = receipt.or(before);
        pending.insert(sink.to_owned(), Ack { epoch: epoch.to_owned(), point, refusals, receipt });
        drop(pending);
        self.count_sent(sink, epoch, point.seq);
        is_pending
    }

    /// Moves `sink`'s cursor and stores it.
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

    /// Stores acknowledgements that no other write has stored yet.
    ///
    /// # Errors
    /// [`OutboxError`]: they stay in effect and are stored with the next write.
    pub fn persist_acks(&self) -> Result<(), OutboxError> {
        if self.pending_acks().is_empty() {
            return Ok(());
        }
        self.write("store acknowledgements in", |_, _| Ok(Ok(())))
    }

    /// Removes stored acknowledgements from the pending ones; newer ones stay.
    pub(super) fn clear_persisted_acks(&self, persisted: &Acks) {
        self.pending_acks().retain(|sink, ack| persisted.get(sink) != Some(ack));
    }

    pub(super) fn pending_acks(&self) -> MutexGuard<'_, Acks> {
        self.pending_acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers the sinks that entries are kept for, as [`Outbox::open`] does. Cursors of other
    /// sinks stay until [`Outbox::forget_sink`].
    ///
    /// # Errors
    /// [`OutboxError`]; the sinks registered before stay registered.
    pub fn register_sinks(&self, sinks: &[SinkRegistration]) -> Result<(), OutboxError> {
        self.write("register sinks in", |transaction, state| {
            cursor_rows::register(transaction, state, sinks)?;
            Ok(Ok(()))
        })?;
        *self.registrations() = sinks.to_vec();
        Ok(())
    }

    pub(super) fn registrations(&self) -> MutexGuard<'_, Vec<SinkRegistration>> {
        self.registrations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the registered sink that is behind the others; `None` when all are at the same
    /// position.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn slowest_sink(&self) -> Result<Option<String>, OutboxError> {
        let registrations: Vec<SinkRegistration> = self.registrations().clone();
        let mut positions = Vec::with_capacity(registrations.len());
        for SinkRegistration { name, .. } in &registrations {
            positions.push((self.cursor(name)?.acknowledged.seq, name));
        }
        let fastest = positions.iter().map(|(seq, _)| *seq).max();
        let slowest = positions.into_iter().min().filter(|(seq, _)| Some(*seq) < fastest);
        Ok(slowest.map(|(_, name)| name.clone()))
    }
}
