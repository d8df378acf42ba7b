//! Takes a source's chunks into the group at hand.

use std::{
    cell::Cell,
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
};

use tracing::warn;

use super::{
    super::{group_builder::GroupBuilder, outbox::Outbox, record_stages::RecordStages},
    Inbox,
};
use crate::{
    event::Event,
    platform::Timestamp,
    tail::{Chunk, FileKey, GenerationId, Intake, Origin},
    text::causes,
};

/// Takes a source's chunks into the group.
pub(super) struct GroupIntake<'a> {
    pub(super) builder: &'a mut GroupBuilder,
    pub(super) stages: &'a mut RecordStages,
    pub(super) outbox: &'a Outbox,
    pub(super) inbox: &'a Inbox,
    pub(super) instance: &'a str,
    pub(super) label: &'static str,
    pub(super) now: Timestamp,
    /// Files that are not read.
    pub(super) held: &'a HashSet<FileKey>,
    /// Takes the file that a stage failed on.
    pub(super) failed: &'a mut Option<Origin>,
    /// Set when a checkpoint can't be read: nothing that is read without it may be stored.
    pub(super) is_spoilt: &'a Cell<bool>,
}

impl Intake for GroupIntake<'_> {
    fn take(&mut self, chunk: Chunk<'_>) {
        let origin = chunk.origin;
        // After a failure the group is thrown away: what else comes into it comes again.
        if self.failed.is_some() || self.is_spoilt.get() || self.held.contains(&origin.file) {
            return;
        }
        let fill = AssertUnwindSafe(|| {
            self.builder.add_chunk(chunk, self.instance, self.label, self.stages, self.now);
        });
        if catch_unwind(fill).is_err() {
            *self.failed = Some(origin.clone());
        }
    }

    fn store_row(&mut self, name: &str, row: &[u8], events: Vec<Event>) {
        if self.failed.is_some() || self.is_spoilt.get() {
            return;
        }
        self.builder.store_row(self.instance, self.label, name, row, events, self.now);
    }

    fn report(&mut self, event: Event) {
        self.builder.add_event(&event.from_source(self.label), self.now);
    }

    fn forget(&mut self, file: FileKey) {
        self.stages.filters.forget(file);
    }

    fn has_room(&self) -> bool {
        self.failed.is_none()
            && !self.is_spoilt.get()
            && self.builder.has_room()
            && !self.inbox.is_stopped()
    }

    fn saw(&self, files: u64) {
        self.inbox.saw(files);
    }

    fn checkpoint(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        match self.outbox.checkpoint(self.instance, generation) {
            Ok(Some(row)) => Some(row),
            Ok(None) => {
                warn!(code = "checkpoint_missing", %generation, "a checkpoint is not there any more");
                self.is_spoilt.set(true);
                None
            }
            Err(failure) => {
                warn!(
                    code = "checkpoint_read_failed",
                    cause = causes(&failure),
                    "a checkpoint could not be read"
                );
                self.is_spoilt.set(true);
                None
            }
        }
    }
}
