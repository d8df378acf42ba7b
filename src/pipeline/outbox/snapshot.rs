//! Reads of one state of the store, for delivery.

use redb::ReadableDatabase as _;

use super::{
    Head, Outbox, OutboxError,
    cursor_rows::{Acks, open_cursor},
    rows::Cursor,
    tables::CURSORS,
};

/// The store as of one commit: what is read from it belongs together. Keep it for a short time only,
/// since the pages that it needs cannot be used again meanwhile.
pub struct Snapshot<'a> {
    pub(super) outbox: &'a Outbox,
    transaction: redb::ReadTransaction,
    /// End of the outbox, or an earlier one.
    head: Head,
    acks: Acks,
}

impl Outbox {
    /// Returns the current state of the store.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot<'_>, OutboxError> {
        let (head, acks) = self.before_snapshot();
        let transaction = self.read("read", Ok)?;
        Ok(Snapshot { outbox: self, transaction, head, acks })
    }

    /// Returns the current state of the store if that does not wait for another thread or the disk;
    /// then [`snapshot`](Self::snapshot) returns it, or the reason.
    pub fn snapshot_now(&self) -> Option<Snapshot<'_>> {
        let (head, acks) = self.before_snapshot();
        let database = self.database.try_read().ok()?;
        let transaction = database.as_ref()?.begin_read().ok()?;
        Some(Snapshot { outbox: self, transaction, head, acks })
    }

    /// Returns what must be read before the transaction starts: an acknowledgement that is stored in
    /// between is only applied twice.
    fn before_snapshot(&self) -> (Head, Acks) {
        (*self.head.borrow(), self.pending_acks().clone())
    }
}

impl Snapshot<'_> {
    /// Returns the end of the outbox. There may be more entries.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// Returns the progress of `sink`.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn cursor(&self, sink: &str) -> Result<Cursor, OutboxError> {
        self.known_cursor(sink)?.ok_or_else(|| self.outbox.damaged("a cursor is missing"))
    }

    /// Returns the progress of `sink`; `None` if it has no cursor.
    pub(super) fn known_cursor(&self, sink: &str) -> Result<Option<Cursor>, OutboxError> {
        let cursor = self.read(|transaction| {
            let row = transaction.open_table(CURSORS)?.get(sink)?;
            row.map(|row| open_cursor(sink, row.value())).transpose()
        })?;
        Ok(match (cursor, self.acks.get(sink)) {
            (Some(cursor), Some(ack)) => Some(ack.clone().apply_to(cursor)),
            (cursor, _) => cursor,
        })
    }

    /// Runs `work` in the transaction.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, OutboxError> {
        let read = self.outbox.catch_damage(|| work(&self.transaction))?;
        read.map_err(|source| match source {
            // Another thread has closed the handle, and there may be a new one by now.
            redb::Error::DatabaseClosed => self.outbox.store_error("read", source),
            source => self.outbox.failed("read", source),
        })
    }
}
