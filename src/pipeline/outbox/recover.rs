//! How an outbox begins: as it was, anew, or in place of one that is damaged.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use redb::ReadableTable as _;

use super::{CHECKPOINTS, CURSORS, Cursor, Outbox, OutboxError, Seat, from_json, json};
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
        let opened = match Self::open(path, sinks, &new_epoch) {
            Ok(outbox) => Ok(outbox),
            Err(damage) if damage.is_damage() => Err(damage),
            Err(error) => return Err(error),
        };
        let (outbox, damage) = match opened {
            Ok(outbox) if outbox.was_found => return Ok((outbox, Found::Whole)),
            Ok(outbox) => (outbox, None),
            Err(damage) => {
                let reason = crate::text::causes(&damage);
                let moved_to = move_aside(path, now).map_err(|source| OutboxError::Store {
                    action: "move aside",
                    path: path.to_owned(),
                    source: Box::new(source.into()),
                })?;
                (Self::open(path, sinks, &new_epoch)?, Some((moved_to, reason)))
            }
        };
        let previous_epoch = outbox.take_backup()?;
        let found = match damage {
            None => Found::Nothing { previous_epoch },
            Some((moved_to, reason)) => Found::Damaged { moved_to, reason, previous_epoch },
        };
        Ok((outbox, found))
    }

    /// Fills a new store with the offsets that were acknowledged in the one before; its epoch.
    fn take_backup(&self) -> Result<Option<String>, OutboxError> {
        let saved = match self.backup().load() {
            Ok(Some(saved)) => saved,
            Ok(None) => return Ok(None),
            Err(error) => {
                tracing::warn!(%error, "acknowledged offsets could not be read");
                return Ok(None);
            }
        };
        self.write("restore offsets in", |transaction, _| {
            let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
            for ((source, generation), row) in &saved.rows {
                checkpoints.insert((source.as_str(), generation.0.as_str()), row.as_slice())?;
            }
            let mut cursors = transaction.open_table(CURSORS)?;
            for Seat { name, .. } in &self.sinks {
                let row = cursors.get(name.as_str())?.and_then(|row| from_json(row.value()));
                let cursor: Option<Cursor> = row;
                if let Some(cursor) = cursor {
                    let previous_epoch = Some(saved.epoch.clone());
                    let cursor = Cursor { previous_epoch, ..cursor };
                    cursors.insert(name.as_str(), json(&cursor).as_slice())?;
                }
            }
            Ok(Ok(()))
        })?;
        Ok(Some(saved.epoch))
    }
}

impl OutboxError {
    /// Whether the store holds what it should not, rather than being out of reach.
    pub(in crate::pipeline) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Store { source, .. } => match &**source {
                redb::Error::Corrupted(_) => true,
                redb::Error::Io(error) => matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData
                        | io::ErrorKind::IsADirectory
                        | io::ErrorKind::UnexpectedEof
                ),
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
