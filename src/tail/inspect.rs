//! Holds a file against its row, and reads on.

use std::{io, time::Duration};

use siem_protocol::{AgentEvent, event::FileReplaced};

use super::{
    Lane, Tail,
    checkpoint::CheckpointRow,
    chunk::{Chunk, FileKey, Intake, Origin, Piece},
    decision::{Decision, FoundAt, decide},
    deleted::{FinalPiece, GenerationEnd, end_generation},
    files::KnownFile,
    fingerprint::{BORDERS, Borders, EdgeSamples, SAMPLE, Sample},
    is_absent,
    long_line::LongLine,
    open_files::{Drained, OpenFile, ReplacedFile},
    reader::{Lines, Part, ReadOutcome, ReadPosition},
};
use crate::platform::{
    Timestamp,
    file::{self, ReadAt, Stamp},
};

/// Within this time a file may change twice without its stamp showing it.
const RACY: Duration = Duration::from_millis(50);
/// How far ahead another clock may be.
const AHEAD: Duration = Duration::from_secs(600);

/// What a inspect at a file came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InspectOutcome {
    /// There may be more.
    More,
    /// All complete lines were handed over.
    Drained,
}

impl Tail {
    /// Hands over the next chunk of a file; whether there may be more of it.
    pub(super) fn inspect(&mut self, key: FileKey, lane: Lane, intake: &mut dyn Intake) -> bool {
        let Some(known) = self.files.get(key) else { return false };
        let path = known.path.clone();
        match self.try_inspect(key, intake) {
            Ok(looked) => {
                self.unreadable.clear(&path);
                if looked == InspectOutcome::Drained && lane == Lane::Live {
                    let changed = self.files.get(key).map(|known| known.changed);
                    let age = self.schedule.now().saturating_sub(changed.unwrap_or_default());
                    self.schedule.heat(key, age);
                }
                looked == InspectOutcome::More
            }
            Err(error) => {
                self.schedule.drop_settling(key);
                if self.active.get(&key).is_some_and(|active| active.drain.is_none()) {
                    self.active.remove(&key);
                }
                if is_absent(&error) {
                    self.schedule.sweep_soon();
                } else if file::is_out_of_files(&error) {
                    self.close_all();
                    self.schedule.sweep_soon();
                    self.unreadable.note(&path, &error, self.schedule.sweeps);
                } else {
                    self.unreadable.note(&path, &error, self.schedule.sweeps);
                }
                false
            }
        }
    }

    fn try_inspect(&mut self, key: FileKey, intake: &mut dyn Intake) -> io::Result<InspectOutcome> {
        let Some(known) = self.files.get(key) else { return Ok(InspectOutcome::Drained) };
        if known.is_gone {
            return Ok(self.drain_gone(key, intake));
        }
        let replaced_by = known.replaced_by;
        if let Some(active) = self.active.get(&key)
            && replaced_by.is_some()
            && active.id != replaced_by
        {
            // What was not read of the file that lay here before comes first.
            self.begin_drain(key);
            let drained = self.drain(key, intake);
            if drained == Drained::InPart {
                return Ok(InspectOutcome::More);
            }
            let rest = self.rest(key, drained);
            if !self.open_in_place(key, rest, intake)? {
                return Ok(InspectOutcome::Drained);
            }
        }
        if !self.active.contains_key(&key) && !self.open(key, intake)? {
            return Ok(InspectOutcome::Drained);
        }
        if let Some(looked) = self.read_on(key, intake)? {
            return Ok(looked);
        }
        let Some(active) = self.active.get(&key) else { return Ok(InspectOutcome::Drained) };
        let known_id = self.files.get(key).and_then(|known| known.id);
        if active.id != known_id && known_id.is_some() && active.id != replaced_by {
            // Another file lies here. Whether the one before lies elsewhere, a sweep must tell.
            self.active.remove(&key);
            self.schedule.sweep_now();
            return Ok(InspectOutcome::Drained);
        }
        self.start_new_generation(key, intake)
    }

