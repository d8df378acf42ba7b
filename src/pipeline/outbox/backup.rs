//! Periodic backup of the acknowledged checkpoints to `checkpoints.bak`.

use std::{
    io,
    sync::{MutexGuard, PoisonError},
};

use redb::{ReadTransaction, ReadableTable as _};

use super::{
    Outbox, OutboxError,
    backup_file::BackupFile,
    checkpoints::open_checkpoint,
    checksum,
    cursor_rows::{read_cursors, slowest},
    rows::{OutboxState, from_json},
    tables::{CHECKPOINTS, CURSORS, META},
};
use crate::tail::GenerationId;

impl Outbox {
    /// Copies acknowledged checkpoints that have changed to `checkpoints.bak`.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or the file cannot be written; the next call
    /// tries again.
    pub fn back_up(&self) -> Result<(), OutboxError> {
        // A damaged store must not overwrite the copy of an intact one.
        if *self.damage.borrow() {
            return Ok(());
        }
        let mut backup = self.backup();
        if let Err(error) = backup.sync() {
            tracing::warn!(
                code = "generation_sync_failed",
                %error,
                "cannot sync checkpoints.bak"
            );
        }
        if backup.prepared().is_none() && !backup.is_due() {
            return Ok(());
        }
        // One transaction, so that checkpoints and acknowledgements are of the same moment.
        self.read("back up the checkpoints of", |transaction| {
            let Some(row) = checksum::read_state(&transaction.open_table(META)?)? else {
                return Ok(());
            };
            let Some(state) = from_json::<OutboxState>(&row.json) else { return Ok(()) };
            let cursors = read_cursors(&transaction.open_table(CURSORS)?)?;
            let last_seq = state.next_seq - 1;
            let slowest = slowest(&cursors).unwrap_or(last_seq).min(last_seq);
            match backup.prepared() {
                Some(seq) if seq > slowest => return Ok(()),
                Some(_) => backup.publish().map_err(io::Error::other)?,
                None => {}
            }
            if !backup.is_due() {
                return Ok(());
            }
            prepare(&transaction, &mut backup, &state)?;
            if last_seq <= slowest {
                backup.publish().map_err(io::Error::other)?;
            }
            Ok(())
        })
    }

    pub(super) fn backup(&self) -> MutexGuard<'_, BackupFile> {
        self.backup.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Prepares all checkpoint rows, or those that have changed.
fn prepare(
    transaction: &ReadTransaction,
    backup: &mut BackupFile,
    state: &OutboxState,
) -> Result<(), redb::Error> {
    let checkpoints = transaction.open_table(CHECKPOINTS)?;
    let (epoch, seq) = (&state.epoch, state.next_seq - 1);
    if backup.needs_all_rows() {
        let rows = checkpoints.iter()?.map(|row| {
            let (key, row) = row?;
            let row = open_checkpoint(key.value(), row.value())?;
            let (source, generation) = key.value();
            let key = (source.to_owned(), GenerationId(generation.to_owned()));
            Ok((key, Some(row)))
        });
        return backup.prepare::<redb::Error>(epoch, seq, rows);
    }
    let changed: Vec<_> = backup.changed().cloned().collect();
    let rows = changed.into_iter().map(|key| {
        let at = (key.0.as_str(), key.1.0.as_str());
        let row = checkpoints.get(at)?;
        let row = row.map(|row| open_checkpoint(at, row.value())).transpose()?;
        Ok((key, row))
    });
    backup.prepare::<redb::Error>(epoch, seq, rows)
}
