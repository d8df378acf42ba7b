//! Recovery when a store is opened: copies the journals to the files of the epochs again, cuts off
//! torn ends, and builds the catalog from the notes.

mod erase_again;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use siem_protocol::ChainPoint;
use tracing::{error, info, warn};

use self::erase_again::{erase_again, note_again};
use super::{
    catalog::{Catalog, Key},
    checkpoint,
    epoch::{EpochFiles, Stem, open},
    frame::Frame,
    index_record::{self, RecordParts, scan},
    journal::{self, JournalPart},
    migrate,
    note::Note,
    starts::GroupWriter,
};
use crate::{
    batch::{origin_of, seq_of},
    ledger::{Change, Range},
    life,
    regular_file::open_regular_file,
};

/// Result of the recovery.
pub(super) struct Recovered {
    pub(super) catalog: Catalog,
    pub(super) next_journal: u64,
}

/// Repairs the store below `journals` and `machines`. Afterwards all files are synced, and no
/// journal is left.
pub(super) fn recover(journals: &Path, machines: &Path) -> io::Result<Recovered> {
    let found = journal::list(journals)?;
    let replayed = replay(&found, machines)?;
    let mut touched: BTreeSet<Stem> = replayed.damaged.keys().cloned().collect();
    let stems = remove_replaced(machines)?;
    let mut catalog = Catalog::for_epochs(stems.len());
    for stem in stems {
        if load(machines, &stem, &replayed, &mut catalog)? {
            touched.insert(stem);
        }
    }
    catalog.order_lineages();
    checkpoint::sync(machines, &touched)?;
    // Lines that were erased may be back: before the journals are deleted, as this may be interrupted.
    let uncertain = replayed.uncertain.iter().map(Stem::name);
    life::forget_swept(machines.parent().unwrap_or(machines), uncertain)?;
    for (_, path) in &found {
        if path.try_exists()? {
            fs::remove_file(path)?;
            super::sync_directory(journals)?;
        }
    }
    let next_journal = found.last().map_or(1, |(number, _)| number + 1);
    Ok(Recovered { catalog, next_journal })
}

/// Ends of the files of lines and of the indexes.
type Ends = HashMap<Stem, (u64, u64)>;

/// Epochs of the frames in the journals.
#[derive(Default)]
struct Replayed {
    /// True for those of which bytes before their first frame were missing, or a journal is damaged.
    damaged: BTreeMap<Stem, bool>,
    /// Those in a journal of which a part cannot be read: what it erased may be unknown.
    uncertain: BTreeSet<Stem>,
    /// Notes of erasures behind damage.
    erasures: BTreeMap<Stem, Vec<Note>>,
}

