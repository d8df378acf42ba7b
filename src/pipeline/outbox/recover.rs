//! How an outbox begins: as it was, anew, or in place of one that is damaged.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use redb::{ReadableTable as _, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{
    CHECKPOINTS, CURSORS, Cursor, Outbox, OutboxError, Seat, State,
    backup::{Backup, Saved},
    file_opener, from_json, json,
};
use crate::platform::Timestamp;

/// What was found at the start.
#[derive(Debug)]
pub enum Found {
    /// The outbox, as it was left.
    Whole,
    /// None: the first, or the one that was there is gone.
    Nothing {
        /// The epoch of the one that is gone, if its offsets were copied.
        previous_epoch: Option<String>,
    },
    /// A damaged one, which was moved aside.
    Damaged {
        /// Where it lies now.
        moved_to: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// Its epoch, if its offsets were copied.
        previous_epoch: Option<String>,
    },
}

impl Outbox {
    /// Opens the outbox at `path` as [`Outbox::open`] does. A damaged one is moved aside, never
    /// deleted, and a new one begins; files are then read again from their acknowledged offsets.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be used for another reason than damage: a newer
    /// schema, missing rights, a full disk.
    pub fn open_or_recover(
        path: &Path,
        sinks: &[Seat],
        new_epoch: impl Fn() -> String,
        now: Timestamp,
    ) -> Result<(Self, Found), OutboxError> {
        let open = |damage| {
            let beginning = || Beginning::after(&Backup::beside(path), damage);
            Self::open_after(path, file_opener(path), sinks, &new_epoch, beginning)
        };
        let outbox = match open(None) {
            Ok(outbox) => outbox,
            Err(damage) if damage.is_damage() => {
                let reason = crate::text::causes(&damage);
                let moved_to = move_aside(path, now).map_err(|source| OutboxError::Store {
                    action: "move aside",
                    path: path.to_owned(),
                    source: Box::new(source.into()),
                })?;
                open(Some(Damage { moved_to, reason }))?
            }
            Err(error) => return Err(error),
        };
        if !outbox.was_found {
            // From now on the copy is this store's: it may be the next to be lost.
            if let Err(failure) = outbox.back_up() {
                let cause = crate::text::causes(&failure);
                tracing::warn!(cause, "acknowledged offsets could not be copied");
            }
        }
        let found = match outbox.state().began.clone() {
            None => Found::Whole,
            Some(Began { previous_epoch, damage: None }) => Found::Nothing { previous_epoch },
            Some(Began { previous_epoch, damage: Some(Damage { moved_to, reason }) }) => {
                Found::Damaged { moved_to, reason, previous_epoch }
            }
        };
        Ok((outbox, found))
    }
}

/// How an outbox began: kept in it until that is reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Began {
    previous_epoch: Option<String>,
    damage: Option<Damage>,
}

/// What became of the store before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Damage {
    moved_to: PathBuf,
    reason: String,
}

/// What a new store begins with.
#[derive(Debug, Default)]
pub(super) struct Beginning {
    saved: Option<Saved>,
    damage: Option<Damage>,
}

impl Beginning {
    /// With the offsets that were acknowledged in the store before.
    fn after(backup: &Backup, damage: Option<Damage>) -> Self {
        let saved = backup.load().unwrap_or_else(|error| {
            tracing::warn!(%error, "acknowledged offsets could not be read");
            None
        });
        Self { saved, damage }
    }

    pub(super) fn take_place(
        self,
        transaction: &WriteTransaction,
        state: &mut State,
    ) -> Result<(), redb::Error> {
        let Self { saved, damage } = self;
        let previous_epoch = saved.as_ref().map(|saved| saved.epoch.clone());
        state.began = Some(Began { previous_epoch: previous_epoch.clone(), damage });
        let Some(saved) = saved else { return Ok(()) };
        let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
        for ((source, generation), row) in &saved.rows {
            checkpoints.insert((source.as_str(), generation.0.as_str()), row.as_slice())?;
        }
        let mut cursors = transaction.open_table(CURSORS)?;
        let mut begun = Vec::new();
        for row in cursors.iter()? {
            let (name, row) = row?;
            if let Some(cursor) = from_json::<Cursor>(row.value()) {
                begun.push((name.value().to_owned(), cursor));
            }
        }
        for (name, cursor) in begun {
            let cursor = Cursor { previous_epoch: previous_epoch.clone(), ..cursor };
            cursors.insert(name.as_str(), json(&cursor).as_slice())?;
        }
        Ok(())
    }
}

impl OutboxError {
    /// Whether the store holds what it should not, rather than being out of reach.
    pub(in crate::pipeline) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Store { source, path, .. } => match &**source {
                redb::Error::Corrupted(_) => true,
                redb::Error::Io(error) => match error.kind() {
                    io::ErrorKind::InvalidData
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::UnexpectedEof => true,
                    // What Windows says of a directory that is opened as a file.
                    io::ErrorKind::PermissionDenied => path.is_dir(),
                    _ => false,
                },
                _ => false,
            },
            Self::Newer { .. } | Self::Stale { .. } => false,
        }
    }
}

/// Renames what lies at `path` to a name that is free.
fn move_aside(path: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let mut number = now.0;
    loop {
        let aside = path.with_extension(format!("redb.damaged-{number}"));
        match fs::symlink_metadata(&aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::rename(path, &aside)?;
                return Ok(aside);
            }
            Ok(_) => number += 1,
            Err(error) => return Err(error),
        }
    }
}
