//! Conversion of data directories of earlier versions, in which an epoch had the files `.notes`,
//! `.chain` and `.starts` in place of one index.
//!
//! Each step can be repeated: the old files stay until the version of the directory was written, and
//! the next start removes them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use siem_protocol::Digest;
use tracing::{error, info};

use super::{
    checkpoint,
    epoch::{Stem, open},
    frame, index_record, journal,
    note::Note,
    recover,
    starts::{Group, GroupWriter},
    sync_directory,
};
use crate::{
    batch::{origin_of, seq_of},
    ledger::Ledger,
    regular_file::{open_regular_file, read_whole_file},
};

/// Endings of the files that an index replaces.
pub(super) const REPLACED: [&str; 3] = ["notes", "chain", "starts"];

const MAGIC: &[u8; 8] = b"siemjrn1";
const FIXED: usize = 8 + 4 + 4 + 8 + 8;
/// No frame is larger.
const LARGEST: u64 = 1 << 30;

/// Writes the indexes of all epochs, and the lines that are only in journals. Afterwards all files
/// are synced, and no journal of an earlier version is left.
pub(super) fn convert(directory: &Path) -> io::Result<()> {
    let (journals, machines) = (directory.join("journal"), directory.join("machines"));
    super::create_private(&journals)?;
    super::create_private(&machines)?;
    let mut found = Vec::new();
    for (number, path) in journal::list(&journals)? {
        // One of this version holds batches that the recovery writes.
        if !is_current(&path)? {
            found.push((number, path));
        }
    }
    replay(&found, &machines)?;
    let mut converted = BTreeSet::new();
    for stem in stems(&machines)? {
        convert_epoch(&machines, &stem)?;
        converted.insert(stem);
    }
    checkpoint::sync(&machines, &converted)?;
    for (_, path) in &found {
        fs::remove_file(path)?;
    }
    sync_directory(&journals)?;
    info!(epochs = converted.len(), "converted the files of all epochs");
    Ok(())
}

/// Reports whether a journal is of this version.
fn is_current(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    open_regular_file(path)?.take(frame::MAGIC.len() as u64).read_to_end(&mut start)?;
    Ok(start == frame::MAGIC)
}

/// Positions of a frame's parts.
#[derive(Deserialize)]
struct Place {
    machine: String,
    epoch: String,
    lines_at: u64,
    notes_at: u64,
    values_at: u64,
}

/// A batch in a journal of an earlier version.
struct OldFrame {
    place: Place,
    note: Vec<u8>,
    values: Vec<u8>,
    lines: Vec<u8>,
}

impl OldFrame {
    fn stem(&self) -> Stem {
        Stem { machine: self.place.machine.clone(), epoch: self.place.epoch.clone() }
    }

    /// Ending, position and content of each part.
    fn parts(&self) -> [(&'static str, u64, &[u8]); 3] {
        [
            ("ndjson", self.place.lines_at, &self.lines),
            ("notes", self.place.notes_at, &self.note),
            ("chain", self.place.values_at * 32, &self.values),
        ]
    }

    /// Reads the next frame; `None` at the end, or if no complete frame follows.
    fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut fixed = Vec::new();
        from.by_ref().take(FIXED as u64 + 32).read_to_end(&mut fixed)?;
        if fixed.len() < FIXED + 32 || fixed[..8] != *MAGIC {
            return Ok(None);
        }
        let (fixed, expected) = fixed.split_at(FIXED);
        let number = |at: usize, bytes: usize| {
            let bytes = fixed[at..at + bytes].iter().rev();
            bytes.fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let mut parts = Vec::with_capacity(4);
        for length in [number(8, 4), number(12, 4), number(16, 8), number(24, 8)] {
            let mut part = Vec::new();
            from.by_ref().take(length.min(LARGEST)).read_to_end(&mut part)?;
            if part.len() as u64 != length {
                return Ok(None);
            }
            parts.push(part);
        }
        let [place, note, values, lines] =
            parts.try_into().map_err(|_| io::Error::other("a frame has four parts"))?;
        let digests: Vec<u8> =
            split(&lines).flat_map(|line| *Digest::of(line).as_bytes()).collect();
        let check = Digest::of(&[fixed, &place, &note, &values, &digests].concat());
        let Ok(place) = serde_json::from_slice(&place) else { return Ok(None) };
        Ok((check.as_bytes() == expected).then_some(Self { place, note, values, lines }))
    }
}

/// Lines without their newlines.
fn split(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line))
}