/// Writes the frames of the journals to their positions, and cuts off the bytes after them.
fn replay(journals: &[(u64, PathBuf)], machines: &Path) -> io::Result<Replayed> {
    let mut files = EpochFiles::new(machines.to_owned());
    let mut replayed = Replayed::default();
    let mut ends = Ends::new();
    // Journals with a torn end: only the last one that was written to may have one.
    let mut cut: Vec<&PathBuf> = Vec::new();
    for (_, path) in journals {
        let mut batches = 0;
        let mut stems = BTreeSet::new();
        let end = journal::replay(path, |frame| {
            for path in cut.drain(..) {
                keep_damaged(path)?;
                replayed.distrust(&mut ends);
            }
            let stem = Stem::of(&frame.place);
            stems.insert(stem.clone());
            if !ends.contains_key(&stem) {
                let missing = prepare(machines, &stem, &frame)?;
                *replayed.damaged.entry(stem.clone()).or_default() |= missing;
            }
            files.apply(&frame)?;
            let place = &frame.place;
            ends.insert(stem, (frame.lines_end(), place.index_at + frame.record.len() as u64));
            batches += 1;
            Ok(())
        })?;
        let torn = end.torn;
        info!(journal = %path.display(), batches, torn, "copied a journal to the files of epochs");
        if torn == 0 {
            continue;
        }
        replayed.uncertain.append(&mut stems);
        let mut later = 0;
        journal::parts(path, end.frames, |part| {
            if let JournalPart::Frame(frame, _) = part {
                later += 1;
                replayed.keep_erasure(&frame);
            }
            Ok(())
        })?;
        if later > 0 {
            // Not the end of an interrupted write: later frames may have been acknowledged.
            keep_damaged(path)?;
            replayed.distrust(&mut ends);
        } else {
            cut.push(path);
        }
    }
    drop(files);
    for (stem, (lines_end, index_end)) in &ends {
        File::options().write(true).open(stem.index(machines))?.set_len(*index_end)?;
        match File::options().write(true).open(stem.lines(machines)) {
            Ok(lines) => lines.set_len(*lines_end)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(replayed)
}

impl Replayed {
    /// Forgets where the epochs end according to the journals so far, one of which is damaged: the frames that
    /// cannot be read may have been acknowledged, and may be of any epoch. Where they are in its files, they
    /// stay there, and the files are checked.
    fn distrust(&mut self, ends: &mut Ends) {
        for (stem, _) in ends.drain() {
            self.uncertain.insert(stem.clone());
            self.damaged.insert(stem, true);
        }
    }

    /// Keeps the note of a frame behind damage if it is one of an erasure.
    fn keep_erasure(&mut self, frame: &Frame) {
        let stem = Stem::of(&frame.place);
        let mut record = frame.record.as_slice();
        let note = RecordParts::take(&mut record).and_then(|it| it.note());
        if let Some(note) = note.filter(|note| note.erased.is_some()) {
            self.erasures.entry(stem.clone()).or_default().push(note);
        }
        self.uncertain.insert(stem);
    }
}

/// Copies a damaged journal to a file that no later repair replaces: numbers of journals are used
/// again.
pub(super) fn keep_damaged(journal: &Path) -> io::Result<()> {
    let name = journal.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    for copy in 1_u32.. {
        let number = if copy == 1 { String::new() } else { format!("-{copy}") };
        let aside = journal.with_file_name(format!("{name}{number}.damaged"));
        let mut kept = match File::create_new(&aside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // A start that failed later has kept it: each one would need more space.
                if is_same(journal, &aside)? {
                    break;
                }
                continue;
            }
            kept => kept?,
        };
        let copied =
            io::copy(&mut open_regular_file(journal)?, &mut kept).and_then(|_| kept.sync_all());
        if let Err(error) = copied {
            drop(fs::remove_file(&aside));
            return Err(error);
        }
        error!(code = "journal_damaged", journal = %journal.display(), aside = %aside.display(), "found a damaged journal and kept a copy of it");
        break;
    }
    journal.parent().map_or(Ok(()), super::sync_directory)
}

/// Reports whether two files have the same content.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (open_regular_file(one)?, open_regular_file(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let bytes = left.len().min(right.len());
        if left[..bytes] != right[..bytes] {
            return Ok(false);
        }
        if bytes == 0 {
            return Ok(true);
        }
        one.consume(bytes);
        other.consume(bytes);
    }
}

/// Before the first frame of an epoch: fills missing bytes before it, so that the noted positions
/// remain valid. Reports whether there were any.
fn prepare(machines: &Path, stem: &Stem, frame: &Frame) -> io::Result<bool> {
    fs::create_dir_all(stem.directory(machines))?;
    let lines = fill(&stem.lines(machines), frame.place.lines_at, b'\n')?;
    let index = fill(&stem.index(machines), frame.place.index_at, 0)?;
    Ok(lines || index)
}

/// Extends a file to `end` bytes, from the end of its last whole line on if `with` is a newline.
fn fill(path: &Path, end: u64, with: u8) -> io::Result<bool> {
    if end == 0 {
        return Ok(false);
    }
    let mut file = open(path)?;
    let length = file.metadata()?.len();
    if length >= end {
        return Ok(false);
    }
    error!(code = "lines_missing", file = %path.display(), bytes = end - length, "bytes before those of the journal are missing");
    let whole = if with == b'\n' { whole_lines(&file, length)? } else { length };
    file.seek(SeekFrom::Start(whole))?;
    let mut writer = BufWriter::new(&file);
    io::copy(&mut io::repeat(with).take(end - whole), &mut writer)?;
    writer.flush()?;
    Ok(true)
}