    /// Opens the file that took the place of one that was read as far as may be; whether it is
    /// one.
    fn open_in_place(
        &mut self,
        key: FileKey,
        rest: Vec<u8>,
        intake: &dyn Intake,
    ) -> io::Result<bool> {
        let Some(old) = self.active.remove(&key) else { return Ok(true) };
        let before = ReplacedFile { rest, size: old.size() };
        let generation = old.origin.generation.clone();
        self.part(old);
        let opened = self.open(key, intake);
        if let (Ok(true), Some(active)) = (&opened, self.active.get_mut(&key)) {
            active.before = Some(before);
        } else if let Some(old) = self.take_retired(&generation) {
            // Nothing lies there by now: the one before is ended when a sweep says so.
            self.active.insert(key, old);
        }
        opened
    }

    /// Hands over the next chunk of an open file; `None` when it holds other bytes than its row
    /// says.
    pub(super) fn read_on(
        &mut self,
        key: FileKey,
        intake: &mut dyn Intake,
    ) -> io::Result<Option<InspectOutcome>> {
        let (Some(active), Some(known)) = (self.active.get_mut(&key), self.files.get_mut(key))
        else {
            return Ok(Some(InspectOutcome::Drained));
        };
        active.used = self.schedule.now();
        let OpenFile { file, id, opened, row, origin, .. } = active;
        let id = *id;
        // Asked before reading, so that a change while reading shows as one later.
        let stamp = match opened.take() {
            Some(stamp) => stamp,
            None => Stamp::of(file)?,
        };
        let sameness = row.compare(file, stamp.size, &mut self.ends)?;
        if decide(FoundAt::SamePath, sameness) != Decision::Continue {
            return Ok(None);
        }
        if row.long.is_some() != known.long.is_some() {
            known.long = match row.long {
                Some(at) => {
                    let line = LongLine::resume(at, row.offset, file, &mut self.reader)?;
                    Some(Box::new(line))
                }
                None => None,
            };
        }
        let scanned = if known.scanned > stamp.size { row.offset } else { known.scanned };
        let in_long_line = row.long.is_some();
        let position = ReadPosition { offset: row.offset, scanned, in_long_line, end: stamp.size };
        let mut pieces = Vec::new();
        let end = match self.reader.read(file, &position)? {
            ReadOutcome::Nothing { scanned } => {
                known.scanned = scanned;
                Some(scanned)
            }
            ReadOutcome::Lines(lines) => {
                take_lines(row, &mut self.ends, &lines);
                known.scanned = lines.end.unwrap_or(row.offset);
                pieces = lines.pieces;
                lines.end
            }
            ReadOutcome::Part(part) => {
                let long = known.long.get_or_insert_with(|| Box::new(LongLine::begin(row.offset)));
                pieces.push(take_part(row, &mut self.ends, long, &part));
                if part.is_last {
                    known.long = None;
                }
                known.scanned = row.offset;
                None
            }
        };
        self.schedule.drop_settling(key);
        active.before = None;
        known.offset = row.offset;
        known.size = stamp.size.max(end.unwrap_or(row.offset));
        row.is_drained = end.is_some();
        if end.is_some_and(|end| end != row.stamp.size) {
            // What is kept is no longer all of it.
            known.has_kept = false;
        }
        // A later move is recognised by the id that the row tells.
        let is_other_id = known.has_row && row.stamp.id != id;
        row.stamp = Stamp { size: end.unwrap_or(stamp.size), id, ..stamp };
        known.drained = end.map(|size| Stamp { size, ..stamp });
        if !pieces.is_empty() {
            row.kept = None;
            (known.has_row, known.has_kept) = (true, false);
        }
        if !pieces.is_empty() || is_other_id {
            let checkpoint = row.encode();
            intake.take(Chunk::new(origin, &pieces, Some(&checkpoint)));
            self.uncommitted.insert(key, (self.group, checkpoint));
        }
        if known.replaced_by == id {
            known.replaced_by = None;
        }
        let Some(end) = end else {
            self.files.set_id(key, id);
            return Ok(Some(InspectOutcome::More));
        };
        let age = age(&stamp, self.clock.now());
        known.is_racy = age < RACY;
        self.schedule.heat(key, age);
        if end > known.offset {
            self.schedule.watch_tail(key);
        } else {
            self.schedule.drop_tail(key);
        }
        self.files.set_id(key, id);
        Ok(Some(InspectOutcome::Drained))
    }

