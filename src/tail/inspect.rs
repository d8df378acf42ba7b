//! Compares a queued file with its row, and reads its next chunk.

use std::{io, time::Duration};

use ai_agent_stage::{Chunk, FileKey, GenerationId, Intake, Origin, Piece};
use siem_protocol::{AgentEvent, agent_event::FileReplaced, nul_runs::total_length};

use super::{
    Tail,
    checkpoint::CheckpointRow,
    decision::{FileDecision, FoundAt, decide},
    file_table::{KnownFile, Lane, age},
    fingerprint::EdgeSamples,
    generation_end::{FinalPiece, GenerationEnd, end_generation},
    is_absent,
    line_reader::{LineReader, ReadOutcome, ReadPosition},
    long_line::LongLine,
    open_files::{ChunkProgress, DrainOutcome, OpenFile, ReplacedFile},
    partial_line::PartialLine,
    row_update::{add_lines, add_part, add_scanned, trimmed_row},
};
use crate::platform::file::{self, Stamp};

/// Time within which a file may change twice without a difference in its stamp.
const STAMP_RESOLUTION: Duration = Duration::from_millis(50);

impl Tail {
    /// Hands over the next chunk of a file; returns whether there may be more.
    pub(super) fn inspect(&mut self, key: FileKey, lane: Lane, intake: &mut dyn Intake) -> bool {
        let Some(known) = self.files.get(key) else { return false };
        let (path, is_deleted) = (known.path.clone(), known.is_deleted);
        match self.try_inspect(key, intake) {
            Ok(progress) => {
                if is_deleted {
                    self.unreadable.remove_unless_link(&path);
                } else {
                    self.unreadable.remove(&path);
                }
                if progress == ChunkProgress::Drained && lane == Lane::Live {
                    let changed = self.files.get(key).map(|known| known.changed);
                    let age = self.schedule.now().saturating_sub(changed.unwrap_or_default());
                    self.schedule.mark_hot(key, age);
                }
                progress == ChunkProgress::More
            }
            Err(error) => {
                if self.files.get(key).is_some_and(|known| !known.is_deleted) {
                    self.schedule.clear_settling(key);
                }
                if self.open.get(&key).is_some_and(|open| open.drain.is_none()) {
                    self.open.remove(&key);
                }
                if is_absent(&error) {
                    self.schedule.request_sweep_soon();
                    return false;
                }
                if file::is_out_of_files(&error) {
                    self.close_reopenable();
                    self.schedule.request_sweep_soon();
                }
                self.unreadable.add(&path, &error, self.schedule.sweeps);
                false
            }
        }
    }

    fn try_inspect(&mut self, key: FileKey, intake: &mut dyn Intake) -> io::Result<ChunkProgress> {
        let Some(known) = self.files.get(key) else { return Ok(ChunkProgress::Drained) };
        if known.is_deleted {
            self.schedule.clear_settling(key);
            return self.read_deleted(key, intake);
        }
        let replaced_by = known.replaced_by;
        if replaced_by.is_some()
            && let Some(open) = self.open.get(&key)
            && open.id != replaced_by
        {
            // The unread bytes of the replaced file come first.
            self.start_drain(key);
            let outcome = self.drain(key, intake)?;
            if outcome == DrainOutcome::More {
                return Ok(ChunkProgress::More);
            }
            let partial_line = self.read_partial_line(key, outcome);
            if !self.open_replacement(key, partial_line, intake)? {
                return Ok(ChunkProgress::Drained);
            }
        }
        if !self.open.contains_key(&key) && !self.open_file(key, intake)? {
            return Ok(ChunkProgress::Drained);
        }
        if let Some(progress) = self.read_next_chunk(key, intake)? {
            return Ok(progress);
        }
        let Some(open) = self.open.get(&key) else { return Ok(ChunkProgress::Drained) };
        let known_id = self.files.get(key).and_then(|known| known.id);
        if open.id != known_id && known_id.is_some() && open.id != replaced_by {
            // Another file is at this path. Only a sweep can determine whether the old one was moved.
            self.open.remove(&key);
            self.schedule.request_sweep_now();
            return Ok(ChunkProgress::Drained);
        }
        self.start_new_generation(key, intake)
    }

    /// Opens the file that replaced another, after that one was drained; returns false if it is not
    /// a regular file.
    fn open_replacement(
        &mut self,
        key: FileKey,
        partial_line: PartialLine,
        intake: &dyn Intake,
    ) -> io::Result<bool> {
        let Some(old) = self.open.remove(&key) else { return Ok(true) };
        let replaced = ReplacedFile { partial_line, size: old.size() };
        let generation = old.origin.generation.clone();
        self.retire(old);
        let opened = self.open_file(key, intake);
        if let (Ok(true), Some(open)) = (&opened, self.open.get_mut(&key)) {
            open.replaced = Some(replaced);
        } else if let Some(old) = self.take_retired(&generation) {
            // The replacement has disappeared: the old file is ended once a sweep has found that.
            self.open.insert(key, old);
        }
        opened
    }