/// Returns the position after the last newline within `length` bytes.
fn whole_lines(mut file: &File, length: u64) -> io::Result<u64> {
    const STEP: u64 = 64 << 10;
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(STEP);
        let mut block = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        if let Some(at) = memchr::memrchr(b'\n', &block) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

pub(super) fn stems(machines: &Path) -> io::Result<BTreeSet<Stem>> {
    let mut stems = BTreeSet::new();
    visit_epoch_files(machines, |machine, name| stems.extend(stem(machine, name)))?;
    Ok(stems)
}

/// Removes the files that a conversion left. Returns the epochs: a large store has many directories, which
/// are read once.
fn remove_replaced(machines: &Path) -> io::Result<BTreeSet<Stem>> {
    let (mut stems, mut replaced) = (BTreeSet::new(), Vec::new());
    visit_epoch_files(machines, |machine, name| match has_ending(name, &migrate::REPLACED) {
        true => replaced.push(machines.join(machine).join(name)),
        false => stems.extend(stem(machine, name)),
    })?;
    replaced.iter().try_for_each(fs::remove_file)?;
    Ok(stems)
}

/// Returns the epoch with an index of this name.
fn stem(machine: &str, name: &Path) -> Option<Stem> {
    let epoch = name.file_stem()?.to_str()?;
    let stem = || Stem { machine: machine.to_owned(), epoch: epoch.to_owned() };
    has_ending(name, &["index"]).then(stem)
}

fn has_ending(name: &Path, endings: &[&str]) -> bool {
    name.extension().and_then(|it| it.to_str()).is_some_and(|it| endings.contains(&it))
}

/// Passes the names of the files in the directories of all machines to `visit`, each with the name of its
/// directory.
fn visit_epoch_files(machines: &Path, mut visit: impl FnMut(&str, &Path)) -> io::Result<()> {
    for machine in fs::read_dir(machines)? {
        let machine = machine?;
        let name = machine.file_name();
        let Some(name) = name.to_str() else { continue };
        if !machine.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(machine.path())? {
            visit(name, Path::new(&file?.file_name()));
        }
    }
    Ok(())
}

/// Adds an epoch to the catalog; returns `true` if one of its files was changed.
fn load(
    machines: &Path,
    stem: &Stem,
    replayed: &Replayed,
    catalog: &mut Catalog,
) -> io::Result<bool> {
    let path = stem.index(machines);
    let index = open(&path)?;
    let (notes, end) = read_notes(&path, &index)?;
    let Some(key) = notes.iter().find_map(|(note, _)| {
        note.sender
            .as_ref()
            .map(|sender| (sender.identity.machine_id.clone(), sender.epoch.clone()))
    }) else {
        // None of its batches was acknowledged.
        return Ok(false);
    };
    let torn = index.metadata()?.len() != end;
    if torn {
        warn!(code = "torn_line_removed", file = %path.display(), "removed a torn record");
        index.set_len(end)?;
    }
    for (note, length) in &notes {
        catalog.record(&key, note, *length);
    }
    let damaged = replayed.damaged.get(stem).copied().unwrap_or_default();
    let behind = replayed.erasures.get(stem).map_or(&[][..], Vec::as_slice);
    if !damaged && behind.is_empty() {
        return Ok(repair_lines(machines, stem, &key, damaged, catalog)? || torn);
    }
    // Before the lines are compared: what an erasure has half overwritten is not lost.
    let known = notes.iter().filter_map(|(note, _)| note.erased.as_ref());
    let present = erase_again(machines, stem, &key, known, behind, catalog)?;
    let repaired = repair_lines(machines, stem, &key, damaged, catalog)?;
    let known = notes.iter().filter_map(|(note, _)| note.erased.as_ref());
    note_again(machines, stem, &key, known, behind, &present, catalog)?;
    Ok(repaired || torn || !present.is_empty())
}

/// Returns the notes, each with the length of its record and of damaged bytes before it, and the end
/// of the last record.
fn read_notes(path: &Path, index: &File) -> io::Result<(Vec<(Note, u64)>, u64)> {
    let (mut notes, mut recorded) = (Vec::new(), 0);
    let found = scan(index, 0, |at, head, text| {
        match serde_json::from_slice(text) {
            Ok(note) => {
                let end = at + head.length();
                notes.push((note, end - std::mem::replace(&mut recorded, end)));
            }
            Err(error) => {
                error!(code = "note_damaged", file = %path.display(), at, %error, "cannot read a note");
            }
        }
        Ok(())
    })?;
    for at in found.damaged {
        error!(code = "note_damaged", file = %path.display(), at, "found a damaged record");
    }
    Ok((notes, recorded))
}

/// Compares the file of lines with the notes.
fn repair_lines(
    machines: &Path,
    stem: &Stem,
    key: &Key,
    damaged: bool,
    catalog: &mut Catalog,
) -> io::Result<bool> {
    let path = stem.lines(machines);
    let (end, index_end) = catalog.ends(key);
    if end == 0 && !path.try_exists()? {
        return Ok(false);
    }
    let file = open(&path)?;
    let length = file.metadata()?.len();
    if length > end {
        move_surplus(&path, &file, end)?;
        return Ok(true);
    }
    if length == end && !damaged {
        return Ok(false);
    }
    let whole = whole_lines(&file, length)?;
    let lost = lost(&file, key, catalog)?;
    if lost.is_empty() && length == end {
        return Ok(false);
    }
    file.set_len(whole)?;
    error!(code = "lines_lost", file = %path.display(), ranges = ?lost, "lines are missing; their numbers are reported as a gap");
    let claims = claims_behind(machines, stem, key, &lost, catalog)?;
    let change = Change { lost, claims, ..Change::default() };
    let at = humantime::format_rfc3339_millis(fs::metadata(&path)?.modified()?).to_string();
    let note = Note { at, lines_at: whole, change, ..Note::default() };
    let from = catalog.lines_from(key).min(whole);
    let record = index_record::encode(&note.line(), &[], &starts_left(&file, from, whole)?)?;
    let mut index = open(&stem.index(machines))?;
    index.seek(SeekFrom::Start(index_end))?;
    index.write_all(&record)?;
    catalog.record(key, &note, record.len() as u64);
    Ok(true)
}

/// Returns the starts of all lines that are left in the file from position `from` on, as one group.
fn starts_left(mut file: &File, from: u64, end: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(from))?;
    let mut reader = BufReader::with_capacity(256 << 10, file.take(end - from));
    let (mut origins, mut line) = (Vec::new(), Vec::new());
    while reader.read_until(b'\n', &mut line)? > 0 {
        origins.extend(origin_of(line.strip_suffix(b"\n").unwrap_or(&line)));
        line.clear();
    }
    let mut group = GroupWriter::default();
    for (generation, offset, part) in &origins {
        group.add(generation, *offset, *part);
    }
    group.finish(0, end)
}

