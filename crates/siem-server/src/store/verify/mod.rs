//! Verification of the stored entries of an epoch.
//!
//! The index has the value of the chain, `h(n)`, of each number. With `h(n - 1)` it determines the hash of the
//! line: of the one that is stored, of one that was erased, which its record names, or of a dead-lettered one.
//! The seals of a device are signatures over values of the chain. So a changed line differs from the index, and
//! an index that was changed with it differs from the seals.
//!
//! Lines are read in the order of the records, and memory grows with the largest batch, and the number of gaps
//! and erased lines.

mod history;
mod lines;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use siem_protocol::{
    Digest,
    statement::{Seal, Statement as _},
};

use self::{
    history::{Cut, History},
    lines::LineFile,
};
use super::{
    ReadError,
    catalog::{Key, stem},
    epoch::Stem,
    erased_lines::number,
    index_record::{Rest, scan_whole},
    note::{DeviceNote, Note, SealNote},
    read_only::{check_version, epochs_with},
    starts::Group,
};
use crate::{
    ledger::{ChainValues, Extents, Ledger, Range},
    regular_file::open_regular_file,
    trust::EpochOwner,
};

/// Most ranges of damaged entries that are named, of an epoch.
const NAMED: usize = 1000;
/// How often an epoch that a receiver writes to is verified before what was found counts.
const ATTEMPTS: u32 = 5;
/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// What is wrong with entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryProblem {
    /// The line is not the one that was received.
    Changed,
    /// There is no line, and nothing says that it was removed.
    Missing,
    /// A start of the receiver found no line, and none arrived since.
    Lost,
    /// It was erased, and its text is still there.
    NotErased,
    /// The index is damaged, so that the line cannot be compared.
    Unverifiable,
    /// The chain was broken when the entry arrived.
    ChainBroken,
    /// A seal says something else than the index, or its signature is wrong.
    SealBroken,
}

/// Entries and files of an epoch, as verified.
#[derive(Debug, Default)]
pub(crate) struct VerifiedEpoch {
    /// Machine and epoch, or the names of their files.
    pub(crate) key: Key,
    /// Number of entries whose lines are there, tombstones included.
    pub(crate) entries: u64,
    /// Size of their lines in bytes.
    pub(crate) bytes: u64,
    /// Number of those that are tombstones.
    pub(crate) erased: u64,
    /// Number of those that valid seals cover.
    pub(crate) sealed: u64,
    /// Devices that sent it, each with the machine and user of the batch.
    pub(crate) devices: BTreeSet<EpochOwner>,
    /// Number of numbers that never arrived, or were lost.
    pub(crate) gaps: u64,
    /// Number of damaged entries.
    pub(crate) damaged: u64,
    /// The first of them.
    pub(crate) named: Vec<(Range, EntryProblem)>,
    /// Damaged files.
    pub(crate) files: Vec<(PathBuf, String)>,
}

/// Verifies the epochs of a data directory, and changes nothing. A receiver may write to it.
pub(crate) fn verify_epochs(
    data: &Path,
    mut show: impl FnMut(VerifiedEpoch),
) -> Result<(), ReadError> {
    check_version(data)?;
    let machines = data.join("machines");
    let indexes = epochs_with(&machines, "index")?;
    for stem in &indexes {
        show(verify_epoch(&machines, stem));
    }
    for stem in epochs_with(&machines, "ndjson")?.difference(&indexes) {
        if fs::metadata(stem.lines(&machines)).is_ok_and(|lines| lines.len() > 0) {
            let text = "is missing, but there are lines of its epoch".to_owned();
            let files = vec![(stem.index(&machines), text)];
            show(VerifiedEpoch { key: names(stem), files, ..VerifiedEpoch::default() });
        }
    }
    Ok(())
}

fn names(stem: &Stem) -> Key {
    (stem.machine.clone(), stem.epoch.clone())
}

/// Verifies an epoch, again if its files changed meanwhile: lines and index are written one after the other.
fn verify_epoch(machines: &Path, stem: &Stem) -> VerifiedEpoch {
    let check = || {
        Check::run(machines, stem).unwrap_or_else(|error| VerifiedEpoch {
            key: names(stem),
            files: vec![(stem.index(machines), format!("cannot be verified: {error}"))],
            ..VerifiedEpoch::default()
        })
    };
    until_unchanged(|| state(machines, stem), check, || thread::sleep(PAUSE))
}

/// Repeats a check that found damage in files that changed meanwhile.
fn until_unchanged(
    state: impl Fn() -> EpochState,
    mut check: impl FnMut() -> VerifiedEpoch,
    pause: impl Fn(),
) -> VerifiedEpoch {
    let mut attempt = 1;
    loop {
        let before = state();
        let verified = check();
        let is_whole = verified.damaged == 0 && verified.files.is_empty();
        if is_whole || attempt == ATTEMPTS || state() == before {
            return verified;
        }
        attempt += 1;
        pause();
    }
}