    /// Hands over the next chunk of an open file; `None` if its bytes differ from the row.
    pub(super) fn read_next_chunk(
        &mut self,
        key: FileKey,
        intake: &mut dyn Intake,
    ) -> io::Result<Option<ChunkProgress>> {
        let (Some(open), Some(known)) = (self.open.get_mut(&key), self.files.get_mut(key)) else {
            return Ok(Some(ChunkProgress::Drained));
        };
        open.used = self.schedule.now();
        // Taken before reading, so that a change during the read counts as a later one.
        let stamp = match open.opened.take() {
            Some(stamp) => stamp,
            None => open.file.stamp()?,
        };
        let file_match = open.row.compare(&open.file, stamp.size, &mut self.edges)?;
        if decide(FoundAt::SamePath, file_match) != FileDecision::Continue {
            return Ok(None);
        }
        let is_restored = restore_long_line(open, known, &mut self.reader)?;
        let is_unaltered = stamp.size <= open.row.offset || open.prepare_hasher()?;
        let before = known.drained.or_else(|| open.row.is_drained.then_some(open.row.stamp));
        let found = match is_restored {
            true => read_pieces(&mut self.reader, &mut self.edges, open, known, stamp.size)?,
            false => FoundPieces::PAUSED,
        };
        let FoundPieces { pieces, end, is_paused } = found;
        self.slices_left -= u32::from(is_paused).min(self.slices_left);
        self.schedule.clear_settling(key);
        open.replaced = None;
        let has_new_id = record_read(open, known, &stamp, end, !pieces.is_empty());
        if !pieces.is_empty() || has_new_id {
            let hasher = open.hasher.as_mut();
            let blocks = hasher.and_then(|hasher| {
                open.row.blocks = Some(hasher.tail());
                hasher.take_update()
            });
            let checkpoint = open.row.encode();
            let mut chunk = Chunk::new(&open.origin, &pieces, Some(&checkpoint));
            chunk.blocks.extend(blocks);
            intake.take(chunk);
            self.uncommitted.insert(key, (self.group, checkpoint));
        }
        // Other times without growth may come from a change of bytes that were read.
        let is_touched = pieces.is_empty()
            && before.is_some_and(|before| {
                before.size == stamp.size && !before.agrees_with(&Stamp { id: before.id, ..stamp })
            });
        let id = open.id;
        if known.replaced_by == id {
            known.replaced_by = None;
        }
        if let Some(end) = end {
            self.record_drained(key, &stamp, end);
        }
        self.files.set_id(key, id);
        if is_touched || !is_unaltered {
            self.suspect(key);
        }
        Ok(Some(if end.is_some() { ChunkProgress::Drained } else { ChunkProgress::More }))
    }

    /// Schedules further checks of a file that was read to its end.
    fn record_drained(&mut self, key: FileKey, stamp: &Stamp, end: u64) {
        let Some(known) = self.files.get_mut(key) else { return };
        let age = age(stamp, self.clock.now());
        known.is_racy = age < STAMP_RESOLUTION;
        self.schedule.mark_hot(key, age);
        if end > known.offset {
            self.schedule.add_partial_line(key);
        } else {
            self.schedule.remove_partial_line(key);
        }
    }

    /// Starts a new generation in an open file whose bytes differ from its row, unless the file may
    /// still be being rewritten.
    pub(super) fn start_new_generation(
        &mut self,
        key: FileKey,
        intake: &mut dyn Intake,
    ) -> io::Result<ChunkProgress> {
        let Some(stamp) = self.open.get(&key).map(|open| open.file.stamp()).transpose()? else {
            return Ok(ChunkProgress::Drained);
        };
        let Some(decision) = self.decide_rewritten(key, &stamp)? else {
            return Ok(ChunkProgress::Drained);
        };
        let (Some(open), Some(known)) = (self.open.get_mut(&key), self.files.get_mut(key)) else {
            return Ok(ChunkProgress::Drained);
        };
        let (is_trimmed, mut row) = match decision {
            FileDecision::Continue
            | FileDecision::Move
            | FileDecision::NewFile
            | FileDecision::Wait => {
                return Ok(ChunkProgress::More);
            }
            FileDecision::Trim { at } => {
                (true, trimmed_row(&open.row, at, &open.file, &mut self.edges)?)
            }
            FileDecision::Rewrite => (false, CheckpointRow::new(open.row.path.clone(), 0)),
        };
        row.stamp = Stamp { id: open.id, ..stamp };
        if !is_trimmed {
            known.era += 1;
        }
        let previous = PreviousGeneration::replace(open, known, key, (self.new_generation)(), row);
        let replaced = previous.replaced_event(is_trimmed, open);
        open.previous.push((self.group, previous.origin.generation.clone()));
        previous.end(intake);
        let checkpoint = open.row.encode();
        let mut chunk = Chunk::new(&open.origin, &[], Some(&checkpoint));
        chunk.events.push(replaced.into());
        intake.take(chunk);
        self.uncommitted.insert(key, (self.group, checkpoint));
        let id = open.id;
        self.files.set_id(key, id);
        Ok(ChunkProgress::More)
    }

