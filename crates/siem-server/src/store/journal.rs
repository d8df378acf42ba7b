//! The journal: each batch is written to it and synced before the response.
//!
//! Journals are numbered files. Only the last one is written to; a sealed one is deleted, in order,
//! once its content is synced in the files of the epochs. While groups are small, zeros follow the
//! last frame: syncing bytes within a file of constant length is fast, while a new length has to
//! wait for other pending writes of the file system.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    thread,
};

use memchr::memmem;
use tracing::debug;

use super::{
    frame::{Frame, Lines, MAGIC, head_length},
    index_record::RecordParts,
    sync_directory,
};
use crate::{background::lower_priority, regular_file::open_regular_file};

const BUFFER: usize = 256 << 10;
const ENDING: &str = "journal";
/// Number of zeros per write.
const ZEROS: &[u8] = &[0; 64 << 10];
/// Larger groups get no zeros: their bytes would be written twice, and their syncs take long in any
/// case.
const LARGE_GROUP: u64 = 1 << 20;
/// Maximum number of zeros ahead. A group waits for them to be written.
const AHEAD: u64 = 2 << 20;
/// Number of bytes that are searched at once for a frame.
const STEP: u64 = 1 << 20;

/// The journal that is written to.
#[derive(Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    number: u64,
    file: File,
    length: u64,
    /// Size of the file in bytes, zeros included.
    end: u64,
    /// Number of groups written.
    groups: u64,
    next: Option<thread::JoinHandle<io::Result<Self>>>,
    /// Set if the remains of a failed write could not be removed.
    broken: bool,
    /// Simulates the free space of a disk.
    #[cfg(test)]
    pub(super) space: Option<&'static std::sync::atomic::AtomicU64>,
}

impl Journal {
    /// Creates journal `number`.
    pub(super) fn create(directory: &Path, number: u64) -> io::Result<Self> {
        let file = File::create_new(path(directory, number))?;
        sync_directory(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            number,
            file,
            length: 0,
            end: 0,
            groups: 0,
            next: None,
            broken: false,
            #[cfg(test)]
            space: None,
        })
    }

    /// Size in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Reports whether the journal must be sealed before the next write.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Writes the frames and syncs once. After an error none of them counts as written. A restart
    /// may find them nevertheless, as if their responses had been lost.
    pub(super) fn append<'a>(&mut self, frames: impl Iterator<Item = &'a Frame>) -> io::Result<()> {
        match self.try_append(frames) {
            Ok(length) => {
                self.length = length;
                self.groups += 1;
                Ok(())
            }
            Err(error) => {
                let taken_back = self
                    .file
                    .set_len(self.length)
                    .and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
                // After a failed sync the content of the disk is unknown: continue in another file.
                self.broken |= taken_back.is_err() || self.file.sync_data().is_err();
                self.end = self.length;
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
        if length > self.end {
            self.end = length;
            if length - self.length < LARGE_GROUP {
                let ahead = length.clamp(ZEROS.len() as u64, AHEAD);
                if self.zeros(ahead).is_err() {
                    // There may still be space for the frames.
                    self.file.set_len(length)?;
                    self.end = length;
                }
                self.file.seek(SeekFrom::Start(length))?;
            }
        }
        #[cfg(test)]
        if self.space.is_some_and(|space| length > space.load(std::sync::atomic::Ordering::SeqCst))
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Err(error) = self.file.sync_data() {
            self.broken = true;
            return Err(error);
        }
        debug!(bytes = length - self.length, "synced the journal");
        Ok(length)
    }

    /// Appends zeros to the file.
    fn zeros(&mut self, count: u64) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.end))?;
        for _ in 0..count.div_ceil(ZEROS.len() as u64) {
            self.file.write_all(ZEROS)?;
            self.end += ZEROS.len() as u64;
        }
        Ok(())
    }

    /// Creates the next journal while this one is written to. It will probably become `bytes` long.
    pub(super) fn prepare_next(&mut self, bytes: u64) {
        if self.next.is_some() {
            return;
        }
        let small = self.length / self.groups.max(1) < LARGE_GROUP;
        let (directory, number) = (self.directory.clone(), self.number + 1);
        let make = move || {
            lower_priority();
            let mut next = Self::create(&directory, number)?;
            if small {
                // In steps: the sync of a group would wait for all of them.
                while next.end < bytes {
                    next.zeros(AHEAD.min(bytes - next.end))?;
                    next.file.sync_data()?;
                }
                next.file.seek(SeekFrom::Start(0))?;
                next.file.sync_all()?;
            }
            Ok(next)
        };
        // On failure the next journal is created when it is needed.
        self.next = thread::Builder::new().name("journal".into()).spawn(make).ok();
    }

    /// Truncates the zeros.
    pub(super) fn trim(&self) -> io::Result<()> {
        self.file.set_len(self.length)
    }

    /// Starts the next journal and returns the path of this one.
    pub(super) fn seal(&mut self) -> io::Result<PathBuf> {
        let prepared = self.next.take().and_then(|next| next.join().ok()?.ok());
        let next = match prepared {
            Some(next) => next,
            None => {
                let number = self.number + 1;
                // The existing file holds no frame.
                match fs::remove_file(path(&self.directory, number)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => Self::create(&self.directory, number)?,
                }
            }
        };
        #[cfg(test)]
        let next = Self { space: self.space, ..next };
        let sealed = std::mem::replace(self, next);
        Ok(path(&sealed.directory, sealed.number))
    }
}

