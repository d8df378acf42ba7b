//! Transactions on the store, and reopening it after an error.

use std::{
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{MutexGuard, PoisonError, RwLockReadGuard, atomic::Ordering},
};

use redb::{Database, Durability, ReadableDatabase as _, WriteTransaction};
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    Head, LastGroup, Outbox, OutboxError,
    backlog::Backlog,
    checksum::{self, StateRow},
    cursor_rows::{Acks, apply_acks},
    migrate,
    rows::{OutboxState, from_json, to_json},
    store::OpenReason,
    store_file::StoreFile,
    tables::{META, STATE, STATE_CHECKSUM},
};
use crate::platform::file;

impl Outbox {
    /// Runs `work` in a read transaction.
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

    /// Stores pending acknowledgements and runs `work`, in one synced transaction. If `work`
    /// returns an outer or an inner error, nothing changes.
    pub(super) fn write(
        &self,
        action: &'static str,
        work: impl FnOnce(
            &WriteTransaction,
            &mut OutboxState,
        ) -> Result<Result<(), OutboxError>, redb::Error>,
    ) -> Result<(), OutboxError> {
        // Locked during the whole transaction: the state in memory and the stored one change
        // together.
        let mut current = self.state();
        if self.database().is_none() {
            self.reopen(&mut current, OpenReason::AfterError)?;
        }
        let mut state = current.clone();
        let mut acks = Acks::default();
        let commit = || {
            let database = self.database();
            let database = database.as_ref().ok_or(redb::Error::DatabaseClosed)?;
            // Dropped after the commit. While the state before is being read, redb leaves the pages that
            // the commit frees to the next one, and saves a second pass over its tables.
            let _reader = database.begin_read()?;
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            acks = self.pending_acks().clone();
            apply_acks(&transaction, &mut state, &acks)?;
            if let Err(error) = work(&transaction, &mut state)? {
                return Ok(Err(error));
            }
            store_state(&transaction, &state)?;
            transaction.commit()?;
            Ok(Ok(()))
        };
        self.catch_damage(commit)?.map_err(|source| self.failed(action, source))??;
        self.set_state(&mut current, state);
        self.clear_persisted_acks(&acks);
        Ok(())
    }

    /// Runs `work` on the store. A panic in it counts as damage: redb reads pages as they are on
    /// the disk, and does not detect every invalid one before it uses it.
    pub(super) fn catch_damage<T>(&self, work: impl FnOnce() -> T) -> Result<T, OutboxError> {
        let done = catch_unwind(AssertUnwindSafe(work));
        done.map_err(|_| {
            self.close_handle();
            self.damaged("redb panicked on a page")
        })
    }

    /// Drops the handle, unless another thread uses it: then that thread's call fails and drops it. Reads
    /// of a snapshot fail afterwards.
    fn close_handle(&self) {
        if let Ok(mut database) = self.database.try_write() {
            let database = database.take();
            drop(catch_unwind(AssertUnwindSafe(|| drop(database))));
        }
    }

