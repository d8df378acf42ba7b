//! The outbox: opening it, and its current state.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, RwLock, atomic::AtomicBool},
};

use redb::{Database, WriteTransaction};
use siem_protocol::agent_event::DeadLetterTotals;
use tokio::sync::watch;

use super::{
    super::group::GroupStart,
    OutboxError, SinkRegistration,
    backlog::Backlog,
    backup_file::BackupFile,
    cursor_rows::{self, Acks},
    migrate,
    rows::OutboxState,
    store_file::{Opener, StoreFile, file_opener},
    tables::{self, StoreFormat},
};
use crate::platform::{Timestamp, free_space};

/// Durable queue of entries with the checkpoints of their files.
///
/// Shared by the writer and the sinks' tasks. Most calls block for the disk: do not call them on
/// the network's threads.
pub struct Outbox {
    /// `None` after an error: redb refuses every write on a handle that has failed once.
    pub(super) database: RwLock<Option<Database>>,
    pub(super) opener: Opener,
    pub(super) format: StoreFormat,
    pub(super) path: PathBuf,
    pub(super) file: Mutex<StoreFile>,
    pub(super) registrations: Mutex<Vec<SinkRegistration>>,
    /// True if the store existed before it was opened.
    pub(super) existed: bool,
    pub(super) state: Mutex<OutboxState>,
    pub(super) backup: Mutex<BackupFile>,
    /// Acknowledgements that are not stored yet.
    pub(super) pending_acks: Mutex<Acks>,
    pub(super) backlog: Mutex<Backlog>,
    /// Called after each acknowledgement.
    pub(super) acknowledged: OnceLock<Box<dyn Fn() + Send + Sync>>,
    pub(super) head: watch::Sender<Head>,
    /// True if the store has turned out to be damaged.
    pub(super) damage: watch::Sender<bool>,
    pub(super) is_closed: AtomicBool,
}

/// End of the outbox, for whose changes the sinks' tasks wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Sequence number of the last entry.
    pub last_seq: u64,
    /// The entries that were appended last.
    pub last_group: LastGroup,
    /// Sequence number of the last entry that must be sent without delay; 0 for none.
    pub urgent_seq: u64,
    /// Sequence number of the last entry up to which a batch is sent although it is not full, since
    /// reading waits for its delivery; 0 for none. Not stored.
    pub due_seq: u64,
    /// Time at which the current epoch replaced another; 0 if it is the first.
    pub renumbered_at: Timestamp,
}

/// The group that was appended last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastGroup {
    /// Sequence number of the last entry before it.
    pub after_seq: u64,
    /// Bytes that it occupies in the store.
    pub bytes: u64,
}

impl LastGroup {
    /// Returns true if the group is small enough to be read where nothing may wait.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.bytes <= 16 << 10
    }
}

/// Reason for opening the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenReason {
    Start,
    AfterError,
}

impl Outbox {
    /// Opens the outbox at `path`, or creates it with the epoch that `new_epoch` returns, and
    /// registers `sinks`. Sinks that are no longer registered keep their cursors, see
    /// [`Outbox::forget_sink`].
    ///
    /// # Errors
    /// [`OutboxError`]; the file is then unchanged.
    #[cfg(any(test, feature = "internals"))]
    pub fn open(
        path: &Path,
        sinks: &[SinkRegistration],
        new_epoch: impl FnOnce() -> String,
    ) -> Result<Self, OutboxError> {
        Self::open_with(path, file_opener(path), sinks, new_epoch)
    }

    /// Opens an existing outbox at `path` for inspection; `None` when nothing was ever stored. Then
    /// nothing is written either: the agent would find a store, and would not restore the
    /// acknowledged checkpoints of a lost one from their copy.
    ///
    /// # Errors
    /// [`OutboxError`]; the file is then unchanged.
    pub fn open_existing(path: &Path) -> Result<Option<Self>, OutboxError> {
        let outbox = Self::unopened(path, file_opener(path), &[], String::new());
        let exists = outbox.reopen(&mut outbox.state(), OpenReason::Start)?;
        exists.then(|| outbox.initialize(exists, |_, _| Ok(()))).transpose()
    }

