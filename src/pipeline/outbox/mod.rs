//! The durable queue of entries that are accepted and not yet acknowledged.
//!
//! One redb file. Entries, the checkpoints that cover them and the accounting of their bytes are
//! stored in one transaction, synced; nothing leaves before every sink has acknowledged it.
//! Nothing outside this module knows redb.

mod accounts;
mod backup;
mod cursors;
mod dead_letters;
#[cfg(test)]
pub(crate) mod disk;
mod error;
#[cfg(test)]
pub(super) mod faults;
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod migrate;
#[cfg(test)]
mod power;
mod recover;
mod renumber;
#[cfg(test)]
mod tests;
mod value;

use std::{
    collections::{BTreeMap, HashMap},
    io, mem,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError, RwLock, atomic::AtomicBool},
};

use accounts::{ACCOUNTS, add_shares};
use backup::Backup;
pub use cursors::{Cursor, Seat};
use cursors::{drop_values, place_cursors};
use dead_letters::DEAD_LETTERS;
pub use dead_letters::{Buried, DeadLetter, DeadLetterId, Purged};
pub use error::OutboxError;
use handle::Opened;
pub(super) use handle::builder;
pub use recover::Found;
use recover::{Began, Beginning};
use redb::{Database, ReadableTable as _, TableDefinition, WriteTransaction};
pub use renumber::Renumbered;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use siem_protocol::{ChainPoint, Digest};
use tokio::sync::watch;

use super::{
    accounting::{Share, Totals},
    group::Dropping,
};
use crate::{
    frame::{Encoder, Frame, FrameHead},
    platform::{Timestamp, free_space, private},
    tail::GenerationId,
};

/// Values by the first sequence number in them.
const VALUES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("values");
/// Rows of generations, by source and generation.
const CHECKPOINTS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("checkpoints");
/// Lines in parts that are dropped, by generation.
const DROPPING: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("dropping");
/// How far each sink is.
const CURSORS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cursors");
/// What there is one of.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const STATE: &str = "state";
/// The layout of the tables. A store of a newer one is refused, untouched.
const SCHEMA: u32 = 2;

/// A durable queue of entries with the checkpoints of their files.
///
/// Shared by the writer and the sinks' tasks. Every call blocks for the disk: keep it off the
/// network's threads.
pub struct Outbox {
    /// Closed after an error: redb refuses every write on a handle that has seen one.
    database: RwLock<Option<Database>>,
    opener: Opener,
    path: PathBuf,
    sinks: Vec<Seat>,
    /// Sinks that had a cursor and are no more.
    removed: Mutex<Vec<String>>,
    /// Whether the store was there before.
    was_found: bool,
    state: Mutex<State>,
    backup: Mutex<Backup>,
    head: watch::Sender<Head>,
    /// Whether the store has turned out to be damaged.
    damage: watch::Sender<bool>,
    is_closed: AtomicBool,
}

/// Opens the store, at start and again after an error.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, redb::DatabaseError> + Send + Sync>;

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
    dead_lettered: BTreeMap<String, Buried>,
    /// Dead letters that had to go for others.
    #[serde(default)]
    purged: Buried,
    /// When the epoch began in place of another; 0 for an outbox's first.
    #[serde(default)]
    renumbered_at: Timestamp,
    /// How the outbox began, until that is among its entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    began: Option<Began>,
}

/// How far the outbox has come: what the sinks' tasks wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The last entry's number.
    pub last_seq: u64,
    /// The last entry that must be sent at once; 0 for none.
    pub urgent_seq: u64,
}

/// Where the next group begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The number of its first entry.
    pub seq: u64,
    /// The chain before it.
    pub chain: Digest,
    /// The totals before it.
    pub totals: Totals,
}

/// Entries with the checkpoints that cover them: stored together or not at all.
#[derive(Debug)]
pub struct Group {
    /// Where it begins: the outbox's end when it was begun.
    pub start: Start,
    /// The entries, in order and without gaps.
    pub frames: Vec<Frame>,
    /// New rows of generations by source; `None` removes a row.
    pub checkpoints: BTreeMap<(String, GenerationId), Option<Vec<u8>>>,
    /// Lines in parts that are dropped, by generation; `None` where none is any more.
    pub dropping: BTreeMap<GenerationId, Option<Dropping>>,
    /// What became of the bytes that were read, by generation.
    pub shares: BTreeMap<GenerationId, Share>,
    /// The totals after it.
    pub totals: Totals,
}

