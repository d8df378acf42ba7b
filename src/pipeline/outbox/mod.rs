//! The durable queue of entries that are accepted and not yet acknowledged.
//!
//! One redb file. Entries, the checkpoints that cover them and the accounting of their bytes are
//! stored in one transaction, synced; nothing leaves before every sink has acknowledged it.
//! Nothing outside this module knows redb.

mod backup;
mod block;
mod byte_accounts;
mod checkpoints;
mod checksum;
mod cursors;
mod database;
mod dead_letters;
mod error;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
pub(super) mod io_error_tests;
mod migrate;
#[cfg(test)]
mod power_cuts;
mod recover;
mod renumber;
mod salvage;
#[cfg(test)]
pub(crate) mod simulated_disk;
mod stats;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    collections::BTreeMap,
    mem,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Mutex, RwLock, atomic::AtomicBool},
};

use backup::Backup;
use byte_accounts::{ACCOUNTS, add_shares};
use checkpoints::open_checkpoint;
use checksum::{seal, seal_json};
pub use cursors::{Cursor, OrphanedSink, SinkRegistration};
use cursors::{PendingAcks, read_cursors, register_cursors};
pub(super) use database::builder;
use database::{OpenReason, StoreFile};
use dead_letters::DEAD_LETTERS;
pub use dead_letters::{DeadLetter, DeadLetterId, DeadLetterTotals, Purged};
pub use error::OutboxError;
use recover::{CreationReport, InitialContents};
pub use recover::{OpenOutcome, RescuedDeadLetters};
use redb::{Database, StorageError, TableDefinition, WriteTransaction, backends::FileBackend};
pub use renumber::RenumberOutcome;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use siem_protocol::Digest;
pub use stats::{OutboxStats, SinkStats};
use tokio::sync::watch;
pub use verify::{Verified, VerifyError};

use super::{
    accounting::Totals,
    group::{Group, GroupStart},
};
use crate::{
    frame::{Frame, FrameHead},
    platform::{
        Timestamp,
        file::{self, FileId},
        free_space, secure_file,
    },
    tail,
};

/// Values by the first sequence number in them.
const BLOCKS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("values");
/// Rows of generations, by source and generation.
const CHECKPOINTS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("checkpoints");
/// Lines in parts that are dropped, by generation.
const DROPPED_PARTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("dropping");
/// How far each sink is.
const CURSORS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cursors");
/// What there is one of.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const STATE: &str = "state";
/// The layout of the tables. A store of a newer one is refused, untouched.
const SCHEMA: u32 = 3;

/// A durable queue of entries with the checkpoints of their files.
///
/// Shared by the writer and the sinks' tasks. Every call blocks for the disk: keep it off the
/// network's threads.
pub struct Outbox {
    /// Closed after an error: redb refuses every write on a handle that has seen one.
    database: RwLock<Option<Database>>,
    opener: Opener,
    path: PathBuf,
    file: Mutex<StoreFile>,
    sinks: Mutex<Vec<SinkRegistration>>,
    /// Whether the store was there before.
    was_found: bool,
    state: Mutex<State>,
    backup: Mutex<Backup>,
    /// What sinks have acknowledged since something was written last.
    pending_acks: PendingAcks,
    head: watch::Sender<Head>,
    /// Whether the store has turned out to be damaged.
    damage: watch::Sender<bool>,
    is_closed: AtomicBool,
}

/// Opens the store, at start and again after an error; says which file it is, if it is one.
pub(super) type Opener =
    Box<dyn Fn() -> Result<(Database, Option<FileId>), redb::DatabaseError> + Send + Sync>;

