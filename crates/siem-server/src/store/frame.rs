//! One batch in the journal, with the positions of its parts in the files of its epoch.
//!
//! ```text
//! magic 8 | place u32 | record u64 | lines u64 | check 32 | place | record | lines
//! ```
//! Lengths are little-endian. `check` is SHA-256 over everything before it, then place, record, and
//! the digest of each line: the lines were hashed on arrival, and are not hashed again.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use siem_protocol::Digest;

use super::starts::GroupWriter;
use crate::{batch::Batch, ledger::is_zero};

/// First bytes of a frame.
pub(super) const MAGIC: &[u8; 8] = b"siemjrn3";
const FIXED: usize = 8 + 4 + 8 + 8;
/// No frame is larger: a longer one is damaged.
const LARGEST: u64 = 1 << 30;

/// Files of the epoch, by their common name, and a position in each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FilePositions {
    /// Directory of the machine.
    pub(super) machine: String,
    /// Common name of the files, without extension.
    pub(super) epoch: String,
    /// Position of the lines.
    pub(super) lines_at: u64,
    /// Position of the record in the index.
    pub(super) index_at: u64,
    /// Position and size of each line that one of the frame's lines replaces; without any, all lines
    /// are new.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) replaces: Vec<(u64, u64)>,
    /// All lines before are removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) removes: bool,
    /// All lines before this position are removed, and the others keep theirs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) removes_before: u64,
}

/// Lines to store, each with a newline.
#[derive(Debug)]
pub(super) enum Lines {
    /// Some lines of a batch.
    Of(Box<Batch>, Vec<usize>),
    /// Lines read from a journal.
    Read(Vec<u8>),
}

impl Lines {
    /// Size in bytes.
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Of(batch, store) => {
                store.iter().map(|index| batch.lines()[*index].range.len() as u64 + 1).sum()
            }
            Self::Read(bytes) => bytes.len() as u64,
        }
    }

    /// Writes the lines; those that are adjacent in the batch are written at once.
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (batch, store) = match self {
            Self::Of(batch, store) => (batch, store),
            Self::Read(bytes) => return to.write_all(bytes),
        };
        let mut run = 0..0;
        for index in store {
            let range = batch.lines()[*index].range.clone();
            if run.end + 1 == range.start && !run.is_empty() {
                run.end = range.end;
                continue;
            }
            write_run(to, &batch.text()[run])?;
            run = range;
        }
        write_run(to, &batch.text()[run])
    }

    fn digests(&self) -> Vec<u8> {
        match self {
            Self::Of(batch, store) => {
                store.iter().flat_map(|index| *batch.lines()[*index].digest.as_bytes()).collect()
            }
            Self::Read(bytes) => bytes
                .split_inclusive(|byte| *byte == b'\n')
                .flat_map(|line| *Digest::of(line.strip_suffix(b"\n").unwrap_or(line)).as_bytes())
                .collect(),
        }
    }
}

fn write_run(to: &mut impl Write, run: &[u8]) -> io::Result<()> {
    if run.is_empty() {
        return Ok(());
    }
    to.write_all(run)?;
    to.write_all(b"\n")
}

/// One batch, as written to the journal and then to the files of its epoch.
#[derive(Debug)]
pub(super) struct Frame {
    /// Positions in the files.
    pub(super) place: FilePositions,
    /// Record for the index; see [`index_record`](super::index_record).
    pub(super) record: Vec<u8>,
    /// Lines of the entries.
    pub(super) lines: Lines,
}