impl Group {
    /// Encodes its frames as `encoder` does.
    pub fn encode(&mut self, encoder: &mut Encoder) {
        self.frames.iter_mut().for_each(|frame| encoder.encode(frame));
    }
}

impl Outbox {
    /// Opens the outbox at `path`, or begins a new one with the epoch that `new_epoch` names.
    /// Cursors of sinks that are not in `sinks` are removed, new sinks begin at the first entry
    /// that is still there. Without any sinks all cursors stay: somebody only looks.
    ///
    /// # Errors
    /// [`OutboxError`]; the file is then untouched.
    pub fn open(
        path: &Path,
        sinks: &[Seat],
        new_epoch: impl FnOnce() -> String,
    ) -> Result<Self, OutboxError> {
        Self::open_with(path, file_opener(path), sinks, new_epoch)
    }

    /// The same on a store that `opener` opens; `path` only names it.
    pub(super) fn open_with(
        path: &Path,
        opener: Opener,
        sinks: &[Seat],
        new_epoch: impl FnOnce() -> String,
    ) -> Result<Self, OutboxError> {
        Self::open_after(path, opener, sinks, new_epoch, Beginning::default)
    }

    /// The same, where a new store begins as `beginning` says.
    fn open_after(
        path: &Path,
        opener: Opener,
        sinks: &[Seat],
        new_epoch: impl FnOnce() -> String,
        beginning: impl FnOnce() -> Beginning,
    ) -> Result<Self, OutboxError> {
        let state = State {
            schema: SCHEMA,
            epoch: new_epoch(),
            next_seq: 1,
            chain: Digest::ZERO,
            urgent_seq: 0,
            stored: 0,
            totals: Totals::default(),
            dead_lettered: BTreeMap::new(),
            purged: Buried::default(),
            renumbered_at: Timestamp::default(),
            began: None,
        };
        let mut outbox = Self {
            database: RwLock::new(None),
            opener,
            path: path.to_owned(),
            sinks: sinks.to_vec(),
            removed: Mutex::default(),
            was_found: false,
            state: Mutex::new(state),
            backup: Mutex::new(Backup::beside(path)),
            head: watch::Sender::default(),
            damage: watch::Sender::default(),
            is_closed: AtomicBool::new(false),
        };
        let was_found = outbox.reopen(&mut outbox.state(), Opened::First)?;
        outbox.was_found = was_found;
        outbox.write("open", |transaction, state| {
            state.schema = SCHEMA;
            // Opening a table makes it: readers may rely on all of them.
            transaction.open_table(VALUES)?;
            transaction.open_table(CHECKPOINTS)?;
            transaction.open_table(DROPPING)?;
            transaction.open_table(ACCOUNTS)?;
            transaction.open_table(DEAD_LETTERS)?;
            let Some(removed) = place_cursors(transaction, state, sinks)? else {
                return Ok(Err(outbox.damaged("a cursor")));
            };
            if !was_found {
                // With all else, or a kill in between would leave a store that knows of nothing.
                beginning().take_place(transaction, state)?;
            }
            *outbox.removed.lock().unwrap_or_else(PoisonError::into_inner) = removed;
            Ok(Ok(()))
        })?;
        Ok(outbox)
    }

    /// The name of this outbox's count.
    #[must_use]
    pub fn epoch(&self) -> String {
        self.state().epoch.clone()
    }

    /// Where the next group begins.
    #[must_use]
    pub fn end(&self) -> Start {
        let state = self.state();
        Start { seq: state.next_seq, chain: state.chain, totals: state.totals.clone() }
    }