/// Size and time of the files of an epoch.
type EpochState = [Option<(u64, Option<SystemTime>)>; 2];

fn state(machines: &Path, stem: &Stem) -> EpochState {
    [stem.index(machines), stem.lines(machines)].map(|path| {
        let file = fs::metadata(path).ok()?;
        Some((file.len(), file.modified().ok()))
    })
}

/// A line as it is stored.
#[derive(Clone, Copy, Debug)]
struct Stored {
    seq: Option<u64>,
    /// Hash of the line that was received.
    digest: Digest,
    is_tombstone: bool,
}

/// State of the second reading of an index.
#[derive(Debug)]
struct Check {
    history: History,
    lines: Option<LineFile>,
    ledger: Ledger,
    /// Values of the chain that later records build upon, by their positions.
    values: BTreeMap<u64, Digest>,
    /// End of the lines of the records so far.
    lines_end: u64,
    /// Last number of the chain that no seal covers yet, and how many entries it has.
    open: (u64, u64),
    /// Bytes of lines that no record has.
    unlisted: u64,
    /// Number of records whose values of the chain are damaged, and of those whose starts are.
    values_damaged: usize,
    starts_damaged: usize,
    found: VerifiedEpoch,
}

/// Values that are known.
struct Known<'a>(&'a BTreeMap<u64, Digest>);

impl ChainValues for Known<'_> {
    type Error = Infallible;

    fn read(&mut self, at: u64, count: u64) -> Result<Vec<Digest>, Infallible> {
        let value = self.0.get(&at).filter(|_| count == 1);
        Ok(value.copied().into_iter().collect())
    }
}

impl Check {
    fn run(machines: &Path, epoch: &Stem) -> io::Result<VerifiedEpoch> {
        let (path, index) = (epoch.lines(machines), epoch.index(machines));
        // Lines are written before their record: those that are there now have one in the index.
        let lines = LineFile::open(&path)?;
        let file = open_regular_file(&index)?;
        let length = file.metadata()?.len();
        let history = History::read(&file)?;
        let mut check = Self {
            history,
            lines,
            ledger: Ledger::default(),
            values: BTreeMap::new(),
            lines_end: 0,
            open: (0, 0),
            unlisted: 0,
            values_damaged: 0,
            starts_damaged: 0,
            found: VerifiedEpoch::default(),
        };
        check.found.key = check.history.key.clone().unwrap_or_else(|| names(epoch));
        scan_whole(&file, |at, text, rest| match serde_json::from_slice(text) {
            Ok(note) if at < check.history.end => check.record(at, note, rest),
            _ => Ok(()),
        })?;
        check.finish(&path, &index, length, epoch)
    }

    fn record(&mut self, at: u64, note: Note, rest: &Rest) -> io::Result<()> {
        let cut = self.history.cut(at);
        self.follow(&note, &cut)?;
        let count = note.change.new.iter().fold(0_u64, |sum, new| sum.saturating_add(new.count()));
        let values = rest.values().filter(|values| values.len() as u64 == count);
        self.values_damaged += usize::from(values.is_none());
        let brought = self.found.entries;
        match values {
            Some(values) => self.compare(at, &note, &cut, values)?,
            None => note.change.new.iter().for_each(|new| {
                self.report(*new, EntryProblem::Unverifiable);
                self.open = (new.last, 0);
            }),
        }
        let group = Group::read(&mut rest.starts()).ok().flatten();
        if group.is_none_or(|group| group.length != rest.starts().len() as u64)
            && !rest.starts().is_empty()
        {
            self.starts_damaged += 1;
        }
        for found in &note.change.breaks {
            self.report(Range { first: found.seq, last: found.seq }, EntryProblem::ChainBroken);
        }
        self.apply(&note, values.unwrap_or_default());
        let brought = self.found.entries - brought;
        let user = note.sender.as_ref().map(|sender| sender.identity.user.as_str());
        if let Some(device) = &note.device {
            let machine = self.found.key.0.clone();
            self.found.devices.insert((device.key, machine, user.unwrap_or_default().to_owned()));
        }
        if let Some(DeviceNote { key, seal: Some(seal), .. }) = &note.device {
            let keys = key.verifier().into_iter().collect::<Vec<_>>();
            let opened = Seal::open(&seal.note, &keys).ok().map(|opened| opened.statement);
            if !opened.is_some_and(|opened| self.agrees(&opened, seal, user)) {
                let last = Range { first: seal.last_seq, last: seal.last_seq };
                self.report(last, EntryProblem::SealBroken);
            } else if self.open.0 == seal.last_seq {
                self.found.sealed += std::mem::take(&mut self.open.1).max(brought);
            } else if note.change.new.last().is_some_and(|new| new.last < seal.last_seq) {
                self.found.sealed += brought;
                self.open.1 = 0;
            }
        }
        Ok(())
    }