impl Frame {
    /// Appends the frame to a journal.
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let place = serde_json::to_vec(&self.place)?;
        let mut head = Vec::with_capacity(FIXED + 32 + place.len());
        head.extend_from_slice(MAGIC);
        let length = u32::try_from(place.len()).map_err(io::Error::other)?;
        head.extend_from_slice(&length.to_le_bytes());
        head.extend_from_slice(&(self.record.len() as u64).to_le_bytes());
        head.extend_from_slice(&self.lines.length().to_le_bytes());
        let check = self.check(&head, &place);
        head.extend_from_slice(check.as_bytes());
        head.extend_from_slice(&place);
        to.write_all(&head)?;
        to.write_all(&self.record)?;
        self.lines.write(to)
    }

    /// Approximate size in bytes.
    pub(super) fn length(&self) -> u64 {
        self.lines.length() + self.record.len() as u64
    }

    /// End of the lines after the frame was written.
    pub(super) fn lines_end(&self) -> u64 {
        match self.place.replaces.is_empty() {
            true => self.place.lines_at + self.lines.length(),
            false => self.place.lines_at,
        }
    }

    fn check(&self, fixed: &[u8], place: &[u8]) -> Digest {
        Digest::of(&[fixed, place, &self.record, &self.lines.digests()].concat())
    }

    /// Reads the next frame; `None` at the end, or if no complete frame follows.
    pub(super) fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut fixed = [0; FIXED + 32];
        if !fill(from, &mut fixed)? || fixed[..8] != *MAGIC {
            return Ok(None);
        }
        let (fixed, expected) = fixed.split_at(FIXED);
        let lengths = lengths(fixed);
        if lengths.iter().any(|length| *length > LARGEST) {
            return Ok(None);
        }
        let mut parts = Vec::with_capacity(3);
        for length in lengths {
            // The buffer grows with the bytes read, so that a damaged length costs no memory.
            let mut part = Vec::new();
            if from.by_ref().take(length).read_to_end(&mut part)? as u64 != length {
                return Ok(None);
            }
            parts.push(part);
        }
        let [place, record, lines] =
            parts.try_into().map_err(|_| io::Error::other("a frame has three parts"))?;
        let Ok(parsed) = serde_json::from_slice(&place) else { return Ok(None) };
        let frame = Self { place: parsed, record, lines: Lines::Read(lines) };
        Ok((frame.check(fixed, &place).as_bytes() == expected).then_some(frame))
    }
}

/// Returns the size of what precedes the lines of a frame in the journal, from its first bytes, also if it is
/// damaged behind them. Without a frame there, returns `None`.
pub(super) fn head_length(from: &mut impl Read) -> io::Result<Option<u64>> {
    let mut fixed = [0; FIXED];
    if !fill(from, &mut fixed)? || fixed[..8] != *MAGIC {
        return Ok(None);
    }
    let [place, record, _] = lengths(&fixed);
    Ok(Some(((FIXED + 32) as u64).saturating_add(place).saturating_add(record)))
}

/// Returns the sizes of the place, the record and the lines.
fn lengths(fixed: &[u8]) -> [u64; 3] {
    let short = |at: usize| {
        u64::from(u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]))
    };
    let long = |at: usize| short(at).saturating_add(short(at + 4).saturating_mul(1 << 32));
    [short(8), long(12), long(20)]
}

/// Returns the group with the positions of a batch's stored lines in their original files; empty if
/// it stores no line. `lines_at` is the position of the lines in the file of the epoch.
pub(super) fn starts(batch: &Batch, store: &[usize], lines_at: u64) -> io::Result<Vec<u8>> {
    if store.is_empty() {
        return Ok(Vec::new());
    }
    let mut group = GroupWriter::default();
    let mut bytes = 0;
    for line in store.iter().map(|index| &batch.lines()[*index]) {
        bytes += line.range.len() as u64 + 1;
        if let Some(origin) = line.origin {
            let place = usize::try_from(origin.generation).map_err(io::Error::other)?;
            group.add(&batch.generations()[place], origin.offset, origin.part);
        }
    }
    group.finish(lines_at, bytes)
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::testing::{BatchText, line};

    fn frame(store: Vec<usize>) -> Frame {
        let text = BatchText::new(1, 6).text();
        let batch = Batch::parse(text.trim_end().as_bytes().to_vec(), UNIX_EPOCH).unwrap();
        let place = FilePositions { lines_at: 1, index_at: 2, ..FilePositions::default() };
        Frame { place, record: vec![7; 64], lines: Lines::Of(Box::new(batch), store) }
    }

    fn written(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn written_frame_reads_back() {
        for store in [vec![], vec![0], vec![5], vec![0, 1, 2, 3, 4, 5], vec![0, 2, 3, 5]] {
            let frame = frame(store.clone());
            let bytes = written(&frame);
            let read = Frame::read(&mut bytes.as_slice()).unwrap().unwrap();
            assert_eq!((&read.place, &read.record), (&frame.place, &frame.record));
            let expected: String =
                store.iter().map(|index| line(*index as u64 + 1) + "\n").collect();
            let Lines::Read(lines) = read.lines else { panic!("read from bytes") };
            assert_eq!(String::from_utf8(lines).unwrap(), expected);
            assert_eq!(frame.lines.length(), expected.len() as u64);
        }
    }

    #[test]
    fn cut_or_changed_frame_is_rejected() {
        let bytes = written(&frame(vec![0, 3, 4]));
        for length in 0..bytes.len() {
            assert!(Frame::read(&mut &bytes[..length]).unwrap().is_none(), "{length}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Frame::read(&mut changed.as_slice()).unwrap().is_none(), "{at}");
        }
    }
}
