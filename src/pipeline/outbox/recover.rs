//! Creation of a store, and replacement of a damaged one.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use redb::WriteTransaction;

use super::{
    Cursor, Outbox, OutboxError, RescuedDeadLetters, SinkRegistration,
    backup_file::{BackupContents, BackupFile},
    checksum::{protect, protect_json},
    cursor_rows::read_cursors,
    rows::{CreationReport, DamageReport, OutboxState, from_json, to_json},
    salvage::{SalvagedContents, salvage},
    store_file::file_opener,
    tables::{CHECKPOINTS, CURSORS, DEAD_LETTERS},
};
use crate::{
    platform::{Timestamp, secure_file},
    tail,
    text::causes,
};

/// Condition in which [`Outbox::open_or_recover`] found the store.
#[derive(Debug)]
pub enum OpenOutcome {
    /// The store was intact.
    Intact,
    /// There was no store, and one was created.
    Created {
        /// Epoch of a store that was deleted, if there is a backup of its checkpoints.
        previous_epoch: Option<String>,
    },
    /// The store was damaged; it was moved aside and a new one was created.
    Replaced {
        /// New path of the damaged store.
        moved_to: PathBuf,
        /// Description of the damage.
        reason: String,
        /// Epoch of the damaged store, if known.
        previous_epoch: Option<String>,
        /// Dead letters that were copied and lost.
        dead_letters: RescuedDeadLetters,
    },
}

impl Outbox {
    /// Opens the outbox at `path` as [`Outbox::open`] does. A damaged store is moved aside, never
    /// deleted, and replaced by a new one; files are then read again from their acknowledged
    /// offsets.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be used for a reason other than damage: a newer
    /// schema, missing permissions, a full disk.
    pub fn open_or_recover(
        path: &Path,
        sinks: &[SinkRegistration],
        new_epoch: impl Fn() -> String,
        now: Timestamp,
    ) -> Result<(Self, OpenOutcome), OutboxError> {
        let open = |damage| {
            Self::open_or_fill(path, file_opener(path), sinks, &new_epoch, |transaction, state| {
                let contents = InitialContents::load(&BackupFile::beside(path), damage);
                contents.write(transaction, state)
            })
        };
        let note = QuarantineNote::beside(path);
        // Present if the process ended after it moved a store aside and before it created another.
        let noted = note.read();
        let outbox = match open(noted.clone()) {
            Ok(outbox) => outbox,
            Err(damage) if damage.is_damage() => {
                let report = move_aside(path, &note, noted, &damage, now).map_err(|source| {
                    OutboxError::Store {
                        action: "move aside",
                        path: path.to_owned(),
                        source: Box::new(source.into()),
                    }
                })?;
                open(Some(report))?
            }
            Err(error) => return Err(error),
        };
        note.remove();
        if !outbox.existed {
            // The backup must belong to this store from now on, in case this store is lost too.
            if let Err(failure) = outbox.back_up() {
                tracing::warn!(
                    code = "offsets_backup_failed",
                    cause = causes(&failure),
                    "cannot back up the acknowledged checkpoints"
                );
            }
        }
        let outcome = OpenOutcome::of(outbox.state().creation.clone());
        Ok((outbox, outcome))
    }
}

impl OpenOutcome {
    fn of(creation: Option<CreationReport>) -> Self {
        match creation {
            None => Self::Intact,
            Some(CreationReport { previous_epoch, damage: None }) => {
                Self::Created { previous_epoch }
            }
            Some(CreationReport { previous_epoch, damage: Some(damage) }) => {
                let DamageReport { moved_to, reason, dead_letters } = damage;
                Self::Replaced { moved_to, reason, previous_epoch, dead_letters }
            }
        }
    }
}

/// Moves a damaged store aside after noting where to.
fn move_aside(
    path: &Path,
    note: &QuarantineNote,
    noted: Option<DamageReport>,
    damage: &OutboxError,
    now: Timestamp,
) -> io::Result<DamageReport> {
    let moved_to = free_name(path, now)?;
    let dead_letters = RescuedDeadLetters::default();
    let report = DamageReport { moved_to: moved_to.clone(), reason: causes(damage), dead_letters };
    // The store of an unfinished recovery is empty: the lost entries are in the one recorded before.
    let report = noted.unwrap_or(report);
    note.write(&report)?;
    fs::rename(path, moved_to)?;
    Ok(report)
}

