//! Lines with long runs of NUL: found, hashed and counted without being held in memory.
//!
//! A sparse file, or a crash of the machine, leaves lines of gigabytes that consist of NULs. Such a
//! line is scanned in slices, so that other files are read in between. Holes are skipped where the
//! file system reports them. Once the end of the line, or of a part of it, is known, the bytes
//! outside of the runs are read again.

use std::{fmt, io};

use memchr::memchr;
use siem_protocol::nul_runs::{
    LineHasher, MAX_NUL_RUNS, NulRun, NulSplitter, Segment, total_length,
};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::platform::file::ReadAt;

/// Number of bytes that are read or hashed in one slice.
pub(super) const SLICE: u64 = 8 << 20;

/// Length of the shortest hole that is skipped. To read a shorter one takes no time, and does not
/// depend on what the file system reports.
const MIN_HOLE: u64 = 1 << 20;

/// Number of bytes at each end of a run that are read again before it is handed over.
const RUN_SAMPLE: usize = 4096;

/// Result of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScanState {
    /// The slice is over.
    Paused,
    /// The end of the file was reached.
    AtEnd,
    /// The newline was found.
    Complete,
    /// The content of a part is complete, and at least one byte follows.
    PartComplete,
}

/// A line, or the rest of one, that contains runs of NUL.
#[derive(Debug)]
pub(super) struct LineScan {
    start: u64,
    /// Next byte to read.
    at: u64,
    splitter: NulSplitter,
    /// True if the last byte was a `\r`, which may be part of the line's ending.
    has_return: bool,
    content: ScannedContent,
    attempt: Attempt,
}

/// Number of times that a line was scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// The line is scanned for the first time.
    First,
    /// The line is scanned again, because its bytes had changed.
    Second,
    /// The bytes have changed since the first scan: nothing of it is used.
    Void,
}

/// Content of an entry, without the bytes of its data.
#[derive(Clone, Debug)]
pub(super) struct ScannedContent {
    /// Maximum number of bytes of the data.
    max_data: u64,
    data: u64,
    runs: Vec<NulRun>,
    check: DataHash,
    hasher: LineHasher,
    is_full: bool,
}

/// Hash of the data.
#[derive(Clone, Default)]
struct DataHash(Box<Xxh3>);

impl fmt::Debug for DataHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DataHash").field(&self.0.digest()).finish()
    }
}

impl LineScan {
    /// Starts a scan at `start`. `hasher` contains the parts of the line before it; the content ends
    /// when its data has `max_data` bytes.
    pub(super) fn new(start: u64, max_data: usize, hasher: LineHasher) -> Self {
        let content = ScannedContent {
            max_data: max_data as u64,
            data: 0,
            runs: Vec::new(),
            check: DataHash::default(),
            hasher,
            is_full: false,
        };
        let splitter = NulSplitter::default();
        let attempt = Attempt::First;
        Self { start, at: start, splitter, has_return: false, content, attempt }
    }

    /// Marks a scan of a line whose bytes had changed after the first scan.
    pub(super) fn repeated(self) -> Self {
        Self { attempt: Attempt::Second, ..self }
    }

    /// Returns whether the line is scanned again, because its bytes had changed.
    pub(super) fn is_repeated(&self) -> bool {
        self.attempt == Attempt::Second
    }

    /// Stands for a scan from `start` of bytes that have changed since.
    pub(super) fn void(start: u64) -> Self {
        let scan = Self::new(start, 0, LineHasher::default());
        Self { attempt: Attempt::Void, ..scan }
    }

    /// Returns whether the scanned bytes have changed.
    pub(super) fn is_void(&self) -> bool {
        self.attempt == Attempt::Void
    }

    /// Returns whether this is a scan from `offset` in a file that still has the scanned bytes.
    pub(super) fn continues(&self, offset: u64, size: u64) -> bool {
        self.start == offset && self.at <= size && !self.is_void()
    }

    /// End of the scanned bytes.
    pub(super) fn end(&self) -> u64 {
        self.at
    }

    /// Scans the next slice of a file of `size` bytes. `buffer` is used for reading.
    ///
    /// # Errors
    /// Errors of reading the file; the call can be repeated.
    pub(super) fn advance(
        &mut self,
        file: &dyn ReadAt,
        size: u64,
        buffer: &mut [u8],
    ) -> io::Result<ScanState> {
        let mut budget = SLICE;
        while !self.content.is_full {
            if budget == 0 {
                return Ok(ScanState::Paused);
            }
            // A `\r` that is held back ends the run, and is not in the hash yet.
            let is_in_run = self.splitter.is_in_run() && !self.has_return;
            let run = is_in_run.then_some(&self.content.hasher);
            let newline = match read_segment(file, self.at, size, run, buffer, &mut budget)? {
                None => return Ok(ScanState::AtEnd),
                Some(Segment::Nuls(count)) => {
                    self.push_return();
                    let content = &mut self.content;
                    self.splitter.push_nuls(count, &mut |segment| content.add(segment));
                    self.at += count;
                    None
                }
                Some(Segment::Data(bytes)) => {
                    let newline = memchr(b'\n', bytes);
                    let bytes = &bytes[..newline.unwrap_or(bytes.len())];
                    self.push(bytes);
                    self.at += bytes.len() as u64;
                    newline
                }
            };
            if newline.is_some() {
                let content = &mut self.content;
                self.splitter.finish(&mut |segment| content.add(segment));
                self.at += 1;
                if !self.content.is_full {
                    return Ok(ScanState::Complete);
                }
            }
        }
        Ok(ScanState::PartComplete)
    }

