//! Adds the chunks of a source to the open group.

use std::{
    cell::OnceCell,
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
};

use tracing::warn;

use super::{
    super::{group_builder::GroupBuilder, outbox::Outbox, record_stages::RecordStages},
    Inbox,
    backfill_limit::BackfillLimit,
};
use crate::{
    event::Event,
    platform::Timestamp,
    tail::{Chunk, FileKey, GenerationId, Intake, Origin},
    text::causes,
};

/// Adds the chunks of one source to the open group.
pub(super) struct GroupIntake<'a> {
    pub(super) builder: &'a mut GroupBuilder,
    pub(super) stages: &'a mut RecordStages,
    pub(super) outbox: &'a Outbox,
    pub(super) inbox: &'a Inbox,
    pub(super) instance: &'a str,
    pub(super) label: &'static str,
    pub(super) now: Timestamp,
    /// Files that are not read.
    pub(super) held_files: &'a HashSet<FileKey>,
    /// Limit on the backlog in the open group.
    pub(super) backfill: &'a BackfillLimit,
    /// First failure that makes the open group unusable.
    pub(super) failure: &'a OnceCell<IntakeFailure>,
}

/// A failure that makes the open group unusable. Everything added after it is discarded and comes
/// again.
#[derive(Debug)]
pub(super) enum IntakeFailure {
    /// A stage panicked on a record of this file.
    Stage(Origin),
    /// A checkpoint cannot be read. Without it a file would be read from the start, as if it were
    /// new.
    Checkpoint,
}

impl Intake for GroupIntake<'_> {
    fn take(&mut self, chunk: Chunk<'_>) {
        let origin = chunk.origin;
        if self.failure.get().is_some() || self.held_files.contains(&origin.file) {
            return;
        }
        let add = AssertUnwindSafe(|| {
            self.builder.add_chunk(chunk, self.instance, self.label, self.stages, self.now);
        });
        if catch_unwind(add).is_err() {
            self.fail(IntakeFailure::Stage(origin.clone()));
        }
    }

    fn store_row(&mut self, name: &str, row: &[u8], events: Vec<Event>) {
        if self.failure.get().is_none() {
            events.into_iter().for_each(|event| self.report(event));
            self.builder.store_row(self.instance, name, row);
        }
    }

    fn report(&mut self, mut event: Event) {
        event.source = self.label;
        self.builder.add_event(&event, &mut self.stages.enrichers, self.now);
    }

    fn forget(&mut self, file: FileKey) {
        self.stages.forget(file);
    }

    fn has_room(&self) -> bool {
        self.failure.get().is_none() && self.builder.has_room() && !self.inbox.is_stopped()
    }

    fn has_room_for_backfill(&self) -> bool {
        self.has_room() && self.backfill.accepts(self.builder.raw_bytes())
    }

    fn saw(&self, files: u64) {
        self.inbox.note_swept_files(files);
    }

    fn checkpoint(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        match self.outbox.checkpoint(self.instance, generation) {
            Ok(Some(row)) => return Some(row),
            Ok(None) => {
                warn!(code = "checkpoint_missing", %generation, "a checkpoint is missing");
            }
            Err(failure) => {
                let cause = causes(&failure);
                warn!(code = "checkpoint_read_failed", cause, "cannot read a checkpoint");
            }
        }
        self.fail(IntakeFailure::Checkpoint);
        None
    }

    fn store_verification(&mut self, position: &[u8]) {
        if self.failure.get().is_none() {
            self.builder.store_verification(self.instance, position);
        }
    }

    fn blocks(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        let hashes = self.outbox.block_hashes(self.instance, generation);
        hashes.unwrap_or_else(|failure| {
            let cause = causes(&failure);
            warn!(code = "checkpoint_read_failed", cause, "cannot read the hashes of a file");
            None
        })
    }
}

impl GroupIntake<'_> {
    /// Records the failure, unless another one came before.
    fn fail(&self, failure: IntakeFailure) {
        drop(self.failure.set(failure));
    }
}