    /// Sinks that had a place in the outbox and are no longer configured; each is said once.
    #[must_use]
    pub fn removed_sinks(&self) -> Vec<String> {
        mem::take(&mut self.removed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What each sink has refused for good since the epoch began.
    #[must_use]
    pub fn dead_lettered(&self) -> BTreeMap<String, Buried> {
        self.state().dead_lettered.clone()
    }

    /// Bytes that the entries take.
    #[must_use]
    pub fn stored(&self) -> u64 {
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
        self.write("append to", |transaction, state| {
            if group.start.seq != state.next_seq {
                let (found, expected) = (group.start.seq, state.next_seq);
                return Ok(Err(OutboxError::Stale { found, expected }));
            }
            append(transaction, state, &group.frames)?;
            {
                let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
                for ((source, generation), row) in &group.checkpoints {
                    let key = (source.as_str(), generation.0.as_str());
                    match row {
                        Some(row) => checkpoints.insert(key, row.as_slice())?,
                        None => checkpoints.remove(key)?,
                    };
                }
            }
            if !group.dropping.is_empty() {
                let mut dropping = transaction.open_table(DROPPING)?;
                for (generation, row) in &group.dropping {
                    match row {
                        Some(row) => {
                            dropping.insert(generation.0.as_str(), json(row).as_slice())?
                        }
                        None => dropping.remove(generation.0.as_str())?,
                    };
                }
            }
            add_shares(transaction, group)?;
            if !group.frames.is_empty() {
                state.began = None;
            }
            state.totals = group.totals.clone();
            Ok(Ok(()))
        })?;
        self.backup().note(group.checkpoints.keys());
        Ok(())
    }

    /// Copies the offsets that are acknowledged to `checkpoints.bak`, as far as they have changed.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or the copy cannot be written; the next call
    /// tries again.
    pub fn back_up(&self) -> Result<(), OutboxError> {
        // What a damaged store says must not take the place of what a good one said.
        if *self.damage.borrow() {
            return Ok(());
        }
        let mut backup = self.backup();
        if backup.pending().is_none() && !backup.is_due() {
            return Ok(());
        }
        self.read("copy the offsets of", |transaction| {
            // All of one moment: the offsets, and what is acknowledged.
            let state = transaction.open_table(META)?.get(STATE)?;
            let Some(state) = state.and_then(|row| from_json::<State>(row.value())) else {
                return Ok(());
            };
            let mut slowest = state.next_seq - 1;
            for row in transaction.open_table(CURSORS)?.iter()? {
                let Some(cursor) = from_json::<Cursor>(row?.1.value()) else { return Ok(()) };
                slowest = slowest.min(cursor.acknowledged.seq);
            }
            match backup.pending() {
                Some(seq) if seq > slowest => return Ok(()),
                Some(_) => backup.settle().map_err(io::Error::other)?,
                None => {}
            }
            if !backup.is_due() {
                return Ok(());
            }
            let checkpoints = transaction.open_table(CHECKPOINTS)?;
            let (epoch, seq) = (&state.epoch, state.next_seq - 1);
            if backup.wants_all() {
                let rows = checkpoints.iter()?.map(|row| {
                    let (key, row) = row?;
                    let (source, generation) = key.value();
                    let key = (source.to_owned(), GenerationId(generation.to_owned()));
                    Ok((key, Some(row.value().to_vec())))
                });
                backup.prepare::<redb::Error>(epoch, seq, rows)?;
            } else {
                let changed: Vec<_> = backup.changed().cloned().collect();
                let rows = changed.into_iter().map(|key| {
                    let row = checkpoints.get((key.0.as_str(), key.1.0.as_str()))?;
                    let row = row.map(|row| row.value().to_vec());
                    Ok((key, row))
                });
                backup.prepare::<redb::Error>(epoch, seq, rows)?;
            }
            if seq <= slowest {
                backup.settle().map_err(io::Error::other)?;
            }
            Ok(())
        })
    }

    fn backup(&self) -> MutexGuard<'_, Backup> {
        self.backup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sink that is behind the others, if they are not all at the same place.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn slowest_sink(&self) -> Result<Option<String>, OutboxError> {
        let mut places = Vec::with_capacity(self.sinks.len());
        for Seat { name, .. } in &self.sinks {
            places.push((self.cursor(name)?.acknowledged.seq, name));
        }
        let fastest = places.iter().map(|(seq, _)| *seq).max();
        let slowest = places.into_iter().min().filter(|(seq, _)| Some(*seq) < fastest);
        Ok(slowest.map(|(_, name)| name.clone()))
    }

    /// How far `sink` is.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn cursor(&self, sink: &str) -> Result<Cursor, OutboxError> {
        let cursor = self.read("read", |transaction| {
            let row = transaction.open_table(CURSORS)?.get(sink)?;
            Ok(row.and_then(|row| from_json(row.value())))
        })?;
        cursor.ok_or_else(|| self.damaged("a cursor"))
    }

    /// Moves `sink`'s cursor to `point` of `epoch`, and deletes what every sink has acknowledged.
    /// A point of an epoch that has ended changes nothing.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed; the batch will be sent again.
    pub fn acknowledge(
        &self,
        sink: &str,
        epoch: &str,
        point: ChainPoint,
    ) -> Result<(), OutboxError> {
        self.write("acknowledge entries of", |transaction, state| {
            if epoch != state.epoch {
                return Ok(Ok(()));
            }
            let mut cursors = transaction.open_table(CURSORS)?;
            let known = cursors.get(sink)?.and_then(|row| from_json::<Cursor>(row.value()));
            let cursor = Cursor {
                epoch: epoch.to_owned(),
                acknowledged: point,
                base: None,
                previous_epoch: None,
                destination: known.and_then(|cursor| cursor.destination),
            };
            cursors.insert(sink, json(&cursor).as_slice())?;
            let mut slowest = point.seq;
            for row in cursors.iter()? {
                match from_json::<Cursor>(row?.1.value()) {
                    Some(cursor) => slowest = slowest.min(cursor.acknowledged.seq),
                    None => return Ok(Err(self.damaged("a cursor"))),
                }
            }
            drop_values(transaction, state, slowest)?;
            Ok(Ok(()))
        })
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
            let heads = value::heads(value)?.into_iter();
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
            let mut frames = value::decode(value)?.filter(|(head, _)| head.last_seq() >= seq);
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
            let values = transaction.open_table(VALUES)?;
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

    /// The row of a generation.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn checkpoint(
        &self,
        source: &str,
        generation: &GenerationId,
    ) -> Result<Option<Vec<u8>>, OutboxError> {
        self.read("read", |transaction| {
            let checkpoints = transaction.open_table(CHECKPOINTS)?;
            let row = checkpoints.get((source, generation.0.as_str()))?;
            Ok(row.map(|row| row.value().to_vec()))
        })
    }

    /// The lines in parts that are dropped, by generation.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn dropping(&self) -> Result<HashMap<GenerationId, Dropping>, OutboxError> {
        self.read("read", |transaction| {
            let mut dropping = HashMap::new();
            for row in transaction.open_table(DROPPING)?.iter()? {
                let (generation, row) = row?;
                if let Some(row) = from_json(row.value()) {
                    dropping.insert(GenerationId(generation.value().to_owned()), row);
                }
            }
            Ok(dropping)
        })
    }

