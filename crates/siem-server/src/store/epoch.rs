//! The files of an epoch: lines, notes, and the chain's values.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use siem_protocol::Digest;

use super::frame::{Frame, Place};
use crate::ledger::ChainValues;

/// How many epochs' files are held open.
const OPEN: usize = 64;

/// An epoch's files, by the machine's directory and their common name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Stem {
    /// The machine's directory.
    pub(super) machine: String,
    /// The files' common name.
    pub(super) epoch: String,
}

impl Stem {
    /// Where `place` is.
    pub(super) fn of(place: &Place) -> Self {
        Self { machine: place.machine.clone(), epoch: place.epoch.clone() }
    }

    /// The machine's directory.
    pub(super) fn directory(&self, root: &Path) -> PathBuf {
        root.join(&self.machine)
    }

    /// The entries' lines, as they were received: what an analyst reads.
    pub(super) fn lines(&self, root: &Path) -> PathBuf {
        self.path(root, "ndjson")
    }

    /// What each batch changed.
    pub(super) fn notes(&self, root: &Path) -> PathBuf {
        self.path(root, "notes")
    }

    /// `h(n)` of the covered numbers, 32 bytes each.
    pub(super) fn values(&self, root: &Path) -> PathBuf {
        self.path(root, "chain")
    }

    /// Where its lines began in the files that they are from; see [`starts`](super::starts).
    pub(super) fn starts(&self, root: &Path) -> PathBuf {
        self.path(root, "starts")
    }

    /// All of its files that cannot be made again from others, and the chain.
    pub(super) fn all(&self, root: &Path) -> [PathBuf; 3] {
        [self.lines(root), self.notes(root), self.values(root)]
    }

    fn path(&self, root: &Path, ending: &str) -> PathBuf {
        self.directory(root).join(format!("{}.{ending}", self.epoch))
    }
}

/// Opens a file to read and write, and makes it where there is none.
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

/// The epochs' files, some of them held open.
#[derive(Debug)]
pub(super) struct EpochFiles {
    root: PathBuf,
    open: HashMap<Stem, Handles>,
    clock: u64,
}

impl EpochFiles {
    /// The files below `root`.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, open: HashMap::new(), clock: 0 }
    }

    /// Writes what a frame holds to its place; not synced. Doing it again changes nothing.
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
        // Behind all else, and not at a place of its own: it is derived, and says itself of which
        // lines it is.
        let Some(starts) = frame.starts()? else { return Ok(()) };
        let end = handles.starts.seek(SeekFrom::End(0))?;
        handles.starts.write_all(&starts).inspect_err(|_| {
            // What is left of it would only have to be made again.
            drop(handles.starts.set_len(end));
        })
    }

    /// Closes an epoch's files, since another file takes the place of one of them.
    pub(super) fn forget(&mut self, stem: &Stem) {
        self.open.remove(stem);
    }

    /// The chain's values of an epoch.
    pub(super) fn values<'a>(&'a mut self, stem: &'a Stem) -> Values<'a> {
        Values { files: self, stem }
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

/// Reads an epoch's values of the chain from their file.
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