    /// Decides about an open file whose bytes differ from its row; `None` if that has to wait.
    fn decide_rewritten(
        &mut self,
        key: FileKey,
        stamp: &Stamp,
    ) -> io::Result<Option<FileDecision>> {
        let (Some(open), Some(known)) = (self.open.get(&key), self.files.get_mut(key)) else {
            return Ok(None);
        };
        let file_match = open.row.compare(&open.file, stamp.size, &mut self.edges)?;
        let decision = decide(FoundAt::SamePath, file_match);
        if decision != FileDecision::Wait {
            return Ok(Some(decision));
        }
        let age = age(stamp, self.clock.now());
        // A file that is no longer at its path is not being rewritten.
        if open.drain.is_none() && !self.schedule.has_settled(key, age) {
            known.size = stamp.size;
            return Ok(None);
        }
        Ok(Some(decide(FoundAt::SamePath, file_match.when_final())))
    }
}

/// Restores the state of a long line after the row was loaded. Returns whether it is complete; if
/// not, a slice was read, and the call must be repeated.
fn restore_long_line(
    open: &OpenFile,
    known: &mut KnownFile,
    reader: &mut LineReader,
) -> io::Result<bool> {
    let Some(position) = open.row.long else {
        known.long = None;
        return Ok(true);
    };
    let long = known.long.get_or_insert_with(|| Box::new(LongLine::restored(position)));
    match long.is_at(open.row.offset) {
        true => Ok(true),
        false => long.catch_up(&open.file, open.row.offset, reader.step_buffer()),
    }
}

/// Pieces that were read.
pub(super) struct FoundPieces<'b> {
    pub(super) pieces: Vec<Piece<'b>>,
    /// End of the file, if no complete line follows.
    pub(super) end: Option<u64>,
    /// True if only a slice of a line was scanned.
    pub(super) is_paused: bool,
}

impl FoundPieces<'_> {
    pub(super) const PAUSED: Self = Self { pieces: Vec::new(), end: None, is_paused: true };
}

/// Reads the next pieces of a file of `size` bytes, and advances its row.
pub(super) fn read_pieces<'b>(
    reader: &'b mut LineReader,
    edges: &mut EdgeSamples,
    open: &mut OpenFile,
    known: &mut KnownFile,
    size: u64,
) -> io::Result<FoundPieces<'b>> {
    let OpenFile { file, row, hasher, skipped_nuls, .. } = open;
    let mut hasher = hasher.as_mut();
    let scanned = if known.scanned > size { row.offset } else { known.scanned };
    let in_long_line = row.long.is_some();
    let position = ReadPosition { offset: row.offset, scanned, in_long_line, end: size };
    let long = known.long.as_deref();
    let (pieces, end) = match reader.read(file, &position, long, &mut known.scan)? {
        ReadOutcome::Paused => return Ok(FoundPieces::PAUSED),
        ReadOutcome::Nothing { scanned } => {
            known.scanned = scanned;
            (Vec::new(), Some(scanned))
        }
        ReadOutcome::Scanned(scanned) => {
            let nuls = total_length(scanned.runs);
            let hashed = (scanned.data, scanned.runs, scanned.size);
            let piece = add_scanned(row, edges, file, &mut known.long, *scanned)?;
            if let Some(hasher) = &mut hasher {
                let (data, runs, size) = hashed;
                hasher.extend_scanned(data, runs, size);
            }
            known.long.take_if(|_| row.long.is_none());
            known.scanned = row.offset;
            *skipped_nuls = skipped_nuls.saturating_add(nuls);
            (vec![piece], None)
        }
        ReadOutcome::Lines(lines) => {
            hasher.iter_mut().for_each(|hasher| hasher.extend(lines.raw));
            add_lines(row, edges, &lines);
            known.scanned = lines.end.unwrap_or(row.offset);
            (lines.pieces, lines.end)
        }
        ReadOutcome::Part(part) => {
            hasher.iter_mut().for_each(|hasher| hasher.extend(part.raw));
            let long = known.long.get_or_insert_with(|| Box::new(LongLine::new(row.offset)));
            let piece = add_part(row, edges, long, &part);
            if part.is_last {
                known.long = None;
            }
            known.scanned = row.offset;
            (vec![piece], None)
        }
    };
    Ok(FoundPieces { pieces, end, is_paused: false })
}