/// What the outbox is, as last committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    schema: u32,
    epoch: String,
    /// The number of the next entry.
    next_seq: u64,
    /// The chain after the last entry.
    chain: Digest,
    /// The last entry that must be sent at once.
    urgent_seq: u64,
    /// Bytes of all values.
    stored: u64,
    totals: Totals,
    /// What each sink refused for good.
    #[serde(default)]
    dead_lettered: BTreeMap<String, DeadLetterTotals>,
    /// Dead letters that had to go for others.
    #[serde(default)]
    purged: DeadLetterTotals,
    /// When the epoch began in place of another; 0 for an outbox's first.
    #[serde(default)]
    renumbered_at: Timestamp,
    /// How many groups were appended.
    #[serde(default)]
    groups: u64,
    /// How the outbox began, until that is among its entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    began: Option<CreationReport>,
}

/// How far the outbox has come: what the sinks' tasks wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The last entry's number.
    pub last_seq: u64,
    /// The last entry that must be sent at once; 0 for none.
    pub urgent_seq: u64,
    /// When the numbers began anew; 0 if they never did.
    pub renumbered_at: Timestamp,
}

impl Outbox {
    /// Opens the outbox at `path`, or begins a new one with the epoch that `new_epoch` names.
    /// New sinks begin as their registrations say. Those that are not in `sinks` keep their place, see
    /// [`Outbox::forget_sink`].
    ///
    /// # Errors
    /// [`OutboxError`]; the file is then untouched.
    pub fn open(
        path: &Path,
        sinks: &[SinkRegistration],
        new_epoch: impl FnOnce() -> String,
    ) -> Result<Self, OutboxError> {
        Self::open_with(path, file_opener(path), sinks, new_epoch)
    }

    /// Opens the outbox at `path` for somebody who only looks; none where nothing was ever stored,
    /// and then nothing is written: an agent would take it for its own, and not look for what is
    /// acknowledged in the copy that it has of a lost one.
    ///
    /// # Errors
    /// [`OutboxError`]; the file is then untouched.
    pub fn open_existing(path: &Path) -> Result<Option<Self>, OutboxError> {
        let outbox = Self::closed(path, file_opener(path), &[], String::new());
        let is_begun = outbox.reopen(&mut outbox.state(), OpenReason::Start)?;
        is_begun.then(|| outbox.initialize(is_begun, InitialContents::default)).transpose()
    }

    /// The same on a store that `opener` opens; `path` only names it.
    pub(super) fn open_with(
        path: &Path,
        opener: Opener,
        sinks: &[SinkRegistration],
        new_epoch: impl FnOnce() -> String,
    ) -> Result<Self, OutboxError> {
        Self::open_after(path, opener, sinks, new_epoch, InitialContents::default)
    }

    /// The same, where a new store begins as `beginning` says.
    fn open_after(
        path: &Path,
        opener: Opener,
        sinks: &[SinkRegistration],
        new_epoch: impl FnOnce() -> String,
        beginning: impl FnOnce() -> InitialContents,
    ) -> Result<Self, OutboxError> {
        let outbox = Self::closed(path, opener, sinks, new_epoch());
        let was_found = outbox.reopen(&mut outbox.state(), OpenReason::Start)?;
        outbox.initialize(was_found, beginning)
    }

    fn initialize(
        mut self,
        was_found: bool,
        beginning: impl FnOnce() -> InitialContents,
    ) -> Result<Self, OutboxError> {
        self.was_found = was_found;
        self.write("open", |transaction, state| {
            if mem::replace(&mut state.schema, SCHEMA) <= migrate::UNSEALED {
                migrate::seal_rows(transaction)?;
            }
            // Opening a table makes it: readers may rely on all of them.
            transaction.open_table(BLOCKS)?;
            transaction.open_table(CHECKPOINTS)?;
            transaction.open_table(DROPPED_PARTS)?;
            transaction.open_table(ACCOUNTS)?;
            transaction.open_table(DEAD_LETTERS)?;
            register_cursors(transaction, state, &self.registrations())?;
            if !was_found {
                // With all else, or a kill in between would leave a store that knows of nothing.
                beginning().write(transaction, state)?;
            }
            Ok(Ok(()))
        })?;
        Ok(self)
    }

