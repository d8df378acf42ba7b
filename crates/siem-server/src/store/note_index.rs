//! Rows over an epoch's index: which part of it has the notes and the values of which numbers.
//!
//! A receipt names the time at which a number arrived, and the first seal that covers it. Both are
//! in the notes; a batch that arrives again is compared with the values. The rows say which part of
//! the index to read; there is one for each [`NOTES`] notes or [`BYTES`] bytes.

use std::io;

use siem_protocol::{Digest, statement};

use super::{index_record::RecordParts, note::Note};
use crate::ledger::Range;

/// Number of notes that share a row.
const NOTES: u32 = 256;
/// Size in bytes from which a row is complete.
const BYTES: u64 = 256 << 10;

/// Rows over an epoch's index.
#[derive(Debug, Default)]
pub(super) struct NoteIndex {
    rows: Vec<Row>,
    /// Highest number that a seal covers.
    sealed: u64,
    /// Number of rows whose lines were removed.
    removed: usize,
}

/// Some consecutive records.
#[derive(Clone, Debug)]
struct Row {
    /// Position of the first one in the index.
    at: u64,
    /// Size in bytes.
    bytes: u64,
    notes: u32,
    /// Position of their first value among the values of the epoch, and the number of values.
    values_at: u64,
    values: u64,
    /// Lowest and highest number that they brought; the lowest is above the highest if none.
    first: u64,
    last: u64,
    /// Highest number that one of their seals covers.
    sealed: u64,
    /// Lowest position and highest end of their lines.
    lines_at: u64,
    lines_end: u64,
    /// Latest time of one of them, RFC 3339.
    last_at: String,
}

/// Oldest lines of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OldLines {
    /// Position of the first line behind them.
    pub(super) end: u64,
    /// Time of the last batch of them, RFC 3339.
    pub(super) last_at: String,
}

/// Part of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexRange {
    pub(super) at: u64,
    pub(super) bytes: u64,
}

/// Part of an index, with the lowest and the highest number that its batches may have brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowRange {
    pub(super) range: IndexRange,
    pub(super) first: u64,
    pub(super) last: u64,
}

/// Reads a part of the index.
pub(super) type ReadIndex<'a> = dyn FnMut(IndexRange) -> io::Result<Vec<u8>> + 'a;

impl NoteIndex {
    /// Creates the rows of an empty index.
    pub(super) const fn new() -> Self {
        Self { rows: Vec::new(), sealed: 0, removed: 0 }
    }

    /// Adds the record of `bytes` bytes at position `at`.
    pub(super) fn add(&mut self, at: u64, bytes: u64, note: &Note) {
        let is_full = |row: &Row| row.notes >= NOTES || row.bytes >= BYTES;
        if self.rows.len() == self.removed || self.rows.last().is_none_or(is_full) {
            let values_at = self.rows.last().map_or(0, |row| row.values_at + row.values);
            let (first, last) = (u64::MAX, 0);
            let (notes, values, sealed) = (0, 0, 0);
            let (lines_at, lines_end, last_at) = (note.lines_at, 0, String::new());
            if self.rows.is_empty() {
                // Most epochs have one row, and a vector has room for four.
                self.rows.reserve_exact(1);
            }
            self.rows.push(Row {
                at,
                bytes: 0,
                notes,
                values_at,
                values,
                first,
                last,
                sealed,
                lines_at,
                lines_end,
                last_at,
            });
        }
        let Some(row) = self.rows.last_mut() else { return };
        row.bytes += bytes;
        row.notes += 1;
        row.lines_at = row.lines_at.min(note.lines_at);
        row.lines_end = row.lines_end.max(note.lines_at + note.bytes);
        if row.last_at < note.at {
            row.last_at.clone_from(&note.at);
        }
        let filled = note.change.filled.iter().map(|seq| Range { first: *seq, last: *seq });
        for brought in note.change.new.iter().copied().chain(filled) {
            row.first = row.first.min(brought.first);
            row.last = row.last.max(brought.last);
        }
        row.values += note.change.new.iter().map(|new| new.count()).sum::<u64>();
        if let Some(seal) = note.seal() {
            row.sealed = row.sealed.max(seal.last_seq);
            self.sealed = self.sealed.max(seal.last_seq);
        }
        if note.removed {
            self.removed = self.rows.len();
        }
        let before = note.removed_before;
        // The last row has the note itself.
        while self.removed + 1 < self.rows.len() && self.rows[self.removed].lines_end <= before {
            self.removed += 1;
        }
    }

