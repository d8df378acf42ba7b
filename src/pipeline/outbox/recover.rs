//! How an outbox begins: as it was, anew, or in place of one that is damaged.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use redb::WriteTransaction;
use serde::{Deserialize, Serialize};

use super::{
    CHECKPOINTS, CURSORS, Cursor, DEAD_LETTERS, Outbox, OutboxError, SinkRegistration, State,
    backup::{Backup, BackupContents},
    checksum::{seal, seal_json},
    cursors::read_cursors,
    file_opener, from_json, json,
    salvage::{SalvagedContents, salvage},
};
use crate::{
    platform::{Timestamp, secure_file},
    tail,
};

/// What was found at the start.
#[derive(Debug)]
pub enum OpenOutcome {
    /// The outbox, as it was left.
    Intact,
    /// None: the first, or the one that was there is gone.
    Created {
        /// The epoch of the one that is gone, if its offsets were copied.
        previous_epoch: Option<String>,
    },
    /// A damaged one, which was moved aside.
    Replaced {
        /// Where it lies now.
        moved_to: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// Its epoch, if that is known.
        previous_epoch: Option<String>,
        /// What became of its dead letters.
        dead_letters: RescuedDeadLetters,
    },
}

/// What became of the dead letters of a store that was damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RescuedDeadLetters {
    /// How many are in the new store.
    pub kept: u64,
    /// How many could not be read; `None` when nobody can tell.
    pub lost: Option<u64>,
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
        sinks: &[SinkRegistration],
        new_epoch: impl Fn() -> String,
        now: Timestamp,
    ) -> Result<(Self, OpenOutcome), OutboxError> {
        let open = |damage| {
            let beginning = || InitialContents::after(&Backup::beside(path), damage);
            Self::open_after(path, file_opener(path), sinks, &new_epoch, beginning)
        };
        let failed = |source: io::Error| OutboxError::Store {
            action: "move aside",
            path: path.to_owned(),
            source: Box::new(source.into()),
        };
        let note = QuarantineNote::beside(path);
        // Whoever moved it aside did not come to begin another.
        let noted = note.read();
        let outbox = match open(noted.clone()) {
            Ok(outbox) => outbox,
            Err(damage) if damage.is_damage() => {
                let reason = crate::text::causes(&damage);
                let moved_to = free_name(path, now).map_err(failed)?;
                let damage =
                    DamageReport { moved_to, reason, dead_letters: RescuedDeadLetters::default() };
                let moved_to = damage.moved_to.clone();
                // One that was never begun is not what was lost.
                let damage = noted.unwrap_or(damage);
                note.write(&damage).and_then(|()| fs::rename(path, moved_to)).map_err(failed)?;
                open(Some(damage))?
            }
            Err(error) => return Err(error),
        };
        note.remove();
        if !outbox.was_found {
            // From now on the copy is this store's: it may be the next to be lost.
            if let Err(failure) = outbox.back_up() {
                let cause = crate::text::causes(&failure);
                tracing::warn!(
                    code = "offsets_backup_failed",
                    cause,
                    "acknowledged offsets could not be copied"
                );
            }
        }
        let found = match outbox.state().began.clone() {
            None => OpenOutcome::Intact,
            Some(CreationReport { previous_epoch, damage: None }) => {
                OpenOutcome::Created { previous_epoch }
            }
            Some(CreationReport { previous_epoch, damage: Some(damage) }) => {
                let DamageReport { moved_to, reason, dead_letters } = damage;
                OpenOutcome::Replaced { moved_to, reason, previous_epoch, dead_letters }
            }
        };
        Ok((outbox, found))
    }
}

/// How an outbox began: kept in it until that is reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CreationReport {
    previous_epoch: Option<String>,
    damage: Option<DamageReport>,
}

/// What became of the store before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DamageReport {
    moved_to: PathBuf,
    reason: String,
    #[serde(default)]
    dead_letters: RescuedDeadLetters,
}

/// Lies beside the store from before a damaged one is moved aside until another has begun: in
/// between nothing else would say why there is none.
struct QuarantineNote(PathBuf);

