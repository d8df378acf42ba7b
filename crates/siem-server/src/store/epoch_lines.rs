//! Lines of an epoch as its files have them, for what the operator wants to be found, kept or erased.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use super::{
    EpochKey,
    epoch::Stem,
    index_record::scan,
    note::{ErasureNote, Note},
};
use crate::{batch::seq_of, ledger::Range, regular_file::open_regular_file};

/// Where the lines of an epoch are, and who sent them.
#[derive(Debug)]
pub(crate) struct EpochLines {
    path: PathBuf,
    name: String,
    key: Option<EpochKey>,
    runs: Vec<Run>,
    /// Position of the first line, if the index was read from a later record on.
    base: u64,
    /// End of the last record of the index.
    index_end: u64,
    /// Numbers that were erased, by the id of the erasure.
    erased: BTreeMap<String, Vec<Range>>,
    users: Vec<String>,
}

/// Lines of one batch.
#[derive(Debug)]
struct Run {
    at: u64,
    bytes: u64,
    /// Index of the user who sent it.
    user: usize,
}

/// A line of an epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EpochLine<'a> {
    /// User who sent it.
    pub(crate) user: &'a str,
    /// Position in the file of lines.
    pub(crate) at: u64,
    pub(crate) seq: u64,
    /// Its bytes, without the newline.
    pub(crate) text: &'a [u8],
}

/// Ends the last runs where a note begins, and covers bytes before it of which no note is left.
fn continue_runs(runs: &mut Vec<Run>, base: u64, lines_at: u64, user: usize) {
    // A repair found the file shorter than the notes say.
    while let Some(run) = runs.pop_if(|run| run.at + run.bytes > lines_at) {
        if run.at < lines_at {
            runs.push(Run { bytes: lines_at - run.at, ..run });
        }
    }
    let end = runs.last().map_or(base, |run| run.at + run.bytes);
    if end < lines_at {
        runs.push(Run { at: end, bytes: lines_at - end, user });
    }
}