/// File beside the store that exists from before a damaged store is moved aside until another has
/// been created. If the process ends in between, only this file records why there is no store.
struct QuarantineNote(PathBuf);

/// Maximum size of the note.
const MAX_NOTE: u64 = 1 << 20;

impl QuarantineNote {
    fn beside(path: &Path) -> Self {
        Self(path.with_extension("quarantine"))
    }

    fn write(&self, report: &DamageReport) -> io::Result<()> {
        let mut file = secure_file::open(secure_file::options().truncate(true), &self.0)?;
        file.write_all(&to_json(report))?;
        file.sync_all()
    }

    /// Reads the note, if the store was indeed moved aside.
    fn read(&self) -> Option<DamageReport> {
        let report: DamageReport = from_json(&secure_file::read_bytes(&self.0, MAX_NOTE).ok()?)?;
        fs::symlink_metadata(&report.moved_to).is_ok().then_some(report)
    }

    fn remove(&self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(
                    code = "damage_note_delete_failed",
                    path = ?self.0,
                    %error,
                    "cannot delete the note about a damaged outbox"
                );
            }
            _ => {}
        }
    }
}

/// Contents of a new store, taken from the backup and from the damaged store before it.
#[derive(Debug, Default)]
struct InitialContents {
    backup: Option<BackupContents>,
    salvaged: SalvagedContents,
    damage: Option<DamageReport>,
}

impl InitialContents {
    fn load(backup: &BackupFile, damage: Option<DamageReport>) -> Self {
        let backup = backup.load().unwrap_or_else(|error| {
            tracing::warn!(code = "offsets_read_failed", %error, "cannot read checkpoints.bak");
            None
        });
        let salvaged = damage.as_ref().map(|damage| salvage(&damage.moved_to)).unwrap_or_default();
        Self { backup, salvaged, damage }
    }

    fn write(
        self,
        transaction: &WriteTransaction,
        state: &mut OutboxState,
    ) -> Result<(), redb::Error> {
        let Self { backup, salvaged, mut damage } = self;
        let BackupContents { epoch, rows, started } = backup.unwrap_or_default();
        let previous_epoch = Some(epoch).filter(|epoch| !epoch.is_empty()).or(salvaged.epoch);
        if let Some(damage) = &mut damage {
            let (kept, lost) = (salvaged.letters.len() as u64, salvaged.lost_letters);
            damage.dead_letters = RescuedDeadLetters { kept, lost };
        }
        state.creation = Some(CreationReport { previous_epoch: previous_epoch.clone(), damage });

        let rows = rows.into_iter().chain(started).chain(salvaged.started);
        write_checkpoints(transaction, rows)?;
        let mut letters = transaction.open_table(DEAD_LETTERS)?;
        for (id, letter) in &salvaged.letters {
            let key = (id.sink.as_str(), id.epoch.as_str(), id.seq);
            letters.insert(key, protect_json(key, letter).as_slice())?;
        }
        if previous_epoch.is_none() {
            return Ok(());
        }
        let mut cursors = transaction.open_table(CURSORS)?;
        for (name, cursor) in read_cursors(&cursors)? {
            let cursor = Cursor { previous_epoch: previous_epoch.clone(), ..cursor };
            cursors.insert(name.as_str(), protect_json(name.as_str(), &cursor).as_slice())?;
        }
        Ok(())
    }
}

/// Writes checkpoint rows in order of precedence: acknowledged rows first, then rows of generations
/// that had started.
///
/// Each generation and each file gets one row. Otherwise a row that repeats acknowledged entries, or
/// skips unacknowledged ones, could replace a row that does neither.
fn write_checkpoints(
    transaction: &WriteTransaction,
    rows: impl Iterator<Item = ((String, tail::GenerationId), Vec<u8>)>,
) -> Result<(), redb::Error> {
    let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
    let (mut keys, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for (key, row) in rows {
        let Some(path) = tail::row_path(&row) else {
            tracing::warn!(
                code = "checkpoint_discarded",
                "discarded an invalid checkpoint row: its file is read from the beginning"
            );
            continue;
        };
        if !keys.contains(&key) && paths.insert((key.0.clone(), path)) {
            let at = (key.0.as_str(), key.1.0.as_str());
            checkpoints.insert(at, protect(at, &row).as_slice())?;
            keys.insert(key);
        }
    }
    Ok(())
}

/// Returns an unused name for the file at `path`.
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