impl QuarantineNote {
    fn beside(path: &Path) -> Self {
        Self(path.with_extension("quarantine"))
    }

    fn write(&self, damage: &DamageReport) -> io::Result<()> {
        let mut file = secure_file::options().truncate(true).open(&self.0)?;
        file.write_all(&json(damage))?;
        file.sync_all()
    }

    /// What is noted, if it has come to that.
    fn read(&self) -> Option<DamageReport> {
        let damage: DamageReport = from_json(&fs::read(&self.0).ok()?)?;
        fs::symlink_metadata(&damage.moved_to).is_ok().then_some(damage)
    }

    fn remove(&self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(code = "damage_note_delete_failed", %error, "the note on a damaged outbox could not be removed");
            }
            _ => {}
        }
    }
}

/// What a new store begins with.
#[derive(Debug, Default)]
pub(super) struct InitialContents {
    saved: Option<BackupContents>,
    salvaged: SalvagedContents,
    damage: Option<DamageReport>,
}

impl InitialContents {
    /// With the offsets that were acknowledged in the store before, and what can be read of it.
    fn after(backup: &Backup, damage: Option<DamageReport>) -> Self {
        let saved = backup.load().unwrap_or_else(|error| {
            tracing::warn!(code = "offsets_read_failed", %error, "acknowledged offsets could not be read");
            None
        });
        let salvaged = damage.as_ref().map(|damage| salvage(&damage.moved_to)).unwrap_or_default();
        Self { saved, salvaged, damage }
    }

    pub(super) fn write(
        self,
        transaction: &WriteTransaction,
        state: &mut State,
    ) -> Result<(), redb::Error> {
        let Self { saved, salvaged, mut damage } = self;
        let BackupContents { epoch, rows, begun } = saved.unwrap_or_default();
        let previous_epoch = Some(epoch).filter(|epoch| !epoch.is_empty()).or(salvaged.epoch);
        if let Some(damage) = &mut damage {
            damage.dead_letters = RescuedDeadLetters {
                kept: salvaged.letters.len() as u64,
                lost: salvaged.lost_letters,
            };
        }
        state.began = Some(CreationReport { previous_epoch: previous_epoch.clone(), damage });

        let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
        let (mut keys, mut paths) = (BTreeSet::new(), BTreeSet::new());
        // What is acknowledged comes first, then what began. A generation has one row and so has a
        // file, and one that reads again what is acknowledged, or skips what is not, must not take
        // the place of one that does neither.
        for (key, row) in rows.into_iter().chain(begun).chain(salvaged.begun) {
            let Some(path) = tail::row_path(&row) else {
                tracing::warn!(
                    code = "checkpoint_discarded",
                    "left out a checkpoint that makes no sense: its file begins anew"
                );
                continue;
            };
            if !keys.contains(&key) && paths.insert((key.0.clone(), path)) {
                let at = (key.0.as_str(), key.1.0.as_str());
                checkpoints.insert(at, seal(at, &row).as_slice())?;
                keys.insert(key);
            }
        }
        let mut letters = transaction.open_table(DEAD_LETTERS)?;
        for (id, letter) in &salvaged.letters {
            let key = (id.sink.as_str(), id.epoch.as_str(), id.seq);
            letters.insert(key, seal_json(key, letter).as_slice())?;
        }
        if previous_epoch.is_none() {
            return Ok(());
        }
        let mut cursors = transaction.open_table(CURSORS)?;
        for (name, cursor) in read_cursors(&cursors)? {
            let cursor = Cursor { previous_epoch: previous_epoch.clone(), ..cursor };
            cursors.insert(name.as_str(), seal_json(name.as_str(), &cursor).as_slice())?;
        }
        Ok(())
    }
}

impl OutboxError {
    /// Whether the store holds what it should not, rather than being out of reach.
    pub(in crate::pipeline) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Misplaced { .. } => true,
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

/// A name that is free for what lies at `path`.
fn free_name(path: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let mut number = now.0;
    loop {
        let aside = path.with_extension(format!("redb.damaged-{number}"));
        match fs::symlink_metadata(&aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(aside),
            Ok(_) => number += 1,
            Err(error) => return Err(error),
        }
    }
}