    fn closed(path: &Path, opener: Opener, sinks: &[SinkRegistration], epoch: String) -> Self {
        let state = State {
            schema: SCHEMA,
            epoch,
            next_seq: 1,
            chain: Digest::ZERO,
            urgent_seq: 0,
            stored: 0,
            totals: Totals::default(),
            dead_lettered: BTreeMap::new(),
            purged: DeadLetterTotals::default(),
            renumbered_at: Timestamp::default(),
            groups: 0,
            began: None,
        };
        Self {
            database: RwLock::new(None),
            opener,
            path: path.to_owned(),
            file: Mutex::default(),
            sinks: Mutex::new(sinks.to_vec()),
            was_found: false,
            state: Mutex::new(state),
            backup: Mutex::new(Backup::beside(path)),
            pending_acks: PendingAcks::default(),
            head: watch::Sender::default(),
            damage: watch::Sender::default(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// The name of this outbox's count.
    #[must_use]
    pub fn epoch(&self) -> String {
        self.state().epoch.clone()
    }

    /// Where the next group begins.
    #[must_use]
    pub fn end(&self) -> GroupStart {
        let state = self.state();
        GroupStart { seq: state.next_seq, chain: state.chain, totals: state.totals.clone() }
    }

    /// How many groups were appended: whether one that failed is in the store after all.
    #[must_use]
    pub fn group_count(&self) -> u64 {
        self.state().groups
    }

    /// What each sink has refused for good since the epoch began.
    #[must_use]
    pub fn dead_lettered(&self) -> BTreeMap<String, DeadLetterTotals> {
        self.state().dead_lettered.clone()
    }

    /// Bytes that the entries take.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.state().stored
    }

    /// Bytes that are free on the outbox's disk, if the system says so.
    #[must_use]
    pub fn free_space(&self) -> Option<u64> {
        free_space(self.path.parent()?)
    }

    /// Follows how far the outbox has come.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// Appends the group's entries and moves its checkpoints, in one transaction.
    ///
    /// After `Ok` a crash loses nothing; after `Err` nothing has changed.
    ///
    /// # Errors
    /// [`OutboxError`]: the caller rolls back and tries again later.
    pub fn commit(&self, group: &Group) -> Result<(), OutboxError> {
        let mut begun = Vec::new();
        self.write("append to", |transaction, state| {
            let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
            for (key, row) in &group.checkpoints {
                let at = (key.0.as_str(), key.1.0.as_str());
                let Some(row) = row else {
                    checkpoints.remove(at)?;
                    continue;
                };
                let before = checkpoints.insert(at, seal(at, row).as_slice())?;
                let before = before.and_then(|row| open_checkpoint(at, row.value()).ok());
                if !before.is_some_and(|row| tail::has_beginning(&row)) {
                    begun.push((key, row));
                }
            }
            if !group.dropped_parts.is_empty() {
                let mut dropping = transaction.open_table(DROPPED_PARTS)?;
                for (generation, row) in &group.dropped_parts {
                    let key = generation.0.as_str();
                    match row {
                        Some(row) => dropping.insert(key, seal_json(key, row).as_slice())?,
                        None => dropping.remove(key)?,
                    };
                }
            }
            add_shares(transaction, group)?;
            append_group(transaction, state, group)
        })?;
        let mut backup = self.backup();
        backup.note(group.checkpoints.keys());
        backup.begin(&self.epoch(), &begun);
        Ok(())
    }

    /// Reads frames in order, beginning with the one that holds `seq`, as long as `want` takes
    /// their heads.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a value in it is damaged.
    pub fn frames(
        &self,
        seq: u64,
        mut want: impl FnMut(&FrameHead) -> ControlFlow<()>,
    ) -> Result<Vec<Frame>, OutboxError> {
        let mut frames = Vec::new();
        self.visit(seq, |head, body| {
            want(&head)?;
            frames.push(Frame { head, body: body.to_vec() });
            ControlFlow::Continue(())
        })?;
        Ok(frames)
    }

    /// Shows the heads of frames in order, beginning with the one that holds `seq`, until `visit`
    /// has enough. Nothing is checked that is not looked at: who believes them reads the frames.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a head in it is damaged.
    pub fn heads(
        &self,
        seq: u64,
        mut visit: impl FnMut(FrameHead) -> ControlFlow<()>,
    ) -> Result<(), OutboxError> {
        self.values(seq, |value| {
            let heads = block::heads(value)?.into_iter();
            let mut heads = heads.filter(|head| head.last_seq() >= seq);
            Some(heads.try_for_each(&mut visit))
        })
    }

    /// Shows frames in order, beginning with the one that holds `seq`, until `visit` has enough.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a value in it is damaged.
    pub fn visit(
        &self,
        seq: u64,
        mut visit: impl FnMut(FrameHead, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), OutboxError> {
        self.values(seq, |value| {
            let mut frames = block::decode(value)?.filter(|(head, _)| head.last_seq() >= seq);
            Some(frames.try_for_each(|(head, body)| visit(head, body)))
        })
    }

    /// Shows values in order, beginning with the one that may hold `seq`, until `visit` has
    /// enough; `None` says that one is damaged.
    fn values(
        &self,
        seq: u64,
        mut visit: impl FnMut(&[u8]) -> Option<ControlFlow<()>>,
    ) -> Result<(), OutboxError> {
        let whole = self.read("read", |transaction| {
            let values = transaction.open_table(BLOCKS)?;
            let holder = values.range(..=seq)?.next_back().transpose()?;
            let first = holder.map_or(seq, |(key, _)| key.value());
            for row in values.range(first..)? {
                match visit(row?.1.value()) {
                    Some(ControlFlow::Continue(())) => {}
                    Some(ControlFlow::Break(())) => return Ok(true),
                    None => return Ok(false),
                }
            }
            Ok(true)
        })?;
        if whole { Ok(()) } else { Err(self.damaged("a value")) }
    }
}

/// Appends the group's entries.
fn append_group(
    transaction: &WriteTransaction,
    state: &mut State,
    group: &Group,
) -> Result<Result<(), OutboxError>, redb::Error> {
    if group.start.seq != state.next_seq {
        let (found, expected) = (group.start.seq, state.next_seq);
        return Ok(Err(OutboxError::Stale { found, expected }));
    }
    append(transaction, state, &group.frames)?;
    if !group.frames.is_empty() {
        state.began = None;
    }
    state.totals = group.totals.clone();
    state.groups += 1;
    Ok(Ok(()))
}

/// Opens the store in the file at `path`.
fn file_opener(path: &Path) -> Opener {
    let file = path.to_owned();
    Box::new(move || {
        // Made here, where it is made for its owner only.
        let opened = secure_file::options().read(true).open(&file).map_err(StorageError::Io)?;
        let id = file::Stamp::of(&opened).map_err(StorageError::Io)?.id;
        Ok((builder().create_with_backend(FileBackend::new(opened)?)?, id))
    })
}

/// Appends frames to the values: the state ends with them then.
fn append(
    transaction: &WriteTransaction,
    state: &mut State,
    frames: &[Frame],
) -> Result<(), redb::Error> {
    let mut values = transaction.open_table(BLOCKS)?;
    for run in block::runs(frames) {
        let value = block::encode(run);
        state.stored += value.len() as u64;
        values.insert(run[0].head.first_seq, value.as_slice())?;
    }
    for Frame { head, .. } in frames {
        (state.next_seq, state.chain) = (head.last_seq() + 1, head.after);
        if head.urgent {
            state.urgent_seq = head.last_seq();
        }
    }
    Ok(())
}

fn json<T: Serialize>(row: &T) -> Vec<u8> {
    serde_json::to_vec(row).expect("rows can be written as JSON")
}

fn from_json<T: DeserializeOwned>(row: &[u8]) -> Option<T> {
    serde_json::from_slice(row).ok()
}