    /// Begins a new generation in an open file that holds other bytes than its row says, unless
    /// those may be on their way.
    pub(super) fn start_new_generation(
        &mut self,
        key: FileKey,
        intake: &mut dyn Intake,
    ) -> io::Result<InspectOutcome> {
        let (Some(active), Some(known)) = (self.active.get_mut(&key), self.files.get_mut(key))
        else {
            return Ok(InspectOutcome::Drained);
        };
        let OpenFile { file, row, .. } = &*active;
        let stamp = Stamp::of(file)?;
        let sameness = row.compare(file, stamp.size, &mut self.ends)?;
        let mut decision = decide(FoundAt::SamePath, sameness);
        if decision == Decision::Wait {
            let age = age(&stamp, self.clock.now());
            // Nobody writes a file anew that lies nowhere any more.
            if active.drain.is_none() && !self.schedule.has_settled(key, age) {
                known.size = stamp.size;
                return Ok(InspectOutcome::Drained);
            }
            decision = decide(FoundAt::SamePath, sameness.settled());
        }
        let (is_trimmed, new) = match decision {
            Decision::Continue | Decision::Move | Decision::Begin | Decision::Wait => {
                return Ok(InspectOutcome::More);
            }
            Decision::Trim { at } => (true, trimmed(row, at, file, &mut self.ends)?),
            Decision::Rewrite => (false, CheckpointRow::new(row.path.clone(), 0)),
        };
        let mut old_row = std::mem::replace(&mut active.row, new);
        let row = &mut active.row;
        row.stamp = Stamp { id: active.id, ..stamp };
        let ReplacedFile { rest, size: old_size } = active.before.take().unwrap_or_default();
        let drained_size = known.drained.map_or(0, |drained| drained.size);
        let old_size = old_size.max(old_row.stamp.size).max(drained_size);
        let mut long = known.long.take();
        if !is_trimmed {
            known.era += 1;
        }
        known.generation = (self.new_generation)();
        (known.offset, known.scanned, known.size) = (row.offset, row.offset, stamp.size);
        known.drained = None;
        // Of a file that is only read to its end, another still lies in its place.
        if active.drain.is_none() {
            known.replaced_by = None;
        }
        let had_row = std::mem::replace(&mut known.has_row, true);
        known.has_kept = false;
        let old = std::mem::replace(&mut active.origin, origin(key, known));

        let replaced = Box::new(FileReplaced {
            path: old.path.to_string_lossy().into_owned(),
            generation: known.generation.0.clone(),
            previous_generation: old.generation.0.clone(),
            offset: row.offset,
            previous_offset: old_row.offset,
            previous_size: old_size.max(old_row.offset),
            size: stamp.size,
        });
        let replaced = if is_trimmed {
            AgentEvent::FileTrimmed(replaced)
        } else {
            AgentEvent::FileRewritten(replaced)
        };
        let GenerationEnd { piece, unread, events } =
            end_generation(&old, &mut old_row, long.as_deref_mut(), rest, old_size);
        let pieces: Vec<_> = piece.iter().map(FinalPiece::piece).collect();
        if had_row || !pieces.is_empty() || !events.is_empty() {
            intake.take(Chunk::new(&old, &pieces, None).with_unread(unread).with_events(events));
        }
        active.previous.push((self.group, old.generation));
        let checkpoint = row.encode();
        let events = vec![replaced.into()];
        intake.take(Chunk::new(&active.origin, &[], Some(&checkpoint)).with_events(events));
        self.uncommitted.insert(key, (self.group, checkpoint));
        let id = active.id;
        self.files.set_id(key, id);
        Ok(InspectOutcome::More)
    }
}

