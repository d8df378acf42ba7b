//! Compaction of the store's file.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::PoisonError,
    thread,
    time::Duration,
};

use redb::{CompactionError, Database};

use super::{Outbox, OutboxError};

impl Outbox {
    /// Compacts the file if a backlog has drained or has become much smaller; `now` is the agent's
    /// uptime. Waits for readers and writers.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing is lost, and the next call tries again.
    pub fn shrink(&self, now: Duration) -> Result<(), OutboxError> {
        let size = || fs::metadata(&self.path).map_or(0, |file| file.len());
        let (before, stored) = (size(), self.stored_bytes());
        if !self.file().is_oversized(before, stored, now) {
            return Ok(());
        }
        self.compact()?;
        let after = size();
        self.file().compacted = Some((now, after));
        tracing::info!(before, now = after, stored, "compacted the outbox file");
        Ok(())
    }

    /// Moves the pages of the store together and truncates the file.
    pub(super) fn compact(&self) -> Result<(), OutboxError> {
        // Locked meanwhile, so that no transaction starts.
        let _state = self.state();
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = database.as_mut() else { return Ok(()) };
        let done = catch_unwind(AssertUnwindSafe(|| compact_without_readers(open)));
        let failure = match done {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(CompactionError::Storage(failure))) => {
                self.store_error("compact", failure.into())
            }
            Ok(Err(other)) => {
                self.store_error("compact", redb::Error::Io(io::Error::other(other.to_string())))
            }
            Err(_) => self.damaged("redb panicked on a page"),
        };
        // A handle that has failed to compact must not be used again.
        let database = database.take();
        drop(catch_unwind(AssertUnwindSafe(|| drop(database))));
        Err(failure)
    }
}

/// Compacts a database in which no transaction can start, once the snapshots from before are dropped.
fn compact_without_readers(database: &mut Database) -> Result<bool, CompactionError> {
    /// A snapshot is kept for as long as one batch is read.
    const PAUSE: Duration = Duration::from_millis(1);

    loop {
        match database.compact() {
            Err(CompactionError::TransactionInProgress) => thread::sleep(PAUSE),
            done => return done,
        }
    }
}
