//! The journal: every batch is written here and synced before it is answered.
//!
//! Journals are numbered files. Only the last is written to; one that is sealed goes, in order,
//! once all it holds is synced in the epochs' files.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use super::{frame::Frame, sync_directory};

const BUFFER: usize = 256 << 10;
const ENDING: &str = "journal";

/// The journal that is written to.
#[derive(Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    number: u64,
    file: File,
    length: u64,
    /// Set when what a failed write left behind could not be taken back.
    broken: bool,
    /// Stands for the free space of a disk.
    #[cfg(test)]
    pub(super) space: Option<&'static std::sync::atomic::AtomicU64>,
}

impl Journal {
    /// Begins journal `number`.
    pub(super) fn create(directory: &Path, number: u64) -> io::Result<Self> {
        let file = File::create_new(path(directory, number))?;
        sync_directory(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            number,
            file,
            length: 0,
            broken: false,
            #[cfg(test)]
            space: None,
        })
    }

    /// How many bytes it has.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Whether it must be sealed before anything else is written.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Writes the frames and syncs once. After an error none of them counts as written: a restart
    /// may find them all the same, which is then as if their answers had been lost.
    pub(super) fn append<'a>(&mut self, frames: impl Iterator<Item = &'a Frame>) -> io::Result<()> {
        match self.try_append(frames) {
            Ok(length) => {
                self.length = length;
                Ok(())
            }
            Err(error) => {
                let taken_back = self
                    .file
                    .set_len(self.length)
                    .and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
                // After a failed sync nobody knows what is on the disk: go on in another file.
                self.broken |= taken_back.is_err() || self.file.sync_data().is_err();
                Err(error)
            }
        }
    }

    fn try_append<'a>(&mut self, frames: impl Iterator<Item = &'a Frame>) -> io::Result<u64> {
        let mut writer = BufWriter::with_capacity(BUFFER, &self.file);
        for frame in frames {
            frame.write(&mut writer)?;
        }
        writer.flush()?;
        drop(writer);
        let length = self.file.stream_position()?;
        #[cfg(test)]
        if self.space.is_some_and(|space| length > space.load(std::sync::atomic::Ordering::SeqCst))
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Err(error) = self.file.sync_data() {
            self.broken = true;
            return Err(error);
        }
        Ok(length)
    }

    /// Begins the next journal and gives the path of this one.
    pub(super) fn seal(&mut self) -> io::Result<PathBuf> {
        let next = Self::create(&self.directory, self.number + 1)?;
        #[cfg(test)]
        let next = Self { space: self.space, ..next };
        let sealed = std::mem::replace(self, next);
        Ok(path(&sealed.directory, sealed.number))
    }
}

/// The journals in `directory`, in order.
pub(super) fn list(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut journals = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let (Some(number), true) = (number, path.extension().is_some_and(|e| e == ENDING)) {
            journals.push((number, path));
        }
    }
    journals.sort_unstable();
    Ok(journals)
}

/// Shows each frame of a journal and tells how many bytes behind them are no frame.
pub(super) fn replay(
    path: &Path,
    mut show: impl FnMut(Frame) -> io::Result<()>,
) -> io::Result<u64> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(BUFFER, file);
    let mut good = 0;
    while let Some(frame) = Frame::read(&mut reader)? {
        good = reader.stream_position()?;
        show(frame)?;
    }
    Ok(length - good)
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:012}.{ENDING}"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::store::frame::{Lines, Place};

    fn frame(number: u64) -> Frame {
        let place = Place {
            machine: "m".into(),
            epoch: "e".into(),
            lines_at: number,
            notes_at: 0,
            values_at: 0,
        };
        let lines = Lines::Read(b"{}\n".repeat(20));
        Frame { place, note: b"{}\n".to_vec(), values: vec![0; 32], lines }
    }

    fn replayed(path: &Path) -> Vec<u64> {
        let mut numbers = Vec::new();
        let torn = replay(path, |frame| {
            numbers.push(frame.place.lines_at);
            Ok(())
        });
        assert_eq!(torn.unwrap(), 0);
        numbers
    }

    #[test]
    fn a_group_that_does_not_fit_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(root.path(), 1).unwrap();
        journal.append([frame(1), frame(2)].iter()).unwrap();
        let space = Box::leak(Box::new(AtomicU64::new(journal.length() + 100)));
        journal.space = Some(space);
        let refused = journal.append([frame(3), frame(4)].iter()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert!(!journal.is_broken());
        let path = path(root.path(), 1);
        assert_eq!(replayed(&path), [1, 2]);
        space.store(u64::MAX, Ordering::SeqCst);
        journal.append([frame(5)].iter()).unwrap();
        assert_eq!(replayed(&path), [1, 2, 5]);
        assert_eq!(journal.seal().unwrap(), path);
        assert_eq!(list(root.path()).unwrap().len(), 2);
    }
}
