//! Recovery when a store is opened: copies the journals to the files of the epochs again, cuts off
//! torn ends, and builds the catalog from the notes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use siem_protocol::{ChainPoint, Digest};
use tracing::{error, info, warn};

use super::{
    catalog::{Catalog, Key},
    checkpoint,
    epoch::{EpochFiles, Stem, open},
    frame::Frame,
    journal,
    note::Note,
};
use crate::{
    batch::seq_of,
    ledger::{ChainValues as _, Change, Range},
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
    let mut touched: BTreeSet<Stem> = replayed.keys().cloned().collect();
    let mut catalog = Catalog::default();
    for stem in stems(machines)? {
        let damaged = replayed.get(&stem).is_some_and(|damage| damage.lines);
        if load(machines, &stem, damaged, &mut catalog)? {
            touched.insert(stem);
        }
    }
    catalog.order_lineages();
    checkpoint::sync(machines, &touched)?;
    for (_, path) in &found {
        if path.try_exists()? {
            fs::remove_file(path)?;
            super::sync_directory(journals)?;
        }
    }
    let next_journal = found.last().map_or(1, |(number, _)| number + 1);
    Ok(Recovered { catalog, next_journal })
}

/// Damage of an epoch before the journals' first frame of it.
struct Damage {
    lines: bool,
    values: bool,
}

/// Writes the frames of the journals to their positions, and cuts off the bytes after them. Returns
/// the earlier damage of each epoch.
fn replay(journals: &[(u64, PathBuf)], machines: &Path) -> io::Result<BTreeMap<Stem, Damage>> {
    let mut files = EpochFiles::new(machines.to_owned());
    let mut damaged = BTreeMap::new();
    let mut ends: HashMap<Stem, [u64; 3]> = HashMap::new();
    // Journals with a torn end: only the last one that was written to may have one.
    let mut cut = Vec::new();
    for (_, path) in journals {
        let mut batches = 0;
        let torn = journal::replay(path, |frame| {
            let stem = Stem::of(&frame.place);
            if !ends.contains_key(&stem) {
                damaged.insert(stem.clone(), prepare(machines, &stem, &frame)?);
            }
            files.apply(&frame)?;
            let place = &frame.place;
            let end = [
                place.lines_at + frame.lines.length(),
                place.notes_at + frame.note.len() as u64,
                place.values_at * 32 + frame.values.len() as u64,
            ];
            ends.insert(stem, end);
            batches += 1;
            Ok(())
        })?;
        info!(journal = %path.display(), batches, torn, "copied a journal to the files of epochs");
        if batches > 0 {
            for path in cut.drain(..) {
                rename_damaged(path)?;
            }
        }
        if torn > 0 {
            cut.push(path);
        }
    }
    drop(files);
    for (stem, ends) in &ends {
        for (path, end) in stem.all(machines).iter().zip(ends) {
            File::options().write(true).open(path)?.set_len(*end)?;
        }
        if damaged.get(stem).is_some_and(|damage| damage.values) {
            // Values may be missing in the middle: all are rebuilt.
            File::options().write(true).open(stem.values(machines))?.set_len(0)?;
        }
    }
    Ok(damaged)
}

fn rename_damaged(journal: &Path) -> io::Result<()> {
    let aside = journal.with_extension("damaged");
    error!(code = "journal_damaged", journal = %journal.display(), aside = %aside.display(), "found a damaged journal and renamed it");
    fs::copy(journal, aside).map(drop)
}