/// Journals in `directory`, in order.
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

/// End of a journal as [`replay`] found it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ReplayEnd {
    /// End of the last frame.
    pub(super) frames: u64,
    /// Number of bytes after it up to the last one that is not zero.
    pub(super) torn: u64,
}

/// Passes each frame of a journal to a function, up to the first bytes that are none.
pub(super) fn replay(
    path: &Path,
    mut show: impl FnMut(Frame) -> io::Result<()>,
) -> io::Result<ReplayEnd> {
    let file = open_regular_file(path)?;
    let mut reader = BufReader::with_capacity(BUFFER, file);
    let mut good = 0;
    while let Some(frame) = Frame::read(&mut reader)? {
        good = reader.stream_position()?;
        show(frame)?;
    }
    reader.seek(SeekFrom::Start(good))?;
    let (mut at, mut torn) = (good, 0);
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(ReplayEnd { frames: good, torn });
        }
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            torn = at + last as u64 + 1 - good;
        }
        let read = bytes.len();
        at += read as u64;
        reader.consume(read);
    }
}

/// Part of a damaged journal, for what the operator wants to be erased.
pub(crate) enum DamagedPart<'a> {
    /// Lines from a position on, and who sent them; the user is empty if unknown.
    Lines { at: u64, machine: &'a str, user: &'a str, text: &'a [u8] },
    /// Bytes between two positions that cannot be read, of which those up to `lines` are no lines: the first
    /// bytes of a frame that is damaged behind them.
    Damage { start: u64, lines: u64, end: u64 },
}

