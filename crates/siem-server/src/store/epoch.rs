//! Files of an epoch: lines, notes, and the values of the chain.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use siem_protocol::Digest;

use super::{
    frame::{FilePositions, Frame},
    note_index::NotesRange,
};
use crate::ledger::ChainValues;

/// Number of epochs whose files stay open.
const OPEN: usize = 64;

/// Directory and common name of the files of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Stem {
    /// Directory of the machine.
    pub(super) machine: String,
    /// Common name of the files.
    pub(super) epoch: String,
}

impl Stem {
    /// Files to which `place` refers.
    pub(super) fn of(place: &FilePositions) -> Self {
        Self { machine: place.machine.clone(), epoch: place.epoch.clone() }
    }

    /// Path of the machine's directory.
    pub(super) fn directory(&self, root: &Path) -> PathBuf {
        root.join(&self.machine)
    }

    /// Lines of the entries as received, for analysts.
    pub(super) fn lines(&self, root: &Path) -> PathBuf {
        self.path(root, "ndjson")
    }

    /// Changes by each batch.
    pub(super) fn notes(&self, root: &Path) -> PathBuf {
        self.path(root, "notes")
    }

    /// `h(n)` of the covered numbers, 32 bytes each.
    pub(super) fn values(&self, root: &Path) -> PathBuf {
        self.path(root, "chain")
    }

    /// Positions of the lines in their original files; see [`starts`](super::starts).
    pub(super) fn starts(&self, root: &Path) -> PathBuf {
        self.path(root, "starts")
    }

    /// The files that cannot be rebuilt from others, and the chain.
    pub(super) fn all(&self, root: &Path) -> [PathBuf; 3] {
        [self.lines(root), self.notes(root), self.values(root)]
    }

    fn path(&self, root: &Path, ending: &str) -> PathBuf {
        self.directory(root).join(format!("{}.{ending}", self.epoch))
    }
}

/// Opens a file for reading and writing, and creates it if missing.
pub(super) fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

#[derive(Debug)]
struct Handles {
    lines: File,
    notes: File,
    values: File,
    starts: File,
    used: u64,
}

/// Files of epochs, some of them open.
#[derive(Debug)]
pub(super) struct EpochFiles {
    root: PathBuf,
    open: HashMap<Stem, Handles>,
    clock: u64,
}

impl EpochFiles {
    /// Creates the set of files below `root`.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, open: HashMap::new(), clock: 0 }
    }

    /// Writes the content of a frame to its positions, without sync. Repeating it changes nothing.
    pub(super) fn apply(&mut self, frame: &Frame) -> io::Result<()> {
        let handles = self.handles(&Stem::of(&frame.place))?;
        let mut lines = &handles.lines;
        lines.seek(SeekFrom::Start(frame.place.lines_at))?;
        let mut writer = BufWriter::with_capacity(64 << 10, lines);
        frame.lines.write(&mut writer)?;
        writer.flush()?;
        drop(writer);
        handles.values.seek(SeekFrom::Start(frame.place.values_at * 32))?;
        handles.values.write_all(&frame.values)?;
        handles.notes.seek(SeekFrom::Start(frame.place.notes_at))?;
        handles.notes.write_all(&frame.note)?;
        // Appended at the end rather than at a fixed position: it is derived data, and names the
        // lines that it covers.
        let Some(starts) = frame.starts()? else { return Ok(()) };
        let end = handles.starts.seek(SeekFrom::End(0))?;
        handles.starts.write_all(&starts).inspect_err(|_| {
            // A partial group would have to be rebuilt.
            drop(handles.starts.set_len(end));
        })
    }

    /// Closes the files of an epoch, because one of them was replaced.
    pub(super) fn forget(&mut self, stem: &Stem) {
        self.open.remove(stem);
    }

    /// Chain values of an epoch.
    pub(super) fn values<'a>(&'a mut self, stem: &'a Stem) -> Values<'a> {
        Values { files: self, stem }
    }

    /// Reads a part of an epoch's notes.
    pub(super) fn notes(&mut self, stem: &Stem, range: NotesRange) -> io::Result<Vec<u8>> {
        let handles = self.handles(stem)?;
        handles.notes.seek(SeekFrom::Start(range.at))?;
        let mut bytes = vec![0; usize::try_from(range.bytes).map_err(io::Error::other)?];
        handles.notes.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn handles(&mut self, stem: &Stem) -> io::Result<&mut Handles> {
        self.clock += 1;
        if !self.open.contains_key(stem) {
            self.make_room();
            fs::create_dir_all(stem.directory(&self.root))?;
            let [lines, notes, values] = stem.all(&self.root);
            let (lines, notes, values) = (open(&lines)?, open(&notes)?, open(&values)?);
            let starts = open(&stem.starts(&self.root))?;
            self.open.insert(stem.clone(), Handles { lines, notes, values, starts, used: 0 });
        }
        let handles = self.open.get_mut(stem).ok_or(io::ErrorKind::NotFound)?;
        handles.used = self.clock;
        Ok(handles)
    }

    fn make_room(&mut self) {
        if self.open.len() < OPEN {
            return;
        }
        let oldest = self.open.iter().min_by_key(|(_, handles)| handles.used);
        if let Some(stem) = oldest.map(|(stem, _)| stem.clone()) {
            self.open.remove(&stem);
        }
    }
}

/// Reads the chain's values of an epoch from their file.
#[derive(Debug)]
pub(super) struct Values<'a> {
    files: &'a mut EpochFiles,
    stem: &'a Stem,
}

impl ChainValues for Values<'_> {
    type Error = io::Error;

    fn read(&mut self, at: u64, count: u64) -> io::Result<Vec<Digest>> {
        let handles = self.files.handles(self.stem)?;
        handles.values.seek(SeekFrom::Start(at * 32))?;
        let length = usize::try_from(count * 32).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        handles.values.read_exact(&mut bytes)?;
        let (values, _) = bytes.as_chunks::<32>();
        Ok(values.iter().map(|value| Digest::from_bytes(*value)).collect())
    }
}
