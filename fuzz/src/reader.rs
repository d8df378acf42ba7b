//! The tail's reader: any bytes, in any pieces, with buffers of any size.
//!
//! The first five bytes control the reading: sizes of the buffer, of the longest record and of a part,
//! each minus one; the behaviour of the file (see [`File`]); and how many of the following bytes are
//! cuts, the sizes at which the growing file is read. The rest is the content of the file; in one
//! behaviour each NUL of it stands for many, and the sizes are larger.

use std::{cell::Cell, io};

use ai_agent::internals::{
    platform::file::ReadAt,
    protocol::{
        Digest, NulRun,
        nul_runs::{Segment, first_run, segments},
    },
    tail::{Piece, fuzzing::FuzzReader},
};

/// A file with short and interrupted reads.
struct File<'a> {
    bytes: &'a [u8],
    /// Maximum number of bytes of a read; 0 for no limit.
    at_once: usize,
    /// Interrupts every other call.
    interrupts: bool,
    calls: Cell<u32>,
}

impl ReadAt for File<'_> {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.calls.set(self.calls.get() + 1);
        if self.interrupts && self.calls.get() % 2 == 1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let start = usize::try_from(offset).unwrap().min(self.bytes.len());
        let most = if self.at_once == 0 { usize::MAX } else { self.at_once };
        let count = bytes.len().min(self.bytes.len() - start).min(most);
        bytes[..count].copy_from_slice(&self.bytes[start..start + count]);
        Ok(count)
    }
}

/// A line returned by the reader.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    offset: u64,
    bytes: Vec<u8>,
    size: u64,
}

/// Output of the reader so far.
#[derive(Debug, Default)]
struct Out {
    lines: Vec<Line>,
    /// The incomplete line, and the number of its parts.
    open: Option<(Line, u32)>,
}

/// Fails if the reader returns other lines than the file has, or returns them too late.
pub fn run(data: &[u8]) {
    let Some((&[buffer, record, part, behaviour, cuts], rest)) = data.split_first_chunk() else {
        return;
    };
    let (cuts, bytes) = rest.split_at(usize::from(cuts % 16).min(rest.len()));
    let bytes = if behaviour & 32 != 0 { &with_runs(bytes)[..] } else { bytes };
    let mut cuts: Vec<_> =
        cuts.iter().map(|cut| bytes.len() * usize::from(*cut) / 256).chain([bytes.len()]).collect();
    cuts.sort_unstable();
    let has_runs = behaviour & 32 != 0;
    let unit = if has_runs { 64 } else { 1 };
    let [buffer, record, part] = [buffer, record, part].map(|size| (usize::from(size) + 1) * unit);
    let mut reading = FuzzReader::new(buffer, record, part);
    let mut out = Out::default();
    for (turn, cut) in cuts.into_iter().enumerate() {
        let at_once = usize::from(behaviour & 7);
        let (interrupts, calls) = (behaviour & 8 != 0, Cell::default());
        let file = File { bytes: &bytes[..cut], at_once, interrupts, calls };
        if behaviour & 16 != 0 && turn % 2 == 1 {
            reading.restart(&file).unwrap();
        }
        let sizes = (record, part);
        let scanned = reading.read_on(&file, &mut |piece| out.take(&piece, sizes)).unwrap();
        assert_eq!(scanned, cut as u64, "offset up to which the reader has scanned");
        assert_eq!(out.lines, naive_lines(file.bytes), "after {cut} bytes");
    }
}

impl Out {
    fn take(&mut self, piece: &Piece<'_>, (record, most): (usize, usize)) {
        match *piece {
            Piece::Line { offset, bytes, size, incomplete, folded: None } => {
                assert!(self.open.is_none() && !incomplete && bytes.len() <= record);
                self.lines.push(Line { offset, bytes: bytes.to_vec(), size });
            }
            Piece::Line { offset, bytes, size, incomplete, folded: Some(folded) } => {
                assert!(self.open.is_none() && !incomplete && bytes.len() <= most);
                let bytes = unfold(bytes, folded.runs);
                assert_eq!(folded.digests.sha256, Some(Digest::of(&bytes)));
                assert_eq!(folded.digests.length, bytes.len() as u64);
                self.lines.push(Line { offset, bytes, size });
            }
            Piece::Part { offset, part, bytes, nul_runs, size, whole, incomplete } => {
                assert!(!incomplete);
                assert!(!bytes.is_empty() || !nul_runs.is_empty());
                let begun = || (Line { offset, bytes: Vec::new(), size: 0 }, 0);
                let (line, parts) = self.open.get_or_insert_with(begun);
                *parts += 1;
                assert_eq!((line.offset, *parts), (offset, part));
                line.bytes.extend(unfold(bytes, nul_runs));
                line.size += size;
                let Some(whole) = whole else { return };
                let (line, _) = self.open.take().unwrap();
                let digest = Some(Digest::of(&line.bytes));
                assert_eq!((whole.length, whole.sha256), (line.bytes.len() as u64, digest));
                let is_long = line.bytes.len() > record || first_run(&line.bytes).is_some();
                assert!(is_long, "a record came in parts");
                self.lines.push(line);
            }
            Piece::Lines { .. } | Piece::Skipped { .. } => panic!("a file has lines"),
        }
    }
}

/// Returns the bytes with 3000 NULs in place of each.
fn with_runs(bytes: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    for byte in bytes {
        file.resize(file.len() + if *byte == 0 { 3000 } else { 1 }, *byte);
    }
    file
}

/// Returns the content of data and runs of NUL.
fn unfold(data: &[u8], runs: &[NulRun]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments(data, runs).unwrap() {
        match segment {
            Segment::Data(data) => bytes.extend_from_slice(data),
            Segment::Nuls(count) => bytes.resize(bytes.len() + count as usize, 0),
        }
    }
    bytes
}

/// Returns the complete lines of a file, found naively.
fn naive_lines(file: &[u8]) -> Vec<Line> {
    let mut offset = 0;
    let mut lines = Vec::new();
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        let size = line.len() as u64;
        if let Some(bytes) = line.strip_suffix(b"\n") {
            let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes).to_vec();
            lines.push(Line { offset, bytes, size });
        }
        offset += size;
    }
    lines
}