/// Reports whether a line is a tombstone.
fn is_tombstone(seq: u64, line: &[u8]) -> bool {
    let starts =
        [format!(r#"{{"seq":{seq},"kind":"erased""#), format!(r#"{{"seq":{seq},"kind":"-"}}"#)];
    starts.iter().any(|start| line.starts_with(start.as_bytes()))
}

impl EpochLines {
    /// Reads the records of an epoch's index from position `from` on.
    pub(super) fn read(machines: &Path, stem: &Stem, from: u64) -> io::Result<Self> {
        let index = open_regular_file(&stem.index(machines))?;
        let mut epoch = Self {
            path: stem.lines(machines),
            name: stem.name(),
            key: None,
            runs: Vec::new(),
            base: 0,
            index_end: from,
            erased: BTreeMap::new(),
            users: vec![String::new()],
        };
        let (mut is_first, mut is_known) = (true, true);
        let end = scan(&index, from, |_, _, text| {
            // What cannot be read was reported when the store was opened.
            let Ok(note) = serde_json::from_slice::<Note>(text) else { return Ok(()) };
            if std::mem::take(&mut is_first) && from > 0 {
                epoch.base = note.lines_at;
            }
            is_known &=
                from == 0 || note.bytes == 0 || epoch.key.is_some() || note.sender.is_some();
            epoch.add(note);
            Ok(())
        })?;
        if !is_known {
            // A note of an earlier release, which names the sender only where it changes.
            return Self::read(machines, stem, 0);
        }
        epoch.index_end = end.end;
        Ok(epoch)
    }

    fn add(&mut self, note: Note) {
        if note.removed {
            self.runs.clear();
            self.base = 0;
        }
        if note.removed_before > 0 {
            self.runs.retain(|run| run.at >= note.removed_before);
            // The bytes before a later record that was read first were compared before.
            self.base = self.base.max(note.removed_before);
        }
        let last = self.runs.last().map_or(0, |run| run.user);
        continue_runs(&mut self.runs, self.base, note.lines_at, last);
        let user = match note.sender {
            Some(sender) => {
                let (machine, user) = (sender.identity.machine_id, sender.identity.user);
                self.key.get_or_insert(EpochKey { machine, epoch: sender.epoch });
                self.users.iter().position(|known| *known == user).unwrap_or_else(|| {
                    self.users.push(user);
                    self.users.len() - 1
                })
            }
            None => last,
        };
        if let Some(ErasureNote { id, lines }) = note.erased {
            let ranges = self.erased.entry(id).or_default();
            lines.iter().for_each(|line| push(ranges, line.seq));
        }
        if note.bytes > 0 {
            self.runs.push(Run { at: note.lines_at, bytes: note.bytes, user });
        }
    }

    /// Key of the epoch; `None` if none of its batches was acknowledged, or none of those that were
    /// read stored a line.
    pub(crate) fn key(&self) -> Option<EpochKey> {
        self.key.clone()
    }

    /// Name of its files, unique in the store.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// End of the last record that was read.
    pub(crate) fn index_end(&self) -> u64 {
        self.index_end
    }

    /// Users who sent it; one of them is the empty name.
    pub(crate) fn users(&self) -> impl Iterator<Item = &str> {
        self.users.iter().map(String::as_str)
    }

    /// Path of the lines that a repair moved aside.
    pub(crate) fn surplus(&self) -> PathBuf {
        self.path.with_extension("surplus")
    }

    /// Numbers that were erased under an id, in ascending order.
    pub(crate) fn erased_under(&self, id: &str) -> Vec<Range> {
        merge(self.erased.get(id).into_iter().flatten())
    }

    /// Ids of the erasures, and how many numbers each erased.
    pub(crate) fn erasures(&self) -> impl Iterator<Item = (&str, u64)> {
        let count = |ranges: &Vec<Range>| merge(ranges.iter()).iter().map(|it| it.count()).sum();
        self.erased.iter().map(move |(id, ranges)| (id.as_str(), count(ranges)))
    }

    /// Passes the lines to `show`, in the order of their positions, without those that were erased.
    pub(crate) fn each_line<E: From<io::Error>>(
        &self,
        mut show: impl FnMut(EpochLine<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.runs.is_empty() {
            return Ok(());
        }
        let erased = merge(self.erased.values().flatten());
        let mut file = open_regular_file(&self.path)?;
        let mut text = Vec::new();
        for run in &self.runs {
            text.clear();
            file.seek(SeekFrom::Start(run.at))?;
            file.by_ref().take(run.bytes).read_to_end(&mut text)?;
            let mut at = run.at;
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                let start = at;
                at += line.len() as u64;
                // Damage may have left a part of a line.
                let Some(text) = line.strip_suffix(b"\n") else { continue };
                // A line that was lost and sent again after its erasure is no tombstone.
                let is_left = |seq: &u64| !contains(&erased, *seq) || !is_tombstone(*seq, text);
                if let Some(seq) = seq_of(text).filter(is_left) {
                    show(EpochLine { user: &self.users[run.user], at: start, seq, text })?;
                }
            }
        }
        Ok(())
    }
}

fn push(ranges: &mut Vec<Range>, seq: u64) {
    match ranges.last_mut() {
        Some(range) if range.last + 1 == seq => range.last = seq,
        _ => ranges.push(Range { first: seq, last: seq }),
    }
}

/// Returns disjoint ranges in ascending order.
fn merge<'a>(ranges: impl Iterator<Item = &'a Range>) -> Vec<Range> {
    let mut sorted: Vec<Range> = ranges.copied().collect();
    sorted.sort_unstable_by_key(|range| range.first);
    let mut merged: Vec<Range> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Reports whether one of the ranges, in ascending order, contains a number.
fn contains(ranges: &[Range], seq: u64) -> bool {
    let behind = ranges.partition_point(|range| range.first <= seq);
    behind.checked_sub(1).is_some_and(|at| seq <= ranges[at].last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_bytes_without_a_note_and_end_where_a_repair_cut() {
        let run = |at, bytes| Run { at, bytes, user: 0 };
        let mut runs = vec![run(0, 10), run(10, 5), run(15, 5)];
        continue_runs(&mut runs, 0, 12, 0);
        let found = |runs: &[Run]| runs.iter().map(|it| (it.at, it.bytes)).collect::<Vec<_>>();
        assert_eq!(found(&runs), [(0, 10), (10, 2)]);
        continue_runs(&mut runs, 0, 20, 0);
        assert_eq!(found(&runs), [(0, 10), (10, 2), (12, 8)]);
        continue_runs(&mut runs, 0, 20, 0);
        assert_eq!(runs.len(), 3);
        let mut later = Vec::new();
        continue_runs(&mut later, 20, 20, 0);
        assert_eq!(found(&later), []);
    }

    #[test]
    fn removal_in_the_first_record_covers_no_earlier_bytes() {
        let mut epoch = EpochLines {
            path: PathBuf::new(),
            name: String::new(),
            key: None,
            runs: Vec::new(),
            base: 1000,
            index_end: 0,
            erased: BTreeMap::new(),
            users: vec![String::new()],
        };
        epoch.add(Note { lines_at: 1000, removed_before: 400, ..Note::default() });
        epoch.add(Note { lines_at: 1000, bytes: 50, ..Note::default() });
        let runs: Vec<_> = epoch.runs.iter().map(|run| (run.at, run.bytes)).collect();
        assert_eq!(runs, [(1000, 50)]);
    }

    #[test]
    fn merged_ranges_contain_the_same_numbers() {
        let range = |first, last| Range { first, last };
        let ranges = [range(7, 9), range(1, 2), range(3, 3), range(8, 12), range(20, 20)];
        let merged = merge(ranges.iter());
        assert_eq!(merged, [range(1, 3), range(7, 12), range(20, 20)]);
        for seq in 0..30 {
            let expected = ranges.iter().any(|it| (it.first..=it.last).contains(&seq));
            assert_eq!(contains(&merged, seq), expected, "{seq}");
        }
    }
}
