//! The rows of generations, as their sources read them.

use std::collections::HashMap;

use redb::ReadableTable as _;

use super::{CHECKPOINTS, DROPPED_PARTS, Outbox, OutboxError, checksum, checksum::open_json};
use crate::{
    pipeline::group::DroppedPart,
    tail::{BadRow, GenerationId},
};

impl Outbox {
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
            let key = (source, generation.0.as_str());
            let row = checkpoints.get(key)?;
            row.map(|row| open_checkpoint(key, row.value())).transpose()
        })
    }

    /// The lines in parts that are dropped, by generation.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn dropped_parts(&self) -> Result<HashMap<GenerationId, DroppedPart>, OutboxError> {
        self.read("read", |transaction| {
            let mut dropped = HashMap::new();
            for row in transaction.open_table(DROPPED_PARTS)?.iter()? {
                let (generation, row) = row?;
                let generation = generation.value();
                let row = open_json(generation, row.value(), "a line that is dropped")?;
                dropped.insert(GenerationId(generation.to_owned()), row);
            }
            Ok(dropped)
        })
    }

    /// Shows all rows of `source`, and gives back what `take` makes of them.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a row in it is damaged: then not all were
    /// shown.
    pub fn checkpoints<T>(
        &self,
        source: &str,
        take: impl FnOnce(&mut dyn Iterator<Item = (GenerationId, Vec<u8>)>) -> T,
    ) -> Result<T, OutboxError> {
        let mut failure = None;
        self.read("read", |transaction| {
            let checkpoints = transaction.open_table(CHECKPOINTS)?;
            let mut rows = checkpoints.range((source, "")..)?.map_while(|row| {
                let opened = row.map_err(redb::Error::from).and_then(|(key, row)| {
                    let key = key.value();
                    let is_asked_for = key.0 == source;
                    let row = is_asked_for.then(|| open_checkpoint(key, row.value()));
                    Ok(row.transpose()?.map(|row| (GenerationId(key.1.to_owned()), row)))
                });
                opened.unwrap_or_else(|error| {
                    failure = Some(error);
                    None
                })
            });
            let taken = take(&mut rows);
            drop(rows);
            failure.map_or(Ok(taken), Err)
        })
    }

    /// Says that a row is damaged which only its source can read.
    pub fn report_bad_checkpoint(&self, row: &BadRow) -> OutboxError {
        tracing::error!(
            code = "checkpoint_invalid",
            cause = crate::text::causes(row),
            "a checkpoint makes no sense"
        );
        self.damaged("a checkpoint")
    }
}

pub(super) fn open_checkpoint(key: (&str, &str), row: &[u8]) -> Result<Vec<u8>, redb::Error> {
    checksum::open(key, row, "a checkpoint").map(<[u8]>::to_vec)
}
