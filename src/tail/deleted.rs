//! Files that were deleted, and copies of incomplete last lines in case a file is deleted.

use std::io;

use ai_agent_stage::{Chunk, FileKey, Intake};

use super::{
    Tail,
    file_table::Lane,
    generation_end::{FinalPiece, GenerationEnd, end_generation},
    open_files::{ChunkProgress, DrainOutcome},
    partial_line::PartialLine,
};
use crate::platform::file::Stamp;

/// Largest number of bytes of an incomplete last line that are copied into the row.
const MAX_SAVED_BYTES: u64 = 1 << 20;

impl Tail {
    /// Handles a file that a sweep did not find: reads the rest through its handle, or ends it.
    pub(super) fn handle_deleted(&mut self, key: FileKey, intake: &mut dyn Intake) {
        let Some(known) = self.files.get_mut(key) else { return };
        let path = known.path.clone();
        known.is_deleted = true;
        self.files.leave_path(key, &path);
        if self.open.contains_key(&key) {
            self.start_drain(key);
            self.files.enqueue(key, Lane::Live, 0);
        } else {
            self.end_deleted_file(key, PartialLine::default(), intake);
        }
    }

    /// Reads the next chunk of a deleted file through its handle, and ends the file after the last.
    ///
    /// # Errors
    /// As [`Tail::drain`]; the file is read again later.
    pub(super) fn read_deleted(
        &mut self,
        key: FileKey,
        intake: &mut dyn Intake,
    ) -> io::Result<ChunkProgress> {
        let outcome = match self.drain(key, intake) {
            Ok(DrainOutcome::More) => return Ok(ChunkProgress::More),
            Ok(outcome) => outcome,
            Err(error) => {
                self.schedule.retry_later(key);
                return Err(error);
            }
        };
        let partial_line = self.read_partial_line(key, outcome);
        self.end_deleted_file(key, partial_line, intake);
        Ok(ChunkProgress::Drained)
    }

    /// Reads the incomplete last line of an open file whose complete lines were handed over.
    pub(super) fn read_partial_line(&mut self, key: FileKey, outcome: DrainOutcome) -> PartialLine {
        let (Some(open), Some(known)) = (self.open.get(&key), self.files.get(key)) else {
            return PartialLine::default();
        };
        if outcome != DrainOutcome::Complete {
            return PartialLine::default();
        }
        let end = known.scanned.min(open.size());
        if let Some(content) = known.incomplete_content(end) {
            let line = self.reader.read_incomplete(&open.file, known.offset, content);
            return line.ok().flatten().unwrap_or_default();
        }
        // A longer line would have been handed over in parts. The size may have changed since it was
        // scanned: its bytes are then reported as unread.
        let len = end.saturating_sub(known.offset);
        if len > self.options.max_record_bytes.saturating_add(2) {
            return PartialLine::default();
        }
        let len = usize::try_from(len).unwrap_or_default();
        let line = self.reader.copy(&open.file, known.offset, len);
        line.map_or_else(|_| PartialLine::default(), PartialLine::fold)
    }

    /// Ends a deleted file: hands over its incomplete last line, from the handle or from the row,
    /// and reports bytes that could not be read.
    fn end_deleted_file(
        &mut self,
        key: FileKey,
        partial_line: PartialLine,
        intake: &mut dyn Intake,
    ) {
        let Some(known) = self.files.get(key) else { return };
        // Without its row the file cannot be ended. The group is then not stored, and the file is
        // handled again.
        let Ok(mut row) = self.row(key, known, intake) else { return };
        let origin = known.origin(key);
        let open = self.open.remove(&key);
        let size = match &open {
            Some(open) => open.size().max(open.row.stamp.size),
            // The known size is that of the file that replaced it.
            None if known.replaced_by.is_some() => row.stamp.size,
            None => known.size,
        };
        let has_row = known.has_row;
        self.uncommitted.remove(&key);
        self.schedule.forget(key);
        let Some(mut known) = self.files.remove(key) else { return };

        let long = known.long.as_deref_mut();
        let GenerationEnd { piece, unread, events } =
            end_generation(&origin, &mut row, long, partial_line, size);
        let pieces: Vec<_> = piece.iter().map(FinalPiece::piece).collect();
        if has_row || !pieces.is_empty() || !events.is_empty() {
            let mut chunk = Chunk::new(&origin, &pieces, None);
            (chunk.unread, chunk.events) = (unread, events);
            intake.take(chunk);
            if let Some(open) = open {
                self.retire(open);
            }
        }
        intake.forget(key);
    }

    /// Copies incomplete last lines that have not changed for a while into their rows.
    pub(super) fn save_partial_lines(&mut self, intake: &mut dyn Intake) {
        let now = self.schedule.now();
        for key in self.schedule.partial_lines() {
            let Some(known) = self.files.get(key) else { continue };
            let is_due = now.saturating_sub(known.changed) >= self.options.keep_after;
            let is_unchanged = known.drained.is_some() && known.unread() > 0;
            if !is_due || known.has_saved_line || known.long.is_some() || !is_unchanged {
                continue;
            }
            if !intake.has_room() {
                return;
            }
            self.save_partial_line(key, intake);
        }
    }

    fn save_partial_line(&mut self, key: FileKey, intake: &mut dyn Intake) {
        let Some(known) = self.files.get(key) else { return };
        let Ok(mut row) = self.row(key, known, intake) else { return };
        let (path, origin, offset) = (known.path.clone(), known.origin(key), row.offset);
        let scanned = known.incomplete_content(known.size);
        let scanned = scanned.filter(|content| content.data_len() <= MAX_SAVED_BYTES);
        let len = known.unread().min(MAX_SAVED_BYTES);
        let Ok(Some((file, stamp))) = self.access.open(&path) else { return };
        let drained = known.drained;
        let is_unchanged = drained.is_some_and(|drained| drained.agrees_with(&stamp));
        let line = match scanned {
            Some(content) => self.reader.read_incomplete(&file, offset, content).ok().flatten(),
            None => {
                let len = usize::try_from(len).unwrap_or_default();
                self.reader.copy(&file, offset, len).ok().map(PartialLine::fold)
            }
        };
        let Some(line) = line.filter(|line| line.size() >= len) else { return };
        if !is_unchanged || row.long.is_some() {
            return;
        }
        row.saved_line = Some(line);
        row.stamp = Stamp { id: known.id, ..drained.unwrap_or(row.stamp) };
        row.is_drained = true;
        let checkpoint = row.encode();
        intake.take(Chunk::new(&origin, &[], Some(&checkpoint)));
        self.uncommitted.insert(key, (self.group, checkpoint));
        // An open file has its own copy of the row, without the saved line.
        self.open.remove(&key);
        if let Some(known) = self.files.get_mut(key) {
            (known.has_row, known.has_saved_line) = (true, true);
        }
    }
}