/// Writes the frames of the journals to their positions in the old files, and cuts off the bytes
/// after them.
fn replay(journals: &[(u64, PathBuf)], machines: &Path) -> io::Result<()> {
    let mut ends: HashMap<PathBuf, u64> = HashMap::new();
    // Journals with a torn end: only the last one that was written to may have one.
    let mut torn = Vec::new();
    for (_, path) in journals {
        let mut reader = BufReader::new(open_regular_file(path)?);
        let mut good = 0;
        while let Some(frame) = OldFrame::read(&mut reader)? {
            good = reader.stream_position()?;
            let stem = frame.stem();
            fs::create_dir_all(stem.directory(machines))?;
            for (ending, at, bytes) in frame.parts() {
                let path = stem.path(machines, ending);
                let mut file = open(&path)?;
                if !ends.contains_key(&path) && file.metadata()?.len() < at && ending != "chain" {
                    return Err(io::Error::other(format!(
                        "`{}` is shorter than the journal says: start the release that wrote it \
                         once, which repairs it",
                        path.display()
                    )));
                }
                file.seek(SeekFrom::Start(at))?;
                file.write_all(bytes)?;
                ends.insert(path, at + bytes.len() as u64);
            }
        }
        if good > 0 {
            for path in torn.drain(..) {
                recover::keep_damaged(path)?;
            }
        }
        reader.seek(SeekFrom::Start(good))?;
        if has_content(&mut reader)? {
            torn.push(path);
        }
    }
    for (path, end) in ends {
        File::options().write(true).open(path)?.set_len(end)?;
    }
    Ok(())
}

/// Reports whether other bytes than zeros follow.
fn has_content(from: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = from.fill_buf()?;
        if bytes.is_empty() {
            return Ok(false);
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        let read = bytes.len();
        from.consume(read);
    }
}

fn stems(machines: &Path) -> io::Result<BTreeSet<Stem>> {
    let mut stems = BTreeSet::new();
    for machine in fs::read_dir(machines)? {
        let machine = machine?;
        let Some(name) = machine.file_name().to_str().map(str::to_owned) else { continue };
        if !machine.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(machine.path())? {
            let path = file?.path();
            let epoch = path.file_stem().and_then(|stem| stem.to_str());
            if let (Some(epoch), Some("notes")) = (epoch, ending(&path)) {
                stems.insert(Stem { machine: name.clone(), epoch: epoch.to_owned() });
            }
        }
    }
    Ok(stems)
}

fn ending(path: &Path) -> Option<&str> {
    path.extension()?.to_str()
}

fn convert_epoch(machines: &Path, stem: &Stem) -> io::Result<()> {
    let notes = read_notes(&stem.path(machines, "notes"))?;
    let lines = open_lines(&stem.lines(machines))?;
    let values = values(&stem.path(machines, "chain"), lines.as_ref(), &notes)?;
    let groups = groups(&stem.path(machines, "starts"))?;
    let aside = stem.path(machines, "index-new");
    let mut writer = BufWriter::new(File::create(&aside)?);
    let mut values = values.as_slice();
    for (text, note) in &notes {
        let count: u64 = note.change.new.iter().map(|new| new.count()).sum();
        let bytes = usize::try_from(count * 32).map_err(io::Error::other)?;
        let (own, rest) = values.split_at_checked(bytes).unwrap_or((values, &[]));
        values = rest;
        let known = groups.get(&note.lines_at).filter(|(bytes, _)| *bytes == note.bytes);
        let computed: Vec<u8>;
        let starts = match (known, &lines) {
            _ if note.bytes == 0 => &[],
            (Some((_, group)), _) => group.as_slice(),
            (None, Some(lines)) => {
                computed = starts(lines, note)?;
                &computed
            }
            (None, None) => &[],
        };
        writer.write_all(&index_record::encode(text, own, starts)?)?;
    }
    writer.flush()?;
    drop(writer);
    fs::rename(aside, stem.index(machines))
}