    /// Returns the oldest lines if all of their batches are from before a time, RFC 3339. They end
    /// where a row begins.
    pub(super) fn older(&self, time: &str) -> Option<OldLines> {
        let rows = &self.rows[self.removed..];
        let old = rows.iter().take_while(|row| row.last_at.as_str() < time).count();
        let old = old.min(rows.len().saturating_sub(1));
        // After a repair later lines may be at lower positions.
        let end = rows[old..].iter().map(|row| row.lines_at).min()?;
        let last_at = rows[..old].iter().map(|row| row.last_at.clone()).max()?;
        Some(OldLines { end, last_at })
    }

    /// Returns the spans of the numbers that rows brought whose lines were removed, from row `from` on, and
    /// the number of all these rows.
    pub(super) fn removed_spans(&self, from: usize) -> (Vec<Range>, usize) {
        let rows = self.rows.get(from..self.removed).unwrap_or_default().iter();
        let spans = rows.filter(|row| row.first <= row.last);
        (spans.map(|row| Range { first: row.first, last: row.last }).collect(), self.removed)
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
        read: &mut ReadIndex<'_>,
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
    pub(super) fn seal_of(&self, seq: u64, read: &mut ReadIndex<'_>) -> io::Result<Option<Digest>> {
        let Some(row) = self.rows.iter().find(|row| row.sealed >= seq) else { return Ok(None) };
        let covers = |note: &Note| note.seal().is_some_and(|seal| seal.last_seq >= seq);
        let note = find(row, read, covers)?;
        Ok(note.and_then(|note| note.seal().map(|seal| statement::digest(&seal.note))))
    }

    /// Returns the parts of the index whose notes may have brought numbers of `range`.
    pub(super) fn ranges(&self, range: Range) -> Vec<RowRange> {
        let rows = self.rows[self.removed..].iter();
        let rows = rows.filter(|row| row.first <= range.last && row.last >= range.first);
        rows.map(|row| RowRange { range: row.range(), first: row.first, last: row.last }).collect()
    }

    /// Reads `count` values of the chain from position `at`.
    pub(super) fn values(
        &self,
        at: u64,
        count: u64,
        read: &mut ReadIndex<'_>,
    ) -> io::Result<Vec<Digest>> {
        let end = at + count;
        let mut values = Vec::new();
        let start = self.rows.partition_point(|row| row.values_at + row.values <= at);
        for row in self.rows[start..].iter().take_while(|row| row.values_at < end) {
            let bytes = read(row.range())?;
            let mut place = row.values_at;
            for record in records(&bytes) {
                let (digests, _) = record.values.as_chunks::<32>();
                for digest in digests {
                    if (at..end).contains(&place) {
                        values.push(Digest::from_bytes(*digest));
                    }
                    place += 1;
                }
            }
        }
        if values.len() as u64 == count {
            return Ok(values);
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the index of the epoch is damaged"))
    }
}

impl Row {
    fn range(&self) -> IndexRange {
        IndexRange { at: self.at, bytes: self.bytes }
    }
}

/// Records in a part of an index.
pub(super) fn records(mut bytes: &[u8]) -> impl Iterator<Item = RecordParts<'_>> {
    std::iter::from_fn(move || RecordParts::take(&mut bytes))
}

/// Returns the first note of a row that meets the condition.
fn find(
    row: &Row,
    read: &mut ReadIndex<'_>,
    condition: impl Fn(&Note) -> bool,
) -> io::Result<Option<Note>> {
    let bytes = read(row.range())?;
    Ok(records(&bytes).filter_map(|record| record.note()).find(condition))
}
