//! Files of an epoch: its lines, and its index.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use super::{
    frame::{FilePositions, Frame},
    note_index::IndexRange,
    release,
};
use crate::regular_file::check_regular;

/// Number of epochs whose files stay open, unless another one is chosen.
pub(super) const OPEN_EPOCHS: usize = 64;

/// Largest buffer for lines that are written.
const BUFFER: usize = 64 << 10;

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

    /// Common name of the files, with their directory.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.machine, self.epoch)
    }

    /// Path of the machine's directory.
    pub(super) fn directory(&self, root: &Path) -> PathBuf {
        root.join(&self.machine)
    }

    /// Lines of the entries as received, for analysts.
    pub(super) fn lines(&self, root: &Path) -> PathBuf {
        self.path(root, "ndjson")
    }

    /// Changes by each batch, the values of the chain, and the positions of the lines in their
    /// original files; see [`index_record`](super::index_record).
    pub(super) fn index(&self, root: &Path) -> PathBuf {
        self.path(root, "index")
    }

    /// Path of a file with another ending.
    pub(super) fn path(&self, root: &Path, ending: &str) -> PathBuf {
        let mut path = PathBuf::with_capacity(
            root.as_os_str().len() + self.machine.len() + self.epoch.len() + ending.len() + 3,
        );
        path.extend([root, Path::new(&self.machine), Path::new(&self.epoch)]);
        for part in [".", ending] {
            path.as_mut_os_string().push(part);
        }
        path
    }
}

/// Opens a file for reading and writing, and creates it if missing.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    check_regular(file)
}

#[derive(Debug)]
struct Handles {
    /// Missing until the epoch has a line.
    lines: Option<File>,
    index: File,
    used: u64,
}

/// Files of epochs, some of them open.
#[derive(Debug)]
pub(super) struct EpochFiles {
    root: PathBuf,
    open: HashMap<Stem, Handles>,
    /// Number of epochs whose files stay open.
    most: usize,
    clock: u64,
}

