//! Index of an epoch's notes by the numbers that they brought and the seals that they hold.
//!
//! A receipt names the time at which a number arrived, and the first seal that covers it. Both are
//! in the notes; the index says which few of them to read, and takes a row for each [`NOTES`] notes.

use std::io;

use siem_protocol::{Digest, statement};

use super::note::Note;

/// Number of notes that share a row.
const NOTES: u32 = 256;

/// Index of an epoch's notes.
#[derive(Debug, Default)]
pub(super) struct NoteIndex {
    rows: Vec<Row>,
    /// Highest number that a seal covers.
    sealed: u64,
}

/// Some consecutive notes.
#[derive(Debug)]
struct Row {
    /// Position of the first one in the file of notes.
    at: u64,
    /// Size in bytes.
    bytes: u64,
    notes: u32,
    /// Lowest and highest number that they brought; the lowest is above the highest if none.
    first: u64,
    last: u64,
    /// Highest number that one of their seals covers.
    sealed: u64,
}

/// Part of the file of notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotesRange {
    pub(super) at: u64,
    pub(super) bytes: u64,
}

/// Reads a part of the file of notes.
pub(super) type ReadNotes<'a> = dyn FnMut(NotesRange) -> io::Result<Vec<u8>> + 'a;

impl NoteIndex {
    /// Adds the note of `bytes` bytes at position `at`.
    pub(super) fn add(&mut self, at: u64, bytes: u64, note: &Note) {
        if self.rows.last().is_none_or(|row| row.notes >= NOTES) {
            let empty = Row { at, bytes: 0, notes: 0, first: u64::MAX, last: 0, sealed: 0 };
            self.rows.push(empty);
        }
        let Some(row) = self.rows.last_mut() else { return };
        row.bytes += bytes;
        row.notes += 1;
        for new in &note.change.new {
            row.first = row.first.min(new.first);
            row.last = row.last.max(new.last);
        }
        if let Some(seal) = note.seal() {
            row.sealed = row.sealed.max(seal.last_seq);
            self.sealed = self.sealed.max(seal.last_seq);
        }
    }

    /// Returns the highest number that a stored seal covers; `None` if there is no seal.
    pub(super) fn sealed(&self) -> Option<u64> {
        (self.sealed > 0).then_some(self.sealed)
    }

    /// Reports whether a stored seal covers `seq`.
    pub(super) fn is_sealed(&self, seq: u64) -> bool {
        seq <= self.sealed
    }

    /// Returns the time of the first note that brought `seq`.
    pub(super) fn received_at(
        &self,
        seq: u64,
        read: &mut ReadNotes<'_>,
    ) -> io::Result<Option<String>> {
        for row in self.rows.iter().filter(|row| (row.first..=row.last).contains(&seq)) {
            let brings = |note: &Note| {
                note.change.new.iter().any(|new| (new.first..=new.last).contains(&seq))
            };
            if let Some(note) = find(row, read, brings)? {
                return Ok(Some(note.at));
            }
        }
        Ok(None)
    }

    /// Returns the digest of the first seal that covers `seq`.
    pub(super) fn seal_of(&self, seq: u64, read: &mut ReadNotes<'_>) -> io::Result<Option<Digest>> {
        let Some(row) = self.rows.iter().find(|row| row.sealed >= seq) else { return Ok(None) };
        let covers = |note: &Note| note.seal().is_some_and(|seal| seal.last_seq >= seq);
        let note = find(row, read, covers)?;
        Ok(note.and_then(|note| note.seal().map(|seal| statement::digest(&seal.note))))
    }
}

/// Returns the first note of a row that meets the condition.
fn find(
    row: &Row,
    read: &mut ReadNotes<'_>,
    condition: impl Fn(&Note) -> bool,
) -> io::Result<Option<Note>> {
    let text = read(NotesRange { at: row.at, bytes: row.bytes })?;
    // Damaged notes were reported when the store was opened.
    let notes =
        text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let mut notes = notes.filter(condition);
    Ok(notes.next())
}