/// Moves the bytes of the file of lines from `end` on to the end of another file.
fn move_surplus(path: &Path, mut file: &File, end: u64) -> io::Result<()> {
    let aside = path.with_extension("surplus");
    error!(code = "lines_without_note", file = %path.display(), aside = %aside.display(), "found lines without a note and moved them to another file");
    let mut surplus = File::options().append(true).create(true).open(aside)?;
    file.seek(SeekFrom::Start(end))?;
    io::copy(&mut file, &mut surplus)?;
    surplus.sync_all()?;
    file.set_len(end)
}

/// Returns the held numbers whose lines are not in the file.
fn lost(mut file: &File, key: &Key, catalog: &Catalog) -> io::Result<Vec<Range>> {
    file.seek(SeekFrom::Start(catalog.lines_from(key)))?;
    let mut present = BTreeSet::new();
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if line.ends_with(b"\n") {
            present.extend(seq_of(&line));
        }
        line.clear();
    }
    let Some(ledger) = catalog.ledger(key) else { return Ok(Vec::new()) };
    present.extend(ledger.holes().map(|hole| hole.seq));
    let removed = catalog.removed(key);
    let is_removed = |seq: u64| removed.iter().any(|it| (it.first..=it.last).contains(&seq));
    let mut lost: Vec<Range> = Vec::new();
    for seq in ledger.covered().into_iter().flat_map(|range| range.first..=range.last) {
        if present.contains(&seq) || is_removed(seq) {
            continue;
        }
        match lost.last_mut() {
            Some(range) if range.last + 1 == seq => range.last = seq,
            _ => lost.push(Range { first: seq, last: seq }),
        }
    }
    Ok(lost)
}

/// Returns the chain values that the numbers after lost ones build upon.
fn claims_behind(
    machines: &Path,
    stem: &Stem,
    key: &Key,
    lost: &[Range],
    catalog: &Catalog,
) -> io::Result<Vec<ChainPoint>> {
    let Some(ledger) = catalog.ledger(key) else { return Ok(Vec::new()) };
    let mut files = EpochFiles::new(machines.to_owned());
    let mut claims = Vec::new();
    for range in lost {
        // The next number to arrive builds upon the last one, too.
        let continued =
            ledger.place(range.last + 1).is_some() || range.last + 1 == ledger.next_seq();
        if let Some(at) = ledger.place(range.last).filter(|_| continued) {
            let mut read = |range| files.index(stem, range);
            let value = match catalog.notes(key).values(at, 1, &mut read) {
                // The index is damaged too. A receiver that did not start would lose more.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => continue,
                value => value?,
            };
            claims.extend(value.first().map(|hash| ChainPoint { seq: range.last, hash: *hash }));
        }
    }
    Ok(claims)
}