/// Before the first frame of an epoch: checks that the bytes before it exist. Blank lines replace
/// lost ones, so that the noted positions remain valid.
fn prepare(machines: &Path, stem: &Stem, frame: &Frame) -> io::Result<Damage> {
    fs::create_dir_all(stem.directory(machines))?;
    let values = open(&stem.values(machines))?.metadata()?.len();
    let mut damage = Damage { lines: false, values: values < frame.place.values_at * 32 };
    for (path, at) in
        [(stem.lines(machines), frame.place.lines_at), (stem.notes(machines), frame.place.notes_at)]
    {
        let mut file = open(&path)?;
        let length = file.metadata()?.len();
        if length < at {
            damage.lines = true;
            error!(code = "lines_missing", file = %path.display(), bytes = at - length, "lines before those of the journal are missing");
            let whole = whole_lines(&file, length)?;
            file.seek(SeekFrom::Start(whole))?;
            let mut writer = BufWriter::new(&file);
            io::copy(&mut io::repeat(b'\n').take(at - whole), &mut writer)?;
            writer.flush()?;
        }
    }
    Ok(damage)
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

fn stems(machines: &Path) -> io::Result<BTreeSet<Stem>> {
    let mut stems = BTreeSet::new();
    for machine in fs::read_dir(machines)? {
        let machine = machine?;
        if !machine.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(machine.path())? {
            let path = file?.path();
            let epoch = path.file_stem().and_then(|stem| stem.to_str());
            let (Some(epoch), Some(machine)) =
                (epoch, machine.file_name().to_str().map(str::to_owned))
            else {
                continue;
            };
            if path.extension().is_some_and(|ending| ending == "notes") {
                stems.insert(Stem { machine, epoch: epoch.to_owned() });
            }
        }
    }
    Ok(stems)
}

/// Adds an epoch to the catalog; returns `true` if one of its files was changed. `damaged` is
/// true if the replay found missing bytes.
fn load(machines: &Path, stem: &Stem, damaged: bool, catalog: &mut Catalog) -> io::Result<bool> {
    let path = stem.notes(machines);
    let (notes, whole) = read_notes(&path)?;
    let Some(key) = notes.iter().find_map(|(note, _)| {
        note.sender
            .as_ref()
            .map(|sender| (sender.identity.machine_id.clone(), sender.epoch.clone()))
    }) else {
        // None of its batches was acknowledged.
        return Ok(false);
    };
    let mut changed = open(&path)?.metadata()?.len() != whole;
    if changed {
        warn!(code = "torn_line_removed", file = %path.display(), "removed a torn line");
        open(&path)?.set_len(whole)?;
    }
    for (note, length) in &notes {
        catalog.record(&key, note, *length);
    }
    changed |= repair_values(machines, stem, &key, &notes, catalog)?;
    let repaired = repair_lines(machines, stem, &key, damaged, catalog)?;
    if repaired || damaged {
        // It may name lost lines; it is rebuilt when needed.
        match fs::remove_file(stem.starts(machines)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(changed || repaired)
}

/// Returns the notes, each with its length, and the end of the last complete one.
fn read_notes(path: &Path) -> io::Result<(Vec<(Note, u64)>, u64)> {
    let mut reader = BufReader::new(open(path)?);
    let mut notes = Vec::new();
    let (mut line, mut whole, mut blank) = (Vec::new(), 0, 0);
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)? as u64;
        if length == 0 || !line.ends_with(b"\n") {
            return Ok((notes, whole));
        }
        whole += length;
        match serde_json::from_slice(&line) {
            Ok(note) => notes.push((note, length + std::mem::take(&mut blank))),
            Err(error) => {
                blank += length;
                if line != b"\n" {
                    error!(code = "note_damaged", file = %path.display(), at = whole, %error, "found a damaged note");
                }
            }
        }
    }
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
    let file = open(&path)?;
    let length = file.metadata()?.len();
    let (end, notes_end) = catalog.ends(key);
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
    let note = Note {
        at,
        lines_at: whole,
        bytes: 0,
        sender: None,
        clones: Vec::new(),
        repeated: Vec::new(),
        conflicts: 0,
        keyed: false,
        order: 0,
        device: None,
        heartbeat: None,
        change,
    };
    let line = note.line();
    let mut notes = open(&stem.notes(machines))?;
    notes.seek(SeekFrom::Start(notes_end))?;
    notes.write_all(&line)?;
    catalog.record(key, &note, line.len() as u64);
    Ok(true)
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
    file.seek(SeekFrom::Start(0))?;
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
    let mut lost: Vec<Range> = Vec::new();
    for seq in ledger.covered().into_iter().flat_map(|range| range.first..=range.last) {
        if present.contains(&seq) {
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
            let value = files.values(stem).read(at, 1)?;
            claims.extend(value.first().map(|hash| ChainPoint { seq: range.last, hash: *hash }));
        }
    }
    Ok(claims)
}

/// Rebuilds the file of the chain's values if its length is wrong.
fn repair_values(
    machines: &Path,
    stem: &Stem,
    key: &Key,
    notes: &[(Note, u64)],
    catalog: &Catalog,
) -> io::Result<bool> {
    let file = open(&stem.values(machines))?;
    let expected = catalog.ledger(key).map_or(0, |ledger| ledger.values() * 32);
    if file.metadata()?.len() == expected {
        return Ok(false);
    }
    warn!(
        code = "chain_rebuilt",
        machine = key.0,
        epoch = key.1,
        "rebuilt the chain's values from lines and notes"
    );
    file.set_len(0)?;
    let mut again = crate::ledger::Ledger::default();
    let mut files = EpochFiles::new(machines.to_owned());
    let lines = open(&stem.lines(machines))?;
    for (note, _) in notes {
        let digests = digests(&lines, note)?;
        let mut output = Vec::new();
        for new in &note.change.new {
            let start = again.start_of(*new, &note.change, &mut files.values(stem))?;
            let mut value = start.unwrap_or_default();
            for seq in new.first..=new.last {
                value = value.chain(digests.get(&seq).copied().unwrap_or_default());
                output.extend_from_slice(value.as_bytes());
            }
        }
        (&file).seek(SeekFrom::Start(again.values() * 32))?;
        (&file).write_all(&output)?;
        again.apply(&note.change);
    }
    Ok(true)
}

/// Returns the digests of a note's lines and holes, without those of missing lines.
fn digests(mut lines: &File, note: &Note) -> io::Result<BTreeMap<u64, Digest>> {
    lines.seek(SeekFrom::Start(note.lines_at))?;
    let mut text = Vec::new();
    lines.take(note.bytes).read_to_end(&mut text)?;
    let holes = note.change.holes.iter().map(|hole| (hole.seq, hole.line_sha256));
    let held = text.split_inclusive(|byte| *byte == b'\n').filter_map(|line| {
        let line = line.strip_suffix(b"\n")?;
        Some((seq_of(line)?, Digest::of(line)))
    });
    Ok(holes.chain(held).collect())
}