    /// Follows the positions of the records, and counts the lines between them.
    fn follow(&mut self, note: &Note, cut: &Cut) -> io::Result<()> {
        if let Some(lines) = self.lines.as_mut().filter(|_| note.lines_at > self.lines_end) {
            let (from, to) = cut.visible(self.lines_end, note.lines_at.min(lines.length));
            if from < to && lines.has_text(from, to)? {
                self.unlisted += to - from;
            }
        }
        self.lines_end = note.lines_at.saturating_add(note.bytes);
        Ok(())
    }

    /// Compares the lines of a record with its values of the chain.
    fn compare(&mut self, at: u64, note: &Note, cut: &Cut, values: &[[u8; 32]]) -> io::Result<()> {
        let holes: HashMap<u64, Digest> =
            note.change.holes.iter().map(|hole| (hole.seq, hole.line_sha256)).collect();
        let new = note.change.new.iter().flat_map(|new| new.first..=new.last);
        let mut expected: Vec<u64> = new.filter(|seq| !holes.contains_key(seq)).collect();
        expected.extend(&note.change.filled);
        if !note.change.new.is_empty() {
            expected.sort_unstable();
        }
        let stored = self.stored(at, note, cut, &expected)?;
        let is_removed = cut.removes(note.lines_at);
        for seq in &note.change.filled {
            let hole = self.ledger.hole(*seq);
            self.judge(at, *seq, stored.get(seq), is_removed, |digest| hole.map(|it| it == digest));
        }
        let mut values = values.iter().map(|value| Digest::from_bytes(*value));
        for new in &note.change.new {
            let claimed = note.change.claims.iter().any(|claim| claim.seq + 1 == new.first);
            let Ok(mut before) = self.ledger.start_of(*new, &note.change, &mut Known(&self.values));
            if claimed || self.open.0 + 1 != new.first || before.is_none() {
                self.open.1 = 0;
            }
            for (seq, value) in (new.first..=new.last).zip(&mut values) {
                let fits = |digest: Digest| before.map(|before| before.chain(digest) == value);
                match holes.get(&seq).map(|hole| fits(*hole)) {
                    None => self.judge(at, seq, stored.get(&seq), is_removed, fits),
                    Some(Some(true)) => {}
                    Some(fits) => self.report_misfit(seq, fits),
                }
                before = Some(value);
            }
            // What the next number was built upon.
            let is_broken = note.change.breaks.iter().any(|it| it.seq == new.last + 1);
            if self.ledger.claim(new.last).is_some_and(|claim| Some(claim) != before) && !is_broken
            {
                let last = Range { first: new.last, last: new.last };
                self.report(last, EntryProblem::Changed);
            }
            self.open.0 = new.last;
        }
        Ok(())
    }

    /// Reads the lines of a record. If there are as many as expected, their order says which is which, so that
    /// a line whose number was changed is found as one that was changed.
    fn stored(
        &mut self,
        at: u64,
        note: &Note,
        cut: &Cut,
        expected: &[u64],
    ) -> io::Result<HashMap<u64, Stored>> {
        let mut found = Vec::new();
        let (from, to) = cut.visible(note.lines_at, note.lines_at.saturating_add(note.bytes));
        if let Some(lines) = self.lines.as_mut().filter(|_| from < to) {
            let history = &self.history;
            lines.each(from, to, |line| {
                let seq = number(line);
                let erased = seq.filter(|_| history.has_erasures());
                let erased = erased.and_then(|seq| history.tombstone(at, seq, line));
                let digest = erased.unwrap_or_else(|| Digest::of(line));
                found.push(Stored { seq, digest, is_tombstone: erased.is_some() });
            })?;
            self.found.bytes += to.min(lines.length).saturating_sub(from);
        }
        if found.len() == expected.len() {
            return Ok(expected.iter().copied().zip(found).collect());
        }
        let numbered = found.into_iter().filter_map(|line| Some((line.seq?, line)));
        Ok(numbered.collect())
    }

    /// Judges a number whose line is expected. `fits` compares a hash with the chain.
    fn judge(
        &mut self,
        at: u64,
        seq: u64,
        stored: Option<&Stored>,
        is_removed: bool,
        fits: impl Fn(Digest) -> Option<bool>,
    ) {
        let Some(line) = stored else {
            if !is_removed && !self.history.is_lost(at, seq) {
                self.report(Range { first: seq, last: seq }, EntryProblem::Missing);
            }
            return;
        };
        self.found.entries += 1;
        self.open.1 += 1;
        self.found.erased += u64::from(line.is_tombstone);
        match fits(line.digest) {
            Some(true) if !line.is_tombstone && self.history.is_erased(at, seq) => {
                self.report(Range { first: seq, last: seq }, EntryProblem::NotErased);
            }
            Some(true) => {}
            misfit => self.report_misfit(seq, misfit),
        }
    }

