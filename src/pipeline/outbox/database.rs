//! The handle on the store: opened anew after an error, one transaction at a time.

use std::{
    fs, io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{MutexGuard, PoisonError, RwLockReadGuard, atomic::Ordering},
    time::Duration,
};

use redb::{
    Builder, CompactionError, Database, Durability, ReadableDatabase as _, WriteTransaction,
};
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    Head, META, Outbox, OutboxError, SCHEMA, STATE, State, checksum, cursors::Acks, from_json,
    json, migrate,
};
use crate::platform::file::{self, FileId};

pub(super) const CACHE: usize = 6 << 20;

/// The file that the store lies in.
#[derive(Debug, Default)]
pub(super) struct StoreFile {
    /// Which one is open; none for a store in memory.
    id: Option<FileId>,
    /// When it was made smaller last, by the time that the agent is up, and how large it was then.
    compacted: Option<(Duration, u64)>,
}

impl StoreFile {
    /// Whether a file of `size` bytes is to be made smaller whose entries take `stored`.
    ///
    /// Nobody reads or writes meanwhile: with entries in it only when that gains much, moves
    /// little, and did not happen within the hour. What else is in it does not get less: it must
    /// have doubled since the last time.
    fn is_oversized(&self, size: u64, stored: u64, now: Duration) -> bool {
        const DRAINED: u64 = 16 << 20;
        const IN_USE: u64 = 64 << 20;
        const MOVED: u64 = 256 << 20;
        const REST: Duration = Duration::from_secs(3600);

        let has_grown = self.compacted.is_none_or(|(_, least)| size / 2 >= least);
        if stored == 0 {
            return size >= DRAINED && has_grown;
        }
        let has_rested = self.compacted.is_none_or(|(at, _)| now.saturating_sub(at) >= REST);
        size >= IN_USE && stored <= size / 4 && stored <= MOVED && has_grown && has_rested
    }
}

/// How a store is opened.
pub(in crate::pipeline) fn builder() -> Builder {
    let mut builder = Builder::new();
    // Without the check, redb trusts a file that was closed in order, and panics on damage.
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder
}

/// Whether the store was open before, in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenReason {
    Start,
    AfterError,
}

impl Outbox {
    pub(super) fn read<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, OutboxError> {
        if self.database().is_none() {
            self.reopen(&mut self.state(), OpenReason::AfterError)?;
        }
        let read = || match &*self.database() {
            Some(database) => database.begin_read().map_err(redb::Error::from).and_then(work),
            None => Err(redb::Error::DatabaseClosed),
        };
        self.catch_damage(read)?.map_err(|source| self.failed(action, source))
    }

    /// Runs `work` in one synced transaction, after what sinks have acknowledged. Its inner error, as its outer one, changes nothing.
    pub(super) fn write(
        &self,
        action: &'static str,
        work: impl FnOnce(&WriteTransaction, &mut State) -> Result<Result<(), OutboxError>, redb::Error>,
    ) -> Result<(), OutboxError> {
        // Held over the transaction: state and store change together.
        let mut current = self.state();
        if self.database().is_none() {
            self.reopen(&mut current, OpenReason::AfterError)?;
        }
        let mut state = current.clone();
        let mut acks = Acks::default();
        let commit = || {
            let database = self.database();
            let mut transaction =
                database.as_ref().ok_or(redb::Error::DatabaseClosed)?.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            acks = self.persist_acks_within(&transaction, &mut state)?;
            if let Err(error) = work(&transaction, &mut state)? {
                return Ok(Err(error));
            }
            let row = json(&state);
            let mut meta = transaction.open_table(META)?;
            meta.insert(checksum::SEAL, checksum::seal_of_state(&row).as_slice())?;
            meta.insert(STATE, row.as_slice())?;
            drop(meta);
            transaction.commit()?;
            Ok(Ok(()))
        };
        self.catch_damage(commit)?.map_err(|source| self.failed(action, source))??;
        self.replace(&mut current, state);
        self.clear_persisted_acks(&acks);
        Ok(())
    }

    /// Runs `work` on the store. A panic in there is damage: pages are read as they lie on the
    /// disk, and what makes no sense in them is not always found in time.
    fn catch_damage<T>(&self, work: impl FnOnce() -> T) -> Result<T, OutboxError> {
        let done = catch_unwind(AssertUnwindSafe(work));
        done.map_err(|_| {
            self.close_handle();
            self.damaged("a page of it")
        })
    }

    /// Drops the handle, unless somebody else is at it, who is done soon: then the next one does.
    fn close_handle(&self) {
        if let Ok(mut database) = self.database.try_write() {
            let database = database.take();
            drop(catch_unwind(AssertUnwindSafe(|| drop(database))));
        }
    }

