//! What the records of an epoch say about lines of earlier records: where they are no longer, and why.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io,
};

use siem_protocol::{DeadLettered, Digest};

use crate::{
    ledger::Range,
    store::{catalog::Key, erase::LineToErase, index_record::scan, note::Note},
};

/// First reading of an index, without the values of the chain.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Machine and epoch; `None` if no record has a sender.
    pub(super) key: Option<Key>,
    /// End of the last record.
    pub(super) end: u64,
    /// Number of places with something other than a record.
    pub(super) damaged: usize,
    /// Numbers whose values of the chain are needed by later records.
    pub(super) needed: BTreeSet<u64>,
    cuts: Vec<Cut>,
    /// Lost numbers, each with the position of the record that says so.
    lost: Vec<(u64, Range)>,
    erasures: HashMap<u64, Vec<Erasure>>,
}

/// Lines of earlier records that are no longer there, by the record at a position and those behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    at: u64,
    /// There are none.
    is_all: bool,
    /// There are none before this position.
    before: u64,
    /// There are none from this position on.
    from: u64,
}

/// Erasure of a line.
#[derive(Debug)]
struct Erasure {
    /// Position of its record.
    at: u64,
    id: String,
    digest: Digest,
}

impl Cut {
    const NONE: Self = Self { at: u64::MAX, is_all: false, before: 0, from: u64::MAX };

    /// Returns the part of the lines from `from` to `to` that is there.
    pub(super) fn visible(&self, from: u64, to: u64) -> (u64, u64) {
        if self.is_all {
            return (from, from);
        }
        let start = from.max(self.before).min(to);
        (start, to.min(self.from).max(start))
    }

    /// Reports whether lines from this position on were removed by the retention.
    pub(super) fn removes(&self, from: u64) -> bool {
        self.is_all || from < self.before
    }
}

impl History {
    /// Reads an index.
    pub(super) fn read(index: &File) -> io::Result<Self> {
        let mut history = Self::default();
        let mut lines_end = 0;
        let end = scan(index, 0, |at, _, text| {
            match serde_json::from_slice(text) {
                Ok(note) => history.add(at, note, &mut lines_end),
                Err(_) => history.damaged += 1,
            }
            Ok(())
        })?;
        history.end = end.end;
        history.damaged += end.damaged.len();
        history.lost.sort_by_key(|(_, range)| range.first);
        let mut behind = Cut::NONE;
        for cut in history.cuts.iter_mut().rev() {
            cut.is_all |= behind.is_all;
            cut.before = cut.before.max(behind.before);
            cut.from = cut.from.min(behind.from);
            behind = *cut;
        }
        Ok(history)
    }

    fn add(&mut self, at: u64, note: Note, lines_end: &mut u64) {
        if self.key.is_none() {
            let key = note.sender.as_ref();
            self.key = key.map(|it| (it.identity.machine_id.clone(), it.epoch.clone()));
        }
        let is_shorter = !note.removed && note.lines_at < *lines_end;
        if note.removed || note.removed_before > 0 || is_shorter {
            let from = if is_shorter { note.lines_at } else { u64::MAX };
            self.cuts.push(Cut { at, is_all: note.removed, before: note.removed_before, from });
        }
        *lines_end = note.lines_at.saturating_add(note.bytes);
        if note.removed {
            // Nothing that was lost before would be there now.
            self.lost.clear();
        }
        for lost in &note.change.lost {
            self.needed.insert(lost.first.saturating_sub(1));
            self.lost.push((at, *lost));
        }
        if let Some(seal) = note.seal()
            && note.change.new.last().is_none_or(|new| new.last != seal.last_seq)
        {
            self.needed.insert(seal.last_seq);
        }
        for erased in note.erased.into_iter() {
            for DeadLettered { seq, line_sha256: digest } in erased.lines {
                let id = erased.id.clone();
                self.erasures.entry(seq).or_default().push(Erasure { at, id, digest });
            }
        }
    }

    /// Returns which lines of the record at a position are left.
    pub(super) fn cut(&self, at: u64) -> Cut {
        let behind = self.cuts.partition_point(|cut| cut.at <= at);
        self.cuts.get(behind).copied().unwrap_or(Cut::NONE)
    }

    /// Reports whether a number that the record at a position brought was lost later.
    pub(super) fn is_lost(&self, at: u64, seq: u64) -> bool {
        let begun = self.lost.partition_point(|(_, range)| range.first <= seq);
        self.lost[..begun].iter().rev().any(|(by, range)| *by > at && seq <= range.last)
    }

    /// Ranges of numbers that were lost once.
    pub(super) fn lost(&self) -> impl Iterator<Item = Range> {
        self.lost.iter().map(|(_, range)| *range)
    }

    /// Reports whether any line was erased.
    pub(super) fn has_erasures(&self) -> bool {
        !self.erasures.is_empty()
    }

    /// Reports whether a number that the record at a position brought was erased later.
    pub(super) fn is_erased(&self, at: u64, seq: u64) -> bool {
        self.erasures_of(at, seq).next().is_some()
    }

    /// Returns the hash of the line of which `text` is the tombstone, if the record at a position brought it.
    pub(super) fn tombstone(&self, at: u64, seq: u64, text: &[u8]) -> Option<Digest> {
        let mut erasures = self.erasures_of(at, seq);
        let is_it = |erasure: &&Erasure| {
            let line = LineToErase::noted(seq, text.len() as u64, erasure.digest);
            line.tombstone(&erasure.id).strip_suffix(b"\n") == Some(text)
        };
        erasures.find(is_it).map(|erasure| erasure.digest)
    }

    fn erasures_of(&self, at: u64, seq: u64) -> impl Iterator<Item = &Erasure> {
        self.erasures.get(&seq).into_iter().flatten().filter(move |erasure| erasure.at > at)
    }
}