    /// Shows all rows of `source`.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn checkpoints(
        &self,
        source: &str,
        take: impl FnOnce(&mut dyn Iterator<Item = (GenerationId, Vec<u8>)>),
    ) -> Result<(), OutboxError> {
        let mut failure = None;
        self.read("read", |transaction| {
            let checkpoints = transaction.open_table(CHECKPOINTS)?;
            let mut rows = checkpoints.range((source, "")..)?.map_while(|row| match row {
                Ok((key, row)) if key.value().0 == source => {
                    Some((GenerationId(key.value().1.to_owned()), row.value().to_vec()))
                }
                Ok(_) => None,
                Err(error) => {
                    failure = Some(error);
                    None
                }
            });
            take(&mut rows);
            drop(rows);
            failure.map_or(Ok(()), |error| Err(error.into()))
        })
    }
}

/// Opens the store in the file at `path`.
fn file_opener(path: &Path) -> Opener {
    let file = path.to_owned();
    Box::new(move || {
        // Made here, where it is made for its owner only.
        private::options().open(&file).map_err(redb::StorageError::Io)?;
        builder().create(&file)
    })
}

/// Appends frames to the values: the state ends with them then.
fn append(
    transaction: &WriteTransaction,
    state: &mut State,
    frames: &[Frame],
) -> Result<(), redb::Error> {
    let mut values = transaction.open_table(VALUES)?;
    for run in runs(frames) {
        let value = value::encode(run);
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

/// Cuts frames into runs that make one value each.
fn runs(mut frames: &[Frame]) -> impl Iterator<Item = &[Frame]> {
    std::iter::from_fn(move || {
        if frames.is_empty() {
            return None;
        }
        let mut stored = 0;
        let fitting = frames.iter().position(|frame| {
            stored += frame.body.len() + HEAD;
            stored > value::MAX_STORED
        });
        let (run, rest) = frames.split_at(fitting.unwrap_or(frames.len()).max(1));
        frames = rest;
        Some(run)
    })
}

/// About what a head takes in a value.
const HEAD: usize = 512;

fn json<T: Serialize>(row: &T) -> Vec<u8> {
    serde_json::to_vec(row).expect("rows can be written as JSON")
}

fn from_json<T: DeserializeOwned>(row: &[u8]) -> Option<T> {
    serde_json::from_slice(row).ok()
}