    fn report_misfit(&mut self, seq: u64, fits: Option<bool>) {
        let is_unknown = fits.is_none();
        let problem = if is_unknown { EntryProblem::Unverifiable } else { EntryProblem::Changed };
        self.report(Range { first: seq, last: seq }, problem);
    }

    /// Takes over what a record changes, and the values that later records build upon.
    fn apply(&mut self, note: &Note, values: &[[u8; 32]]) {
        let mut at = self.ledger.values();
        // Where one of these numbers was held before, as one that was lost and arrived again.
        for place in note.change.new.iter().filter_map(|new| self.ledger.place(new.last)) {
            self.values.remove(&place);
        }
        let before = |new: &Range| self.ledger.place(new.first - 1).map(|at| (new.first - 1, at));
        let ends: Vec<_> = note.change.new.iter().filter_map(before).collect();
        self.ledger.apply(&note.change);
        let mut values = values.iter().map(|value| Digest::from_bytes(*value));
        for new in &note.change.new {
            let needed = &self.history.needed;
            for (seq, value) in (new.first..=new.last).zip(&mut values) {
                let is_end = seq == new.last && self.ledger.place(seq + 1).is_none();
                if is_end || needed.contains(&seq) {
                    self.values.insert(at + (seq - new.first), value);
                }
            }
            at += new.count();
        }
        for (seq, place) in ends {
            if !self.history.needed.contains(&seq) {
                self.values.remove(&place);
            }
        }
    }

    /// Reports whether a seal with a valid signature says what the index does.
    fn agrees(&self, seal: &Seal, noted: &SealNote, user: Option<&str>) -> bool {
        let (machine, epoch) = &self.found.key;
        let value = self.ledger.place(seal.last_seq).map(|at| self.values.get(&at));
        // The value of a lost number is not known, and one that is damaged was reported.
        let is_value = |value: Option<&Digest>| value.is_none_or(|value| *value == seal.chain);
        (&seal.machine, &seal.epoch, seal.last_seq) == (machine, epoch, noted.last_seq)
            && user.is_none_or(|user| user == seal.user)
            && value.is_none_or(is_value)
    }

    fn finish(
        mut self,
        lines: &Path,
        index: &Path,
        length: u64,
        epoch: &Stem,
    ) -> io::Result<VerifiedEpoch> {
        let mut lost = Extents::default();
        for part in self.history.lost().flat_map(|range| self.ledger.lacks(range)) {
            lost.missing(part).into_iter().for_each(|part| lost.insert(part, 0));
        }
        lost.ranges().into_iter().for_each(|range| self.report(range, EntryProblem::Lost));
        self.found.gaps = self.ledger.missing();
        // Nothing that a receiver does leaves bytes there.
        let end = self.lines.as_ref().map_or(0, |file| file.length);
        self.unlisted += end.saturating_sub(self.lines_end);
        let (damaged, unlisted) = (self.history.damaged, self.unlisted);
        let (values, starts) = (self.values_damaged, self.starts_damaged);
        let mut report = |path: &Path, text: String| self.found.files.push((path.to_owned(), text));
        if damaged > 0 {
            let text = "places: batches that it had there are missing";
            report(index, format!("is damaged in {damaged} {text}"));
        }
        if values > 0 {
            report(index, format!("is damaged in {values} places of its chain"));
        }
        if starts > 0 {
            let text = "places of its positions in source files";
            report(index, format!("is damaged in {starts} {text}"));
        }
        if length > self.history.end {
            report(index, "ends in the middle of a record".to_owned());
        }
        if unlisted > 0 {
            report(lines, format!("has {unlisted} bytes of lines that its index lacks"));
        }
        if let Some(key) = self.history.key.as_ref().filter(|key| stem(key) != *epoch) {
            report(index, format!("belongs to epoch `{}` of machine `{}`", key.1, key.0));
        }
        Ok(self.found)
    }

    fn report(&mut self, range: Range, problem: EntryProblem) {
        let VerifiedEpoch { damaged, named, .. } = &mut self.found;
        *damaged = damaged.saturating_add(range.count());
        let has_room = named.len() < NAMED;
        match named.last_mut() {
            Some((last, known)) if *known == problem && last.last + 1 == range.first => {
                last.last = range.last;
            }
            _ if has_room => named.push((range, problem)),
            _ => {}
        }
    }
}