/// Updates the row and the known state after a read. Returns whether the file has another id than
/// its row: the row must then be stored, because a move is recognised by the id in it.
fn record_read(
    open: &mut OpenFile,
    known: &mut KnownFile,
    stamp: &Stamp,
    end: Option<u64>,
    has_pieces: bool,
) -> bool {
    let (row, id) = (&mut open.row, open.id);
    known.offset = row.offset;
    known.size = stamp.size.max(end.unwrap_or(row.offset));
    row.is_drained = end.is_some();
    if end.is_some_and(|end| end != row.stamp.size) {
        // The saved line is no longer complete.
        known.has_saved_line = false;
    }
    let has_new_id = known.has_row && row.stamp.id != id;
    row.stamp = Stamp { size: end.unwrap_or(stamp.size), id, ..*stamp };
    known.drained = end.map(|size| Stamp { size, ..*stamp });
    if has_pieces {
        row.saved_line = None;
        (known.has_row, known.has_saved_line) = (true, false);
    }
    has_new_id
}

/// Resets the known state of a file for a new generation; returns whether the old one had a row.
fn reset_known(
    known: &mut KnownFile,
    generation: GenerationId,
    row: &CheckpointRow,
    is_draining: bool,
) -> bool {
    known.generation = generation;
    (known.offset, known.scanned, known.size) = (row.offset, row.offset, row.stamp.size);
    (known.drained, known.scan) = (None, None);
    // While a replaced file is drained, the other one is still at its path.
    if !is_draining {
        known.replaced_by = None;
    }
    known.has_saved_line = false;
    std::mem::replace(&mut known.has_row, true)
}

/// The generation of a file that a new one replaces.
struct PreviousGeneration {
    origin: Origin,
    row: CheckpointRow,
    /// Largest known size of its file, in bytes.
    size: u64,
    long: Option<Box<LongLine>>,
    /// Incomplete last line as read from a handle.
    partial_line: PartialLine,
    /// True if its row was stored or handed over.
    had_row: bool,
}

impl PreviousGeneration {
    /// Starts the generation `next` with `row` in an open file, and returns the previous one.
    fn replace(
        open: &mut OpenFile,
        known: &mut KnownFile,
        key: FileKey,
        next: GenerationId,
        row: CheckpointRow,
    ) -> Self {
        let row = std::mem::replace(&mut open.row, row);
        open.hasher = None;
        let ReplacedFile { partial_line, size } = open.replaced.take().unwrap_or_default();
        let drained_size = known.drained.map_or(0, |drained| drained.size);
        let size = size.max(row.stamp.size).max(drained_size);
        let long = known.long.take();
        let had_row = reset_known(known, next, &open.row, open.drain.is_some());
        let origin = std::mem::replace(&mut open.origin, known.origin(key));
        Self { origin, row, size, long, partial_line, had_row }
    }

    /// Event about a file that was trimmed or rewritten and now contains the generation of `open`.
    fn replaced_event(&self, is_trimmed: bool, open: &OpenFile) -> AgentEvent {
        let replaced = Box::new(FileReplaced {
            path: self.origin.path.to_string_lossy().into_owned(),
            generation: open.origin.generation.0.clone(),
            previous_generation: self.origin.generation.0.clone(),
            offset: open.row.offset,
            previous_offset: self.row.offset,
            previous_size: self.size.max(self.row.offset),
            size: open.row.stamp.size,
        });
        match is_trimmed {
            true => AgentEvent::FileTrimmed(replaced),
            false => AgentEvent::FileRewritten(replaced),
        }
    }

    /// Hands over its incomplete last line, and the number of its unread bytes.
    fn end(self, intake: &mut dyn Intake) {
        let Self { origin, mut row, size, mut long, partial_line, had_row } = self;
        let GenerationEnd { piece, unread, events } =
            end_generation(&origin, &mut row, long.as_deref_mut(), partial_line, size);
        let pieces: Vec<_> = piece.iter().map(FinalPiece::piece).collect();
        if had_row || !pieces.is_empty() || !events.is_empty() {
            let mut chunk = Chunk::new(&origin, &pieces, None);
            (chunk.unread, chunk.events) = (unread, events);
            intake.take(chunk);
        }
    }
}
