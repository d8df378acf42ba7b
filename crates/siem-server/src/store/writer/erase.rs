//! Erasure of lines and removal of epochs.

use std::{collections::BTreeMap, io};

use tokio::sync::oneshot;

use super::Writer;
use crate::store::{
    catalog::Key,
    erase::EraseLines,
    frame::{FilePositions, Frame, Lines},
    index_record,
    note::Note,
    starts::GroupWriter,
};

impl Writer {
    /// Replaces lines by tombstones in one durable step.
    pub(super) fn erase(&mut self, erase: &EraseLines) -> io::Result<()> {
        let (place, lines_at) = self.catalog.positions(&erase.key);
        let at = erase.at.clone();
        let note = Note { at, lines_at, erased: Some(erase.note()), ..Note::default() };
        let replaces = erase.lines.iter().map(|line| line.place()).collect();
        let text = erase.lines.iter().flat_map(|line| line.tombstone(&erase.erasure)).collect();
        let place = FilePositions { replaces, ..place };
        self.write(&erase.key, &note, place, text)
    }

    /// Removes the lines of epochs in one durable step, and keeps their ledgers. An epoch of another
    /// size than given with its key has grown since it was chosen: it stays. Returns the others.
    pub(super) fn remove(&mut self, epochs: &[(Key, u64)], at: &str) -> io::Result<Vec<Key>> {
        // A replay would write older frames into files that are removed already.
        let removed = self.rotate();
        removed.blocking_recv().map_err(io::Error::other)??;
        self.finish_earlier_work()?;
        let mut staged = BTreeMap::new();
        for (key, bytes) in epochs {
            let (place, lines_end) = self.catalog.positions(key);
            if lines_end - self.catalog.lines_from(key) != *bytes
                || self.catalog.ledger(key).is_none()
            {
                continue;
            }
            let place = FilePositions { lines_at: 0, removes: true, ..place };
            let note = Note { at: at.to_owned(), removed: true, ..Note::default() };
            // No line of the epoch is left that another could repeat.
            let starts = GroupWriter::default().finish(0, 0)?;
            let record = index_record::encode(&note.line(), &[], &starts)?;
            let frame = Frame { place, record, lines: Lines::Read(Vec::new()) };
            staged.insert(key, (note, frame));
        }
        self.write_all(staged)
    }

    /// Removes the lines of epochs before a position, and keeps their ledgers.
    pub(super) fn remove_before(&mut self, ends: &[(Key, u64)], at: &str) -> io::Result<()> {
        // A replay would write older frames where lines are removed already.
        let removed = self.rotate();
        removed.blocking_recv().map_err(io::Error::other)??;
        self.finish_earlier_work()?;
        let mut staged = BTreeMap::new();
        for (key, end) in ends {
            let (place, lines_at) = self.catalog.positions(key);
            // The epoch may have been removed since.
            if *end > self.catalog.lines_from(key) && *end <= lines_at {
                let place = FilePositions { removes_before: *end, ..place };
                let at = at.to_owned();
                let note = Note { at, lines_at, removed_before: *end, ..Note::default() };
                let record = index_record::encode(&note.line(), &[], &[])?;
                let frame = Frame { place, record, lines: Lines::Read(Vec::new()) };
                staged.insert(key, (note, frame));
            }
        }
        self.write_all(staged).map(drop)
    }

    /// Writes a note for each of some epochs in one durable step, and returns the epochs.
    fn write_all(&mut self, staged: BTreeMap<&Key, (Note, Frame)>) -> io::Result<Vec<Key>> {
        if staged.is_empty() {
            return Ok(Vec::new());
        }
        self.journal.append(staged.values().map(|(_, frame)| frame))?;
        let mut keys = Vec::with_capacity(staged.len());
        for (key, (note, frame)) in staged {
            self.catalog.record(key, &note, frame.record.len() as u64);
            self.applier.add(frame);
            keys.push(key.clone());
        }
        Ok(keys)
    }

    fn write(
        &mut self,
        key: &Key,
        note: &Note,
        place: FilePositions,
        text: Vec<u8>,
    ) -> io::Result<()> {
        self.finish_earlier_work()?;
        if self.catalog.ledger(key).is_none() {
            return Ok(());
        }
        let record = index_record::encode(&note.line(), &[], &[])?;
        let frame = Frame { place, record, lines: Lines::Read(text) };
        self.journal.append(std::iter::once(&frame))?;
        self.catalog.record(key, note, frame.record.len() as u64);
        self.applier.add(frame);
        // Tombstones are as long as the lines: the journal of a large erasure would need as much space.
        if self.journal.length() >= self.journal_bytes {
            self.seal();
        }
        Ok(())
    }

    /// Completes the journal, and returns the channel for the result of its deletion and of those
    /// before.
    pub(super) fn rotate(&mut self) -> oneshot::Receiver<io::Result<()>> {
        let (done, deleted) = oneshot::channel();
        match self.applier.flush().and_then(|()| self.journal.seal()) {
            Ok(path) => self.applier.sealed_with(path, done),
            Err(error) => drop(done.send(Err(error))),
        }
        deleted
    }
}