impl EpochFiles {
    /// Creates the set of files below `root`.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, open: HashMap::new(), most: OPEN_EPOCHS, clock: 0 }
    }

    /// Keeps the files of up to `most` epochs open: two for each.
    pub(super) fn keep_open(self, most: usize) -> Self {
        Self { most: most.max(1), ..self }
    }

    /// Writes the content of a frame to its positions, without sync. Repeating it changes nothing.
    pub(super) fn apply(&mut self, frame: &Frame) -> io::Result<()> {
        let stem = Stem::of(&frame.place);
        if frame.place.removes {
            self.remove_lines(&stem)?;
        } else if frame.place.removes_before > 0 {
            release::release(self.lines(&stem)?, frame.place.removes_before)?;
        } else if !frame.place.replaces.is_empty() {
            // Readers look for the record after they read the lines.
            self.write_record(&stem, frame)?;
            return self.replace_lines(&stem, frame);
        } else if frame.lines.length() > 0 {
            let mut lines = self.lines(&stem)?;
            lines.seek(SeekFrom::Start(frame.place.lines_at))?;
            let most = usize::try_from(frame.lines.length()).unwrap_or(BUFFER);
            let mut writer = BufWriter::with_capacity(most.min(BUFFER), lines);
            frame.lines.write(&mut writer)?;
            writer.flush()?;
        }
        self.write_record(&stem, frame)
    }

    fn write_record(&mut self, stem: &Stem, frame: &Frame) -> io::Result<()> {
        let handles = self.handles(stem)?;
        handles.index.seek(SeekFrom::Start(frame.place.index_at))?;
        handles.index.write_all(&frame.record)
    }

    /// Reads a part of an epoch's index.
    pub(super) fn index(&mut self, stem: &Stem, range: IndexRange) -> io::Result<Vec<u8>> {
        let handles = self.handles(stem)?;
        handles.index.seek(SeekFrom::Start(range.at))?;
        let mut bytes = vec![0; usize::try_from(range.bytes).map_err(io::Error::other)?];
        handles.index.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Overwrites lines with others of the same size.
    fn replace_lines(&mut self, stem: &Stem, frame: &Frame) -> io::Result<()> {
        let mut text = Vec::new();
        frame.lines.write(&mut text)?;
        let (mut file, mut rest) = (self.lines(stem)?, text.as_slice());
        for (at, bytes) in &frame.place.replaces {
            let bytes = usize::try_from(*bytes).map_err(io::Error::other)?;
            let (line, others) = rest.split_at_checked(bytes).ok_or(io::ErrorKind::InvalidData)?;
            file.seek(SeekFrom::Start(*at))?;
            file.write_all(line)?;
            rest = others;
        }
        Ok(())
    }

    fn remove_lines(&mut self, stem: &Stem) -> io::Result<()> {
        self.handles(stem)?.lines = None;
        // With those that a repair moved aside.
        for path in [stem.lines(&self.root), stem.path(&self.root, "surplus")] {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
        Ok(())
    }

    fn lines(&mut self, stem: &Stem) -> io::Result<&File> {
        let path = stem.lines(&self.root);
        let handles = self.handles(stem)?;
        let file = match handles.lines.take() {
            Some(file) => file,
            None => open(&path)?,
        };
        Ok(handles.lines.insert(file))
    }

    fn handles(&mut self, stem: &Stem) -> io::Result<&mut Handles> {
        self.clock += 1;
        if !self.open.contains_key(stem) {
            self.make_room();
            let path = stem.index(&self.root);
            let index = match open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir_all(stem.directory(&self.root))?;
                    open(&path)?
                }
                index => index?,
            };
            self.open.insert(stem.clone(), Handles { lines: None, index, used: 0 });
        }
        let handles = self.open.get_mut(stem).ok_or(io::ErrorKind::NotFound)?;
        handles.used = self.clock;
        Ok(handles)
    }

    /// Closes a quarter of the files, those that were used longest ago, if there is no room for others.
    fn make_room(&mut self) {
        if self.open.len() < self.most {
            return;
        }
        let mut used: Vec<u64> = self.open.values().map(|handles| handles.used).collect();
        let (_, last, _) = used.select_nth_unstable(self.most.div_ceil(4) - 1);
        self.open.retain(|_, handles| handles.used > *last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::frame::Lines;

    #[test]
    fn record_of_an_erasure_is_written_before_its_lines() {
        let root = tempfile::tempdir().unwrap();
        // Lines that cannot be written.
        fs::create_dir_all(root.path().join("m/e.ndjson")).unwrap();
        let mut files = EpochFiles::new(root.path().to_owned());
        let (machine, epoch) = ("m".to_owned(), "e".to_owned());
        let place =
            FilePositions { machine, epoch, replaces: vec![(0, 3)], ..FilePositions::default() };
        let lines = Lines::Read(b"{}\n".to_vec());
        files.apply(&Frame { place, record: b"record".to_vec(), lines }).unwrap_err();
        assert_eq!(fs::read(root.path().join("m/e.index")).unwrap(), b"record");
    }

    #[test]
    fn only_so_many_files_are_open_and_the_latest_stay() {
        let root = tempfile::tempdir().unwrap();
        let mut files = EpochFiles::new(root.path().to_owned()).keep_open(8);
        let stem = |number: u32| Stem { machine: format!("m{number}"), epoch: "e".into() };
        for number in 0..100 {
            // One of them is used again and again.
            for number in [number, 0] {
                files.index(&stem(number), IndexRange { at: 0, bytes: 0 }).unwrap();
            }
            assert!(files.open.len() <= 8);
            assert!(files.open.contains_key(&stem(0)) && files.open.contains_key(&stem(number)));
        }
        let mut one = EpochFiles::new(root.path().to_owned()).keep_open(0);
        (0..3).for_each(|number| drop(one.index(&stem(number), IndexRange { at: 0, bytes: 0 })));
        assert_eq!(one.open.len(), 1);
    }
}