    /// Adds the `\r` that was held back, since a newline does not follow it.
    fn push_return(&mut self) {
        let Self { splitter, has_return, content, .. } = self;
        if std::mem::take(has_return) {
            splitter.push(b"\r", &mut |segment| content.add(segment));
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.push_return();
        let Self { splitter, has_return, content, .. } = self;
        let body = bytes.strip_suffix(b"\r");
        *has_return = body.is_some();
        splitter.push(body.unwrap_or(bytes), &mut |segment| content.add(segment));
    }

    /// Number of bytes of the file that the content occupies; with the line's ending after
    /// [`ScanState::Complete`].
    pub(super) fn size(&self, state: ScanState) -> u64 {
        match state {
            ScanState::Complete => self.at - self.start,
            _ => self.content.length(),
        }
    }

    /// Returns the content of the scanned bytes, which will never be followed by a newline.
    pub(super) fn incomplete(&self) -> ScannedContent {
        let mut content = ScannedContent { max_data: u64::MAX, ..self.content.clone() };
        let mut splitter = self.splitter;
        if self.has_return {
            splitter.push(b"\r", &mut |segment| content.add(segment));
        }
        splitter.finish(&mut |segment| content.add(segment));
        content
    }

    /// Returns the content.
    pub(super) fn into_content(self) -> ScannedContent {
        self.content
    }
}

impl ScannedContent {
    fn add(&mut self, segment: Segment<'_>) {
        if self.is_full {
            return;
        }
        match segment {
            Segment::Data(bytes) => {
                let room = usize::try_from(self.max_data - self.data).unwrap_or(usize::MAX);
                let taken = &bytes[..bytes.len().min(room)];
                self.check.0.update(taken);
                self.hasher.update(Segment::Data(taken));
                self.data += taken.len() as u64;
                self.is_full = taken.len() < bytes.len();
            }
            Segment::Nuls(count) => {
                let offset = self.length();
                let is_full = self.runs.len() == MAX_NUL_RUNS;
                match self.runs.last_mut() {
                    Some(run) if run.end() == offset => run.length += count,
                    _ if is_full => {
                        self.is_full = true;
                        return;
                    }
                    _ => self.runs.push(NulRun { offset, length: count }),
                }
                self.hasher.update(Segment::Nuls(count));
            }
        }
    }

    /// Length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.data + total_length(&self.runs)
    }

    /// Number of bytes outside of runs.
    pub(super) fn data_len(&self) -> u64 {
        self.data
    }

    /// Runs of NUL, and the hash of the line up to the end of the content.
    pub(super) fn into_parts(self) -> (Vec<NulRun>, LineHasher) {
        (self.runs, self.hasher)
    }

    /// Reads the data of the content at `start` to the beginning of `buffer`. Returns its size, or
    /// `None` if the bytes have changed since they were scanned.
    ///
    /// # Errors
    /// Errors of reading the file.
    pub(super) fn read_data(
        &self,
        file: &dyn ReadAt,
        start: u64,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Option<usize>> {
        let len = usize::try_from(self.data).map_err(|_| io::ErrorKind::OutOfMemory)?;
        buffer.resize(len.max(buffer.len()), 0);
        let (mut filled, mut at) = (0, start);
        let end = NulRun { offset: self.length(), length: 0 };
        for run in self.runs.iter().chain([&end]) {
            let to = start + run.offset;
            let piece = usize::try_from(to - at).map_or(len, |piece| filled + piece).min(len);
            if file.fill_at(&mut buffer[filled..piece], at)? < piece - filled
                || !is_still_nul(file, to, run.length)?
            {
                return Ok(None);
            }
            (filled, at) = (piece, to + run.length);
        }
        Ok((xxh3_64(&buffer[..len]) == self.check.0.digest()).then_some(len))
    }
}

/// Returns whether a run still starts and ends with NULs. Its other bytes are not read again, since
/// it may be a hole of any size.
fn is_still_nul(file: &dyn ReadAt, offset: u64, length: u64) -> io::Result<bool> {
    let len = usize::try_from(length).map_or(RUN_SAMPLE, |length| length.min(RUN_SAMPLE));
    let mut sample = [0; RUN_SAMPLE];
    for at in [offset, offset + length - len as u64] {
        let filled = file.fill_at(&mut sample[..len], at)?;
        if filled < len || sample[..len].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads at `at` up to `size`, or skips a hole if the bytes before it are a run of NUL: `run` is then
/// the hash of the line up to `at`, and `None` otherwise. Returns `None` at the end of the file. What
/// is read, or has to be hashed, is subtracted from `budget`.
///
/// # Errors
/// Errors of reading the file.
pub(super) fn read_segment<'b>(
    file: &dyn ReadAt,
    at: u64,
    size: u64,
    run: Option<&LineHasher>,
    buffer: &'b mut [u8],
    budget: &mut u64,
) -> io::Result<Option<Segment<'b>>> {
    if let Some(hasher) = run.filter(|_| at < size) {
        let hole = file.next_data(at)?.map_or(size, |data| data.min(size)).saturating_sub(at);
        if hole >= MIN_HOLE {
            if hasher.skips_nuls(hole) {
                return Ok(Some(Segment::Nuls(hole)));
            }
            let count = hole.min(*budget);
            *budget -= count;
            return Ok(Some(Segment::Nuls(count)));
        }
    }
    let len = usize::try_from(size.saturating_sub(at))
        .map_or(buffer.len(), |left| left.min(buffer.len()));
    let filled = file.fill_to(&mut buffer[..len], at, size)?;
    *budget = budget.saturating_sub(filled as u64);
    Ok((filled > 0).then_some(Segment::Data(&buffer[..filled])))
}
