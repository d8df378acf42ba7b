//! Checkpoint rows, as their sources read them.

use std::collections::HashMap;

use redb::ReadableTable as _;

use super::{
    Outbox, OutboxError,
    checksum::{self, verify_json},
    tables::{CHECKPOINTS, DROPPED_PARTS},
};
use crate::{
    pipeline::group::DroppedPart,
    tail::{BadRow, GenerationId},
};

impl Outbox {
    /// Returns the checkpoint row of a generation.
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
            let key = (source, generation.0.as_str());
            let row = checkpoints.get(key)?;
            row.map(|row| open_checkpoint(key, row.value())).transpose()
        })
    }

    /// Returns the lines in parts that filters have dropped, by generation.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn dropped_parts(&self) -> Result<HashMap<GenerationId, DroppedPart>, OutboxError> {
        self.read("read", |transaction| {
            let mut dropped = HashMap::new();
            for row in transaction.open_table(DROPPED_PARTS)?.iter()? {
                let (generation, row) = row?;
                let generation = generation.value();
                let row = verify_json(generation, row.value(), "a dropped part")?;
                dropped.insert(GenerationId(generation.to_owned()), row);
            }
            Ok(dropped)
        })
    }

    /// Passes all rows of `source` to `use_rows` and returns its result.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a row in it is damaged. The iterator has
    /// then ended early.
    pub fn checkpoints<T>(
        &self,
        source: &str,
        use_rows: impl FnOnce(&mut dyn Iterator<Item = (GenerationId, Vec<u8>)>) -> T,
    ) -> Result<T, OutboxError> {
        let mut failure = None;
        self.read("read", |transaction| {
            let checkpoints = transaction.open_table(CHECKPOINTS)?;
            let mut rows = checkpoints.range((source, "")..)?.map_while(|row| {
                let opened = row.map_err(redb::Error::from).and_then(|(key, row)| {
                    let key = key.value();
                    let is_of_source = key.0 == source;
                    let row = is_of_source.then(|| open_checkpoint(key, row.value()));
                    Ok(row.transpose()?.map(|row| (GenerationId(key.1.to_owned()), row)))
                });
                opened.unwrap_or_else(|error| {
                    failure = Some(error);
                    None
                })
            });
            let result = use_rows(&mut rows);
            drop(rows);
            failure.map_or(Ok(result), Err)
        })
    }

    /// Reports a row that its source rejected: the store is damaged.
    pub fn report_bad_checkpoint(&self, row: &BadRow) -> OutboxError {
        tracing::error!(
            code = "checkpoint_invalid",
            cause = crate::text::causes(row),
            "invalid checkpoint row in the outbox"
        );
        self.damaged("a checkpoint is invalid")
    }
}

pub(super) fn open_checkpoint(key: (&str, &str), row: &[u8]) -> Result<Vec<u8>, redb::Error> {
    checksum::verify(key, row, "a checkpoint").map(<[u8]>::to_vec)
}