    /// Opens the store and takes its state: after an error nobody knows whether the transaction
    /// that failed is in it.
    ///
    /// Says whether there was a state: a store that was never written has none.
    pub(super) fn reopen(
        &self,
        current: &mut State,
        opened_before: OpenReason,
    ) -> Result<bool, OutboxError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(self.store("open", redb::Error::DatabaseClosed));
        }
        if database.is_some() {
            return Ok(true);
        }
        let open = || {
            let (opened, id) = (self.opener)()?;
            self.file().id = id;
            let row = match opened.begin_read()?.open_table(META) {
                Ok(meta) => checksum::state(&meta)?,
                // A store that was never written.
                Err(redb::TableError::TableDoesNotExist(_)) => None,
                Err(error) => return Err(error.into()),
            };
            Ok((opened, row))
        };
        let opened: Result<_, redb::Error> = open();
        let (opened, row) = opened.map_err(|source| self.store("open", source))?;
        let was_found = row.is_some();
        if !was_found && opened_before == OpenReason::AfterError {
            // Emptied while it was closed. Going on would count on without what was in it.
            return Err(self.damaged("it is empty"));
        }
        if let Some((row, is_sealed)) = row {
            let state = self.state_of(&row, is_sealed)?;
            self.replace(current, state);
        }
        *database = Some(opened);
        Ok(was_found)
    }

    /// Reads the state, its schema first: a newer one may hold anything else.
    fn state_of(&self, row: &[u8], is_sealed: bool) -> Result<State, OutboxError> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let Some(Schema { schema: found }) = from_json(row) else {
            return Err(self.damaged("its state"));
        };
        let state = match found {
            1 => migrate::from_1(row),
            migrate::UNSEALED => from_json(row),
            SCHEMA if is_sealed => from_json(row),
            0 | SCHEMA => None,
            newer => return Err(OutboxError::Newer { path: self.path.clone(), found: newer }),
        };
        state.ok_or_else(|| self.damaged("its state"))
    }

    fn replace(&self, current: &mut State, state: State) {
        let head = Head {
            last_seq: state.next_seq - 1,
            urgent_seq: state.urgent_seq,
            renumbered_at: state.renumbered_at,
        };
        *current = state;
        self.head.send_if_modified(|known| mem::replace(known, head) != head);
    }

    fn database(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic in mid-transaction leaves the state as it was: it is replaced only at the end.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> MutexGuard<'_, StoreFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says when the file that is open lies at its path no more: what is written to it will be
    /// gone with this process. The store is done with then as if it were damaged.
    ///
    /// # Errors
    /// [`OutboxError::Misplaced`].
    pub fn check_file(&self) -> Result<(), OutboxError> {
        let Some(open) = self.file().id else { return Ok(()) };
        let what = match file::look(&self.path) {
            Ok(sight) if sight.stamp.id.is_none_or(|id| id == open) => return Ok(()),
            Ok(_) => "another lies in its place",
            Err(error) if error.kind() == io::ErrorKind::NotFound => "it was deleted or moved",
            // Nobody knows: it may well lie there.
            Err(_) => return Ok(()),
        };
        let error = OutboxError::Misplaced { path: self.path.clone(), what };
        self.flag_damage(&error);
        Err(error)
    }

    fn failed(&self, action: &'static str, source: redb::Error) -> OutboxError {
        // The next call opens it anew.
        self.close_handle();
        self.store(action, source)
    }

    pub(super) fn store(&self, action: &'static str, source: redb::Error) -> OutboxError {
        let error =
            OutboxError::Store { action, path: self.path.clone(), source: Box::new(source) };
        self.flag_damage(&error);
        error
    }

    pub(super) fn damaged(&self, what: &'static str) -> OutboxError {
        let error = OutboxError::Damaged { path: self.path.clone(), what };
        self.flag_damage(&error);
        error
    }

    fn flag_damage(&self, error: &OutboxError) {
        if error.is_damage() {
            self.damage.send_replace(true);
        }
    }

    /// Says when the store turns out to be damaged: it is to be closed then, and another opened
    /// with [`Outbox::open_or_recover`].
    #[must_use]
    pub fn watch_damage(&self) -> watch::Receiver<bool> {
        self.damage.subscribe()
    }

    /// Closes the store: whoever still holds it can't get at the file any more, so that it can be
    /// opened anew.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Makes the file small again after a backlog has drained, or has become much smaller, `now` by
    /// the time that the agent is up. Waits for whoever reads or writes.
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
        tracing::info!(before, now = after, stored, "the outbox's file was made smaller");
        Ok(())
    }

    /// Moves what is in the store together, and gives the rest back.
    pub(super) fn compact(&self) -> Result<(), OutboxError> {
        // Held over it: nobody writes meanwhile.
        let _state = self.state();
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = database.as_mut() else { return Ok(()) };
        let done = catch_unwind(AssertUnwindSafe(|| open.compact()));
        let failure = match done {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(CompactionError::Storage(failure))) => self.store("shrink", failure.into()),
            Ok(Err(other)) => {
                self.store("shrink", redb::Error::Io(io::Error::other(other.to_string())))
            }
            Err(_) => self.damaged("a page of it"),
        };
        // A handle that has failed to compact is good for nothing any more.
        let database = database.take();
        drop(catch_unwind(AssertUnwindSafe(|| drop(database))));
        Err(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn a_file_is_made_smaller_when_that_is_worth_the_wait_and_not_again_and_again() {
        let at = |minutes: u64| Duration::from_secs(60 * minutes);
        let never = StoreFile::default();
        let table = [
            ("drained", 16, 0, true),
            ("drained and small", 15, 0, false),
            ("a little in a large file", 64, 16, true),
            ("a little in a file that is not large", 63, 1, false),
            ("too much in it", 64, 17, false),
            ("too much to move", 10_000, 257, false),
        ];
        for (what, size, stored, expected) in table {
            assert_eq!(never.is_oversized(size * MB, stored * MB, at(0)), expected, "{what}");
        }
        let once = StoreFile { id: None, compacted: Some((at(100), 40 * MB)) };
        assert!(!once.is_oversized(80 * MB, MB, at(159)), "within the hour");
        assert!(once.is_oversized(80 * MB, MB, at(160)));
        assert!(!once.is_oversized(79 * MB, MB, at(500)), "as large as it must be");
        assert!(!once.is_oversized(79 * MB, 0, at(500)), "as large as it must be");
        assert!(once.is_oversized(80 * MB, 0, at(101)), "drained, and nobody waits");
    }
}