/// How long ago a file's bytes were changed. What lies a little ahead was changed just now, by
/// another clock; what lies far ahead was changed before the clock went back.
pub(super) fn age(stamp: &Stamp, now: Timestamp) -> Duration {
    let modified = Timestamp(u64::try_from(stamp.modified / 1_000_000).unwrap_or_default());
    let ahead = modified.since(now);
    if ahead < AHEAD { now.since(modified) } else { ahead }
}

/// What is said of a file's lines.
pub(super) fn origin(key: FileKey, known: &KnownFile) -> Origin {
    let mut origin = Origin::new(key, known.path.to_path_buf(), known.generation.clone());
    origin.era = known.era;
    origin
}

/// The row of the generation that begins at the border `at` of another's file.
fn trimmed(
    row: &CheckpointRow,
    at: u64,
    file: &dyn ReadAt,
    ends: &mut EdgeSamples,
) -> io::Result<CheckpointRow> {
    let mut borders = row.borders.clone();
    borders.cut(at);
    let mut new = CheckpointRow { borders, ..CheckpointRow::new(row.path.clone(), at) };
    ends.read(file, at)?;
    seal(&mut new, ends);
    Ok(new)
}

/// Samples both ends again after the row moved on.
fn seal(row: &mut CheckpointRow, ends: &EdgeSamples) {
    row.fingerprint.head = Sample::of_head(&ends.head, row.borders.base());
    row.fingerprint.tail = Sample::of(&ends.tail);
    if row.first.len() < SAMPLE as u64 {
        row.first = Sample::of(&ends.head);
    }
}

fn take_lines(row: &mut CheckpointRow, ends: &mut EdgeSamples, lines: &Lines<'_>) {
    let surplus = lines.pieces.len().saturating_sub(BORDERS);
    if surplus > 0 {
        // All older borders would be pushed out; only their place matters.
        let first = lines.pieces.get(surplus).map_or(row.offset, |piece| offset_of(piece));
        row.borders = Borders::starting_at(first);
    }
    for piece in &lines.pieces[surplus..] {
        let Piece::Line { offset, size, .. } = *piece else { continue };
        let begin = usize::try_from(offset - row.offset).unwrap_or(usize::MAX);
        let size_here = usize::try_from(size).unwrap_or(usize::MAX);
        let raw = lines.raw.get(begin..begin.saturating_add(size_here)).unwrap_or_default();
        row.borders.push(&raw[raw.len().saturating_sub(SAMPLE)..], size);
    }
    row.offset += lines.raw.len() as u64;
    ends.extend(lines.raw);
    seal(row, ends);
}

fn offset_of(piece: &Piece<'_>) -> u64 {
    match piece {
        Piece::Line { offset, .. } | Piece::Part { offset, .. } | Piece::Lines { offset, .. } => {
            *offset
        }
        Piece::Skipped { .. } => 0,
    }
}

fn take_part<'b>(
    row: &mut CheckpointRow,
    ends: &mut EdgeSamples,
    long: &mut LongLine,
    part: &Part<'b>,
) -> Piece<'b> {
    let (number, whole) = long.add(part.bytes, part.is_last);
    let start = long.at().start;
    row.offset += part.raw.len() as u64;
    row.long = (!part.is_last).then(|| long.at());
    ends.extend(part.raw);
    if part.is_last {
        let size = row.offset - start;
        let len = usize::try_from(size).map_or(SAMPLE, |size| size.min(ends.tail.len()));
        row.borders.push(&ends.tail[ends.tail.len() - len..], size);
    }
    seal(row, ends);
    Piece::Part {
        offset: start,
        part: number,
        bytes: part.bytes,
        size: part.raw.len() as u64,
        whole,
        incomplete: false,
    }
}
