//! Reading of an epoch's lines by their numbers.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use super::{
    StoredLine,
    epoch::Stem,
    erased_lines::ErasedLines,
    note_index::{RowRange, records},
};
use crate::{batch::seq_of, ledger::Range, regular_file::open_regular_file};

/// Number of sequence numbers that are read at once: later batches may have brought any of them.
const STEP: u64 = 1024;

/// Where the lines of a range are. It stays valid until the retention removes them.
#[derive(Debug)]
pub(super) struct RangeRead {
    pub(super) stem: Stem,
    pub(super) range: Range,
    /// Parts of the index whose notes may have brought them.
    pub(super) rows: Vec<RowRange>,
    /// End of the index. Erasures before it are in the lines.
    pub(super) index_end: u64,
}

/// Lines that one batch brought.
struct Brought {
    at: String,
    lines_at: u64,
    bytes: u64,
}

impl RangeRead {
    /// Reads lines up to `max_bytes`; see [`Storage::read`](super::Storage::read).
    pub(super) fn read(&self, machines: &Path, max_bytes: u64) -> io::Result<Vec<StoredLine>> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut first = self.range.first;
        let mut erased = ErasedLines::open(&self.stem.index(machines), self.index_end)?;
        // Between the rows there is nothing: a range may be far larger than the epoch.
        while let Some(start) = self.next_held(first) {
            let last = self.range.last.min(start.saturating_add(STEP - 1));
            for line in self.read_step(machines, Range { first: start, last }, &mut erased)? {
                bytes += line.line.len() as u64;
                found.push(line);
                if bytes >= max_bytes {
                    return Ok(found);
                }
            }
            first = last + 1;
        }
        Ok(found)
    }

    /// Returns the first number from `first` on that a row may have.
    fn next_held(&self, first: u64) -> Option<u64> {
        let rows = self.rows.iter().filter(|row| row.last >= first);
        let next = rows.map(|row| row.first.max(first)).min()?;
        (next <= self.range.last).then_some(next)
    }

    fn read_step(
        &self,
        machines: &Path,
        step: Range,
        erased: &mut ErasedLines,
    ) -> io::Result<Vec<StoredLine>> {
        let batches = self.batches(&self.stem.index(machines), step)?;
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let mut lines = match open_regular_file(&self.stem.lines(machines)) {
            // The retention removed them since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            lines => lines?,
        };
        let (mut found, mut text) = (BTreeMap::new(), Vec::new());
        for batch in batches {
            text.clear();
            lines.seek(SeekFrom::Start(batch.lines_at))?;
            // A repair may have found the file shorter than the note says.
            lines.by_ref().take(batch.bytes).read_to_end(&mut text)?;
            erased.replace(0, &mut text)?;
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                let Some(line) = line.strip_suffix(b"\n") else { continue };
                let Some(seq) = seq_of(line) else { continue };
                if (step.first..=step.last).contains(&seq) {
                    let (received_at, line) = (batch.at.clone(), line.to_vec());
                    found.entry(seq).or_insert(StoredLine { seq, received_at, line });
                }
            }
        }
        Ok(found.into_values().collect())
    }

    /// Returns the batches that may have brought lines with numbers of `step`.
    fn batches(&self, index: &Path, step: Range) -> io::Result<Vec<Brought>> {
        let mut index = open_regular_file(index)?;
        let mut batches = Vec::new();
        let overlaps = |first: u64, last: u64| first <= step.last && last >= step.first;
        for row in self.rows.iter().filter(|row| overlaps(row.first, row.last)) {
            let mut bytes = vec![0; usize::try_from(row.range.bytes).map_err(io::Error::other)?];
            index.seek(SeekFrom::Start(row.range.at))?;
            index.read_exact(&mut bytes)?;
            for note in records(&bytes).filter_map(|record| record.note()) {
                let change = &note.change;
                let is_new = change.new.iter().any(|new| overlaps(new.first, new.last));
                let is_late = change.filled.iter().any(|seq| overlaps(*seq, *seq));
                if note.bytes > 0 && (is_new || is_late) {
                    batches.push(Brought {
                        at: note.at,
                        lines_at: note.lines_at,
                        bytes: note.bytes,
                    });
                }
            }
        }
        Ok(batches)
    }
}