    /// Opens a store with `opener`; `path` is used only in messages.
    #[cfg(any(test, feature = "internals"))]
    pub(in crate::pipeline) fn open_with(
        path: &Path,
        opener: Opener,
        sinks: &[SinkRegistration],
        new_epoch: impl FnOnce() -> String,
    ) -> Result<Self, OutboxError> {
        Self::open_or_fill(path, opener, sinks, new_epoch, |_, state| {
            state.creation =
                Some(super::rows::CreationReport { previous_epoch: None, damage: None });
            Ok(())
        })
    }

    /// Opens a store with `opener`; `fill` writes the initial contents of a new one.
    pub(super) fn open_or_fill(
        path: &Path,
        opener: Opener,
        sinks: &[SinkRegistration],
        new_epoch: impl FnOnce() -> String,
        fill: impl FnOnce(&WriteTransaction, &mut OutboxState) -> Result<(), redb::Error>,
    ) -> Result<Self, OutboxError> {
        let outbox = Self::unopened(path, opener, sinks, new_epoch());
        let existed = outbox.reopen(&mut outbox.state(), OpenReason::Start)?;
        outbox.initialize(existed, fill)
    }

    /// Opens the outbox as an agent whose stores have the layout `format`.
    #[cfg(test)]
    pub(super) fn open_in_format(
        path: &Path,
        sinks: &[SinkRegistration],
        format: StoreFormat,
    ) -> Result<Self, OutboxError> {
        let mut outbox = Self::unopened(path, file_opener(path), sinks, "epoch-1".to_owned());
        outbox.format = format;
        let existed = outbox.reopen(&mut outbox.state(), OpenReason::Start)?;
        outbox.initialize(existed, |_, _| Ok(()))
    }

    fn unopened(path: &Path, opener: Opener, sinks: &[SinkRegistration], epoch: String) -> Self {
        Self {
            database: RwLock::new(None),
            opener,
            format: StoreFormat::CURRENT,
            path: path.to_owned(),
            file: Mutex::default(),
            registrations: Mutex::new(sinks.to_vec()),
            existed: false,
            state: Mutex::new(OutboxState::new(epoch)),
            backup: Mutex::new(BackupFile::beside(path)),
            pending_acks: Mutex::default(),
            backlog: Mutex::default(),
            acknowledged: OnceLock::new(),
            head: watch::Sender::default(),
            damage: watch::Sender::default(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Migrates an older store, creates missing tables, registers the sinks, and fills a new store,
    /// all in one transaction: a kill in between must not leave a store without its contents.
    fn initialize(
        mut self,
        existed: bool,
        fill: impl FnOnce(&WriteTransaction, &mut OutboxState) -> Result<(), redb::Error>,
    ) -> Result<Self, OutboxError> {
        self.existed = existed;
        let format = self.format;
        self.write("open", |transaction, state| {
            if state.schema <= migrate::LAST_WITHOUT_CHECKSUMS {
                migrate::protect_rows(transaction)?;
            }
            state.migrate_to(format);
            tables::create_all(transaction)?;
            cursor_rows::register(transaction, state, &self.registrations())?;
            if !existed {
                fill(transaction, state)?;
            }
            Ok(Ok(()))
        })?;
        Ok(self)
    }

    /// Name of the current epoch.
    #[must_use]
    pub fn epoch(&self) -> String {
        self.state().epoch.clone()
    }

    /// Position at which the next group starts.
    #[must_use]
    pub fn end(&self) -> GroupStart {
        let state = self.state();
        GroupStart {
            epoch: state.epoch.clone(),
            seq: state.next_seq,
            chain: state.chain,
            totals: state.totals.clone(),
        }
    }

    /// Number of groups that were appended. After a failed commit it shows whether the group was
    /// stored nevertheless.
    #[must_use]
    pub fn group_count(&self) -> u64 {
        self.state().groups
    }

    /// Entries that each sink has refused permanently since the start of the epoch.
    #[must_use]
    pub fn dead_lettered(&self) -> BTreeMap<String, DeadLetterTotals> {
        self.state().dead_lettered.clone()
    }

    /// Total size of the stored blocks, in bytes.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.state().stored
    }

    /// Free bytes on the outbox's disk, if the system reports them.
    #[must_use]
    pub fn free_space(&self) -> Option<u64> {
        free_space(self.path.parent()?)
    }

    /// Makes the entries that are stored due for delivery.
    pub fn make_due(&self) {
        self.head.send_if_modified(|head| {
            std::mem::replace(&mut head.due_seq, head.last_seq) != head.last_seq
        });
    }

    /// Notifies of every change of the outbox's end.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }
}
