//! The handle on the store: opened anew after an error, one transaction at a time.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{MutexGuard, PoisonError, RwLockReadGuard, atomic::Ordering},
};

use redb::{
    Builder, CompactionError, Database, Durability, ReadableDatabase as _, WriteTransaction,
};
use serde::Deserialize;
use tokio::sync::watch;

use super::{Head, META, Outbox, OutboxError, SCHEMA, STATE, State, from_json, json, migrate};

/// A file of this size that holds nothing is made smaller.
const OVERSIZED: u64 = 16 << 20;

const CACHE: usize = 8 << 20;

/// How a store is opened.
pub(in crate::pipeline) fn builder() -> Builder {
    let mut builder = Builder::new();
    // Without the check, redb trusts a file that was closed in order, and panics on damage.
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder
}

/// Whether the store was open before, in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    First,
    Again,
}

impl Outbox {
    pub(super) fn read<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, OutboxError> {
        if self.database().is_none() {
            self.reopen(&mut self.state(), Opened::Again)?;
        }
        let read = || match &*self.database() {
            Some(database) => database.begin_read().map_err(redb::Error::from).and_then(work),
            None => Err(redb::Error::DatabaseClosed),
        };
        self.contained(read)?.map_err(|source| self.failed(action, source))
    }

    /// Runs `work` in one synced transaction. Its inner error, as its outer one, changes nothing.
    pub(super) fn write(
        &self,
        action: &'static str,
        work: impl FnOnce(&WriteTransaction, &mut State) -> Result<Result<(), OutboxError>, redb::Error>,
    ) -> Result<(), OutboxError> {
        // Held over the transaction: state and store change together.
        let mut current = self.state();
        if self.database().is_none() {
            self.reopen(&mut current, Opened::Again)?;
        }
        let mut state = current.clone();
        let commit = || {
            let database = self.database();
            let mut transaction =
                database.as_ref().ok_or(redb::Error::DatabaseClosed)?.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            if let Err(error) = work(&transaction, &mut state)? {
                return Ok(Err(error));
            }
            transaction.open_table(META)?.insert(STATE, json(&state).as_slice())?;
            transaction.commit()?;
            Ok(Ok(()))
        };
        self.contained(commit)?.map_err(|source| self.failed(action, source))??;
        self.replace(&mut current, state);
        Ok(())
    }

    /// Runs `work` on the store. A panic in there is damage: pages are read as they lie on the
    /// disk, and what makes no sense in them is not always found in time.
    fn contained<T>(&self, work: impl FnOnce() -> T) -> Result<T, OutboxError> {
        let done = catch_unwind(AssertUnwindSafe(work));
        done.map_err(|_| {
            self.let_go();
            self.damaged("a page of it")
        })
    }

    /// Drops the handle, unless somebody else is at it, who is done soon: then the next one does.
    fn let_go(&self) {
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
        opened_before: Opened,
    ) -> Result<bool, OutboxError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(self.store("open", redb::Error::DatabaseClosed));
        }
        if database.is_some() {
            return Ok(true);
        }
        let open = || {
            let opened = (self.opener)()?;
            let row = match opened.begin_read()?.open_table(META) {
                Ok(meta) => meta.get(STATE)?.map(|row| row.value().to_vec()),
                // A store that was never written.
                Err(redb::TableError::TableDoesNotExist(_)) => None,
                Err(error) => return Err(error.into()),
            };
            Ok((opened, row))
        };
        let opened: Result<_, redb::Error> = open();
        let (opened, row) = opened.map_err(|source| self.store("open", source))?;
        let was_found = row.is_some();
        if !was_found && opened_before == Opened::Again {
            // Emptied while it was closed. Going on would count on without what was in it.
            return Err(self.damaged("it is empty"));
        }
        if let Some(row) = row {
            let state = self.state_of(&row)?;
            self.replace(current, state);
        }
        *database = Some(opened);
        Ok(was_found)
    }

    /// Reads the state, its schema first: a newer one may hold anything else.
    fn state_of(&self, row: &[u8]) -> Result<State, OutboxError> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let Some(Schema { schema: found }) = from_json(row) else {
            return Err(self.damaged("its state"));
        };
        let state = match found {
            1 => migrate::from_1(row),
            SCHEMA => from_json(row),
            0 => None,
            newer => return Err(OutboxError::Newer { path: self.path.clone(), found: newer }),
        };
        state.ok_or_else(|| self.damaged("its state"))
    }

    fn replace(&self, current: &mut State, state: State) {
        let head = Head { last_seq: state.next_seq - 1, urgent_seq: state.urgent_seq };
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

    fn failed(&self, action: &'static str, source: redb::Error) -> OutboxError {
        // The next call opens it anew.
        self.let_go();
        self.store(action, source)
    }

    pub(super) fn store(&self, action: &'static str, source: redb::Error) -> OutboxError {
        let error =
            OutboxError::Store { action, path: self.path.clone(), source: Box::new(source) };
        self.look_for_damage(&error);
        error
    }

    pub(super) fn damaged(&self, what: &'static str) -> OutboxError {
        let error = OutboxError::Damaged { path: self.path.clone(), what };
        self.look_for_damage(&error);
        error
    }

    fn look_for_damage(&self, error: &OutboxError) {
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

    /// Makes the file small again after a backlog has drained. Waits for whoever reads or writes.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing is lost, and the next call tries again.
    pub fn shrink(&self) -> Result<(), OutboxError> {
        let current = self.state();
        let size = || std::fs::metadata(&self.path).map_or(0, |file| file.len());
        let before = size();
        if current.stored > 0 || before < OVERSIZED {
            return Ok(());
        }
        drop(current);
        self.compact()?;
        tracing::info!(before, now = size(), "the outbox is drained: its file was made smaller");
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
                self.store("shrink", redb::Error::Io(std::io::Error::other(other.to_string())))
            }
            Err(_) => self.damaged("a page of it"),
        };
        // A handle that has failed to compact is good for nothing any more.
        let database = database.take();
        drop(catch_unwind(AssertUnwindSafe(|| drop(database))));
        Err(failure)
    }
}