    /// Opens the store and loads its state: after an error it is unknown whether the failed
    /// transaction was stored.
    ///
    /// Returns whether there was a state: a store that was never written has none.
    pub(super) fn reopen(
        &self,
        current: &mut OutboxState,
        reason: OpenReason,
    ) -> Result<bool, OutboxError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(self.store_error("open", redb::Error::DatabaseClosed));
        }
        if database.is_some() {
            return Ok(true);
        }
        let opened = self.open_database();
        let (opened, row) = opened.map_err(|source| self.store_error("open", source))?;
        let existed = row.is_some();
        if !existed && reason == OpenReason::AfterError {
            // The file was emptied while it was closed. New entries would continue the numbers of
            // entries that are lost.
            return Err(self.damaged("the file is empty"));
        }
        if let Some(row) = row {
            let state = self.parse_state(&row)?;
            self.set_state(current, state);
        }
        *database = Some(opened);
        Ok(existed)
    }

    /// Opens the database; also returns the state row.
    fn open_database(&self) -> Result<(Database, Option<StateRow>), redb::Error> {
        let (opened, id) = (self.opener)()?;
        self.file().id = id;
        let row = match opened.begin_read()?.open_table(META) {
            Ok(meta) => checksum::read_state(&meta)?,
            // A store that was never written.
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(error.into()),
        };
        Ok((opened, row))
    }

    /// Parses the state row, the schema version first: a newer schema that this one cannot use may have any
    /// other members.
    fn parse_state(&self, row: &StateRow) -> Result<OutboxState, OutboxError> {
        #[derive(Deserialize)]
        struct SchemaOnly {
            schema: u32,
            readable_from: Option<u32>,
        }
        const INVALID: &str = "the state row is invalid";

        let Some(SchemaOnly { schema: found, readable_from }) = from_json(&row.json) else {
            return Err(self.damaged(INVALID));
        };
        let state = match found {
            0 => None,
            1 => migrate::state_from_1(&row.json),
            migrate::LAST_WITHOUT_CHECKSUMS => from_json(&row.json),
            found if found <= self.format.schema => {
                row.has_checksum.then(|| from_json(&row.json)).flatten()
            }
            newer => {
                let is_readable = readable_from.is_some_and(|from| from <= self.format.schema);
                let state = (is_readable && row.has_checksum).then(|| from_json(&row.json));
                let refused = || OutboxError::Newer { path: self.path.clone(), found: newer };
                return state.flatten().ok_or_else(refused);
            }
        };
        state.ok_or_else(|| self.damaged(INVALID))
    }

    fn set_state(&self, current: &mut OutboxState, state: OutboxState) {
        let last_seq = state.next_seq - 1;
        self.backlog().update(&state.epoch, last_seq, state.appended, state.stored);
        let is_same_epoch = state.renumbered_at == current.renumbered_at;
        let known = *self.head.borrow();
        let due_seq = if is_same_epoch { known.due_seq } else { 0 };
        let last_group = match (is_same_epoch, last_seq > known.last_seq) {
            (true, false) => known.last_group,
            (true, true) => {
                // Unknown after the store was opened again.
                let bytes = state.appended.checked_sub(current.appended).filter(|it| *it > 0);
                LastGroup { after_seq: known.last_seq, bytes: bytes.unwrap_or(u64::MAX) }
            }
            (false, _) => LastGroup { after_seq: last_seq, bytes: u64::MAX },
        };
        let head = Head {
            last_seq,
            last_group,
            due_seq,
            urgent_seq: state.urgent_seq,
            renumbered_at: state.renumbered_at,
        };
        *current = state;
        self.head.send_if_modified(|known| mem::replace(known, head) != head);
    }

    fn database(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, OutboxState> {
        // A panic within a transaction does not affect the state: it is replaced after the commit.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn file(&self) -> MutexGuard<'_, StoreFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that the open file is still at the store's path. Otherwise everything written to it
    /// is lost when the process ends, so the store is treated like a damaged one.
    ///
    /// # Errors
    /// [`OutboxError::Misplaced`].
    pub fn check_file(&self) -> Result<(), OutboxError> {
        let Some(open) = self.file().id else { return Ok(()) };
        let what = match file::inspect(&self.path) {
            Ok(info) if info.stamp.id.is_none_or(|id| id == open) => return Ok(()),
            Ok(_) => "was replaced by another",
            Err(error) if error.kind() == io::ErrorKind::NotFound => "was deleted or moved",
            // Unknown: the file may well be there.
            Err(_) => return Ok(()),
        };
        let error = OutboxError::Misplaced { path: self.path.clone(), what };
        self.flag_damage(&error);
        Err(error)
    }

    pub(super) fn failed(&self, action: &'static str, source: redb::Error) -> OutboxError {
        // The next call reopens it.
        self.close_handle();
        self.store_error(action, source)
    }

    pub(super) fn store_error(&self, action: &'static str, source: redb::Error) -> OutboxError {
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

    /// Notifies when the store turns out to be damaged. It must then be closed, and opened again
    /// with [`Outbox::open_or_recover`].
    #[must_use]
    pub fn watch_damage(&self) -> watch::Receiver<bool> {
        self.damage.subscribe()
    }

    /// Closes the store, also for other owners of this value, so that the file can be opened again.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn store_state(transaction: &WriteTransaction, state: &OutboxState) -> Result<(), redb::Error> {
    let row = to_json(state);
    let mut meta = transaction.open_table(META)?;
    meta.insert(STATE_CHECKSUM, checksum::state_checksum(&row).as_slice())?;
    meta.insert(STATE, row.as_slice())?;
    Ok(())
}