fn open_lines(path: &Path) -> io::Result<Option<File>> {
    match open_regular_file(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a file that may be missing.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    match read_whole_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result,
    }
}

/// Returns the undamaged notes and their text, without a torn end.
fn read_notes(path: &Path) -> io::Result<Vec<(Vec<u8>, Note)>> {
    let text = read(path)?;
    let whole = memchr::memrchr(b'\n', &text).map_or(0, |at| at + 1);
    let mut notes = Vec::new();
    for line in text[..whole].split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(note) => notes.push((line.to_vec(), note)),
            Err(_) if line == b"\n" => {}
            Err(error) => {
                error!(code = "note_damaged", file = %path.display(), %error, "found a damaged note");
            }
        }
    }
    Ok(notes)
}

/// Returns the values of the chain; computes them from lines and notes if the file does not have
/// one for each number.
fn values(path: &Path, lines: Option<&File>, notes: &[(Vec<u8>, Note)]) -> io::Result<Vec<u8>> {
    let held = read(path)?;
    let numbers = notes.iter().flat_map(|(_, note)| &note.change.new);
    if held.len() as u64 == numbers.map(|new| new.count()).sum::<u64>() * 32 {
        return Ok(held);
    }
    let mut values: Vec<Digest> = Vec::new();
    let mut ledger = Ledger::default();
    for (_, note) in notes {
        let digests = match lines {
            Some(lines) => digests(lines, note)?,
            None => BTreeMap::new(),
        };
        for new in &note.change.new {
            let start = ledger.start_of(*new, &note.change, &mut values.as_slice());
            let mut value = start.unwrap_or_default().unwrap_or_default();
            for seq in new.first..=new.last {
                value = value.chain(digests.get(&seq).copied().unwrap_or_default());
                values.push(value);
            }
        }
        ledger.apply(&note.change);
    }
    Ok(values.iter().flat_map(|value| *value.as_bytes()).collect())
}

/// Reads the lines of a note.
fn text(mut lines: &File, note: &Note) -> io::Result<Vec<u8>> {
    lines.seek(SeekFrom::Start(note.lines_at))?;
    let mut text = Vec::new();
    lines.take(note.bytes).read_to_end(&mut text)?;
    Ok(text)
}

/// Returns the digests of a note's lines and holes, without those of missing lines.
fn digests(lines: &File, note: &Note) -> io::Result<BTreeMap<u64, Digest>> {
    let text = text(lines, note)?;
    let holes = note.change.holes.iter().map(|hole| (hole.seq, hole.line_sha256));
    let held = split(&text).filter_map(|line| Some((seq_of(line)?, Digest::of(line))));
    Ok(holes.chain(held).collect())
}

/// Returns the starts of a note's lines.
fn starts(lines: &File, note: &Note) -> io::Result<Vec<u8>> {
    let text = text(lines, note)?;
    let origins: Vec<_> = split(&text).filter_map(origin_of).collect();
    let mut group = GroupWriter::default();
    for (generation, offset, part) in &origins {
        group.add(generation, *offset, *part);
    }
    group.finish(note.lines_at, note.bytes)
}

/// Returns size of the lines and text of each group, by the position of the lines.
fn groups(path: &Path) -> io::Result<HashMap<u64, (u64, Vec<u8>)>> {
    let text = read(path)?;
    let (mut rest, mut groups) = (text.as_slice(), HashMap::new());
    while let Some(group) = Group::read(&mut { rest })? {
        let length = usize::try_from(group.length).map_err(io::Error::other)?;
        let (own, after) = rest.split_at(length);
        groups.insert(group.lines_at, (group.lines_bytes, own.to_vec()));
        rest = after;
    }
    Ok(groups)
}