/// Passes the parts of a damaged journal to a function, without those that hold no lines.
pub(crate) fn damaged_parts(
    path: &Path,
    mut show: impl FnMut(DamagedPart<'_>) -> io::Result<()>,
) -> io::Result<()> {
    parts(path, 0, |part| {
        let (frame, end) = match part {
            JournalPart::Frame(frame, end) => (frame, end),
            JournalPart::Damage(start, end) => {
                let lines = damaged_lines(path, start, end)?;
                return show(DamagedPart::Damage { start, lines, end });
            }
        };
        let mut record = frame.record.as_slice();
        let note = RecordParts::take(&mut record).and_then(|parts| parts.note());
        let sender = note.and_then(|note| note.sender).map(|sender| sender.identity);
        let (machine, user) = sender.map_or_else(Default::default, |it| (it.machine_id, it.user));
        let Lines::Read(text) = &frame.lines else { return Ok(()) };
        let at = end - text.len() as u64;
        show(DamagedPart::Lines { at, machine: &machine, user: &user, text })
    })
}

/// Returns the position of the first line in damage, or its start if that may be part of a line.
fn damaged_lines(path: &Path, start: u64, end: u64) -> io::Result<u64> {
    let mut file = open_regular_file(path)?;
    file.seek(SeekFrom::Start(start))?;
    let head = head_length(&mut (&file).take(end - start))?;
    let Some(at) = head.and_then(|it| start.checked_add(it)).filter(|at| *at < end) else {
        return Ok(start);
    };
    let mut line = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    BufReader::new(file.take(end - at)).read_until(b'\n', &mut line)?;
    // With damaged lengths it would be anywhere. An erased line is blank.
    let is_line = line.starts_with(br#"{"seq":"#) || line.trim_ascii().is_empty();
    Ok(if is_line { at } else { start })
}

/// Copies a damaged journal with spaces in the place of some lines, by their positions and sizes in ascending
/// order. Its frames get the checks of what they hold then: they stay frames.
pub(crate) fn copy_with_blanks(
    path: &Path,
    lines: &[(u64, u64)],
    to: &mut impl io::Write,
) -> io::Result<()> {
    let mut file = open_regular_file(path)?;
    parts(path, 0, |part| match part {
        JournalPart::Frame(mut frame, end) => {
            if let Lines::Read(text) = &mut frame.lines {
                let start = end - text.len() as u64;
                for (at, bytes) in within(lines, start, end) {
                    let [from, to] = [at - start, at + bytes - start].map(usize::try_from);
                    let (from, to) =
                        (from.map_err(io::Error::other)?, to.map_err(io::Error::other)?);
                    text[from..to].fill(b' ');
                    text[to - 1] = b'\n';
                }
            }
            frame.write(to)
        }
        JournalPart::Damage(start, end) => {
            let mut done = start;
            for (at, bytes) in within(lines, start, end) {
                file.seek(SeekFrom::Start(done))?;
                io::copy(&mut (&file).take(at - done), to)?;
                io::copy(&mut io::repeat(b' ').take(bytes - 1), to)?;
                to.write_all(b"\n")?;
                done = at + bytes;
            }
            file.seek(SeekFrom::Start(done))?;
            io::copy(&mut (&file).take(end - done), to)?;
            Ok(())
        }
    })
}

/// Returns the lines that start between two positions.
fn within(lines: &[(u64, u64)], start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    let first = lines.partition_point(|(at, _)| *at < start);
    lines[first..].iter().copied().take_while(move |(at, _)| *at < end)
}

/// Part of a journal that may be damaged.
pub(super) enum JournalPart {
    /// An undamaged frame, which ends at a position.
    Frame(Box<Frame>, u64),
    /// Bytes between two positions that are no frame.
    Damage(u64, u64),
}

/// Passes the parts of a journal from position `from` on to a function, in their order.
pub(super) fn parts(
    path: &Path,
    from: u64,
    mut show: impl FnMut(JournalPart) -> io::Result<()>,
) -> io::Result<()> {
    let file = open_regular_file(path)?;
    let mut at = from;
    loop {
        let mut reader = BufReader::with_capacity(BUFFER, &file);
        reader.seek(SeekFrom::Start(at))?;
        while let Some(frame) = Frame::read(&mut reader)? {
            at = reader.stream_position()?;
            show(JournalPart::Frame(Box::new(frame), at))?;
        }
        let next = next_frame(&file, at)?;
        let end = next.map_or_else(|| file.metadata().map(|it| it.len()), Ok)?;
        if end > at {
            show(JournalPart::Damage(at, end))?;
        }
        let Some(next) = next else { return Ok(()) };
        at = next;
    }
}

/// Returns the position of the first undamaged frame that starts after position `from`.
fn next_frame(mut file: &File, from: u64) -> io::Result<Option<u64>> {
    let length = file.metadata()?.len();
    let (mut at, mut block) = (from + 1, Vec::new());
    while at < length {
        block.clear();
        file.seek(SeekFrom::Start(at))?;
        file.take(STEP + MAGIC.len() as u64 - 1).read_to_end(&mut block)?;
        for found in memmem::find_iter(&block, MAGIC) {
            let found = at + found as u64;
            file.seek(SeekFrom::Start(found))?;
            // Lines cannot imitate a head: its lengths have bytes that JSON does not permit.
            if Frame::read(&mut BufReader::with_capacity(BUFFER, file))?.is_some() {
                return Ok(Some(found));
            }
        }
        at += STEP;
    }
    Ok(None)
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:012}.{ENDING}"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::store::frame::FilePositions;

    fn frame(number: u64) -> Frame {
        let place = FilePositions { lines_at: number, ..FilePositions::default() };
        let lines = Lines::Read(b"{}\n".repeat(20));
        Frame { place, record: vec![0; 35], lines }
    }

    fn replayed(path: &Path) -> Vec<u64> {
        let mut numbers = Vec::new();
        let end = replay(path, |frame| {
            numbers.push(frame.place.lines_at);
            Ok(())
        });
        assert_eq!(end.unwrap().torn, 0);
        numbers
    }

    #[test]
    fn group_that_does_not_fit_leaves_no_trace() {
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
