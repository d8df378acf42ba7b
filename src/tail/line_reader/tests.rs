use proptest::prelude::*;
use siem_protocol::{
    Digest, LineDigests,
    nul_runs::{MAX_NUL_RUNS, Segment, segments},
};

use super::*;

/// Line as it was read: offset, bytes, size and number of parts.
#[derive(Debug, PartialEq)]
struct ReadLine {
    offset: u64,
    bytes: Vec<u8>,
    size: u64,
    parts: usize,
    /// Number of bytes outside of runs.
    data: usize,
}

/// Reads from a position to the current end of a file, as the tail does.
#[derive(Default)]
struct LineFollower {
    position: ReadPosition,
    long: Option<LongLine>,
    scan: Option<Box<LineScan>>,
    partial: Vec<u8>,
    partial_size: u64,
    partial_data: usize,
    out: Vec<ReadLine>,
}

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

impl LineFollower {
    fn follow(&mut self, reader: &mut LineReader, file: &[u8]) {
        loop {
            let ReadSizes { record, part, buffer } = reader.sizes;
            self.position.end = file.len() as u64;
            let long = self.long.as_ref();
            match reader.read(&file, &self.position, long, &mut self.scan).unwrap() {
                ReadOutcome::Paused => {}
                ReadOutcome::Scanned(found) => {
                    let ScannedLine { data, runs, size, is_last, hasher } = *found;
                    assert!(data.len() <= part && runs.len() <= MAX_NUL_RUNS);
                    assert!(is_last || !data.is_empty() || !runs.is_empty());
                    let start = self.position.offset;
                    let long = self.long.get_or_insert_with(|| LongLine::new(start));
                    let (_, whole) = long.add_scanned(data, hasher, is_last);
                    self.partial.extend(unfold(data, runs));
                    self.partial_data += data.len();
                    self.end_part(size, whole);
                }
                ReadOutcome::Nothing { scanned } => {
                    assert_eq!(scanned, file.len() as u64);
                    self.position.scanned = scanned;
                    return;
                }
                ReadOutcome::Lines(lines) => {
                    let first = self.position.offset;
                    for piece in &lines.pieces {
                        let Piece::Line { offset, bytes, size, incomplete: false, folded: None } =
                            *piece
                        else {
                            panic!("{piece:?}");
                        };
                        assert_eq!(offset, self.position.offset);
                        assert!(bytes.len() <= record);
                        self.out.push(ReadLine {
                            offset,
                            bytes: bytes.to_vec(),
                            size,
                            parts: 0,
                            data: bytes.len(),
                        });
                        self.position.offset += size;
                    }
                    assert_eq!(first + lines.raw.len() as u64, self.position.offset);
                    assert!(lines.raw.len() <= buffer.max(record + 2));
                    self.position.scanned = lines.end.unwrap_or(self.position.offset);
                }
                ReadOutcome::Part(found) => {
                    assert!(!found.bytes.is_empty());
                    assert!(found.bytes.len() <= part + 1);
                    let start = self.position.offset;
                    let long = self.long.get_or_insert_with(|| LongLine::new(start));
                    let (_, whole) = long.add(found.bytes, found.is_last);
                    self.partial.extend_from_slice(found.bytes);
                    self.partial_data += found.bytes.len();
                    assert!(found.is_last || found.raw == found.bytes);
                    self.end_part(found.raw.len() as u64, whole);
                }
            }
        }
    }

    fn end_part(&mut self, size: u64, whole: Option<LineDigests>) {
        self.partial_size += size;
        self.position.offset += size;
        self.position.scanned = self.position.offset;
        self.position.in_long_line = whole.is_none();
        let Some(whole) = whole else { return };
        let bytes = std::mem::take(&mut self.partial);
        let digest = Some(Digest::of(&bytes));
        assert_eq!((whole.length, whole.sha256), (bytes.len() as u64, digest));
        let size = std::mem::take(&mut self.partial_size);
        let data = std::mem::take(&mut self.partial_data);
        let position = self.long.take().unwrap().position();
        let (offset, parts) = (position.start, position.parts as usize);
        assert_eq!(whole.folded_sha256.is_some(), first_run(&bytes).is_some());
        self.out.push(ReadLine { offset, bytes, size, parts, data });
    }
}

/// Returns the complete lines of `file` by a simple algorithm.
fn expected_lines(file: &[u8]) -> Vec<(u64, Vec<u8>, u64)> {
    let mut offset = 0;
    let mut lines = Vec::new();
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        if let Some(content) = line.strip_suffix(b"\n") {
            let content = content.strip_suffix(b"\r").unwrap_or(content);
            lines.push((offset, content.to_vec(), line.len() as u64));
        }
        offset += line.len() as u64;
    }
    lines
}

fn check(file: &[u8], cuts: &[usize], sizes: ReadSizes) {
    let mut reader = LineReader::new(sizes);
    let mut follower = LineFollower::default();
    for cut in cuts.iter().copied().chain([file.len()]) {
        follower.follow(&mut reader, &file[..cut]);
    }
    let out: Vec<_> =
        follower.out.iter().map(|out| (out.offset, out.bytes.clone(), out.size)).collect();
    assert_eq!(out, expected_lines(file));
    for line in &follower.out {
        let ReadLine { parts, data, .. } = *line;
        match first_run(&line.bytes) {
            None => assert_eq!(parts > 0, line.bytes.len() > sizes.record, "{line:?}"),
            Some(_) if sizes.record > 5000 => {
                assert!(parts <= data / sizes.part + data / 4097 / MAX_NUL_RUNS + 2);
            }
            Some(_) => {}
        }
    }
}

#[test]
fn runs_of_nul_are_removed_from_lines() {
    let sizes = ReadSizes { buffer: 16 << 10, record: 100_000, part: 20_000 };
    let run = |len| vec![0; len];
    for (line, data) in [
        (run(4096), 0),
        (run(1 << 20), 0),
        ([run(5000), b"{}\r".to_vec(), run(5000)].concat(), 3),
        ([b"a".to_vec(), run(4096), b"{}".to_vec(), run(9000)].concat(), 3),
        ([run(30_000), vec![b'x'; 20_000]].concat(), 20_000),
    ] {
        let file = [b"before\n", &line[..], b"\r\nafter\n"].concat();
        let mut follower = LineFollower::default();
        follower.follow(&mut LineReader::new(sizes), &file);
        let found = &follower.out[1];
        assert_eq!((found.parts, found.data, &found.bytes), (1, data, &line));
        let bytewise: Vec<_> = (0..file.len()).step_by(997).collect();
        check(&file, &bytewise, sizes);
    }
    // Shorter runs are kept.
    let mut follower = LineFollower::default();
    follower.follow(&mut LineReader::new(sizes), &[&run(4095)[..], b"\n"].concat());
    assert_eq!((follower.out[0].parts, follower.out[0].data), (0, 4095));
}

#[test]
fn line_with_many_runs_or_much_data_comes_in_parts() {
    let sizes = ReadSizes { buffer: 16 << 10, record: 100_000, part: 20_000 };
    let many = [&[0; 5000][..], b"x"].concat().repeat(3 * MAX_NUL_RUNS);
    let much = [&[0; 5000][..], &[b'x'; 20_001]].concat();
    for (line, parts) in [(many, 3), (much, 2)] {
        let mut follower = LineFollower::default();
        follower.follow(&mut LineReader::new(sizes), &[&line[..], b"\n"].concat());
        assert_eq!((follower.out[0].parts, &follower.out[0].bytes), (parts, &line));
    }
}

/// A file whose end is a hole, and which counts what is read.
struct Sparse<'a> {
    start: &'a [u8],
    hole: u64,
    end: &'a [u8],
    read: std::cell::Cell<u64>,
}

impl ReadAt for Sparse<'_> {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let hole_end = self.start.len() as u64 + self.hole;
        let filled = if offset < self.start.len() as u64 {
            self.start.read_at(bytes, offset)?
        } else if offset < hole_end {
            let left = usize::try_from(hole_end - offset).unwrap_or(usize::MAX);
            let len = bytes.len().min(left);
            bytes[..len].fill(0);
            len
        } else {
            self.end.read_at(bytes, offset - hole_end)?
        };
        self.read.set(self.read.get() + filled as u64);
        Ok(filled)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let hole_end = self.start.len() as u64 + self.hole;
        let is_in_hole = (self.start.len() as u64..hole_end).contains(&offset);
        let next = if is_in_hole { hole_end } else { offset };
        Ok((next < hole_end + self.end.len() as u64).then_some(next))
    }
}

#[test]
fn hole_of_eight_exbibytes_is_not_read() {
    let mut reader = LineReader::new(ReadSizes { buffer: 1 << 18, record: 8 << 20, part: 2 << 20 });
    let hole = (1 << 63) - 100;
    let read = std::cell::Cell::default();
    let mut file = Sparse { start: b"a\nb", hole, end: b"", read };
    let mut position = ReadPosition { end: hole + 3, ..ReadPosition::default() };
    let mut scan = None;
    let ReadOutcome::Lines(lines) = reader.read(&file, &position, None, &mut scan).unwrap() else {
        panic!("there is a line");
    };
    assert_eq!((lines.pieces.len(), lines.end), (1, None));
    position.offset = 2;
    for _ in 0..2 {
        let outcome = reader.read(&file, &position, None, &mut scan).unwrap();
        let ReadOutcome::Nothing { scanned } = outcome else { panic!("{outcome:?}") };
        assert_eq!(scanned, position.end);
    }
    file.end = b"c\r\nd\n";
    position.end += file.end.len() as u64;
    let outcome = reader.read(&file, &position, None, &mut scan).unwrap();
    let ReadOutcome::Scanned(line) = outcome else { panic!("{outcome:?}") };
    assert_eq!((line.data, line.size, line.is_last), (&b"bc"[..], hole + 4, true));
    assert_eq!(line.runs, [NulRun { offset: 1, length: hole }]);
    let digests = line.hasher.finish();
    assert_eq!((digests.length, digests.sha256), (hole + 2, None));
    assert_eq!(digests, LineDigests::of(b"bc", line.runs).unwrap());
    assert!(file.read.get() < 2 << 20, "{}", file.read.get());
}

/// A file in memory, and its holes.
struct Holes<'a>(&'a [u8], &'a [std::ops::Range<u64>]);

impl ReadAt for Holes<'_> {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(bytes, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let hole = self.1.iter().find(|hole| hole.contains(&offset));
        Ok(Some(hole.map_or(offset, |hole| hole.end)))
    }
}

const STEP: usize = 1 << 18;
const MIB: usize = 1 << 20;

/// The `\r` was added after the hole that follows it.
#[test]
fn return_between_two_holes_keeps_its_place() {
    let mut reader = LineReader::new(ReadSizes { buffer: STEP, record: 8 * MIB, part: 2 * MIB });
    let mut bytes = vec![0; 4 * MIB + 2];
    let at = 2 * MIB + STEP - 1;
    bytes[at] = b'\r';
    bytes[4 * MIB..].copy_from_slice(b"x\n");
    let range = |from: usize, to: usize| from as u64..to as u64;
    let holes = [range(STEP, 2 * MIB), range(2 * MIB + STEP, 4 * MIB)];
    let file = Holes(&bytes, &holes);
    let position = ReadPosition { end: bytes.len() as u64, ..ReadPosition::default() };
    let outcome = reader.read(&file, &position, None, &mut None).unwrap();
    let ReadOutcome::Scanned(line) = outcome else { panic!("{outcome:?}") };
    assert_eq!((line.data, line.size, line.is_last), (&b"\rx"[..], position.end, true));
    let runs = [(0, at), (at + 1, 4 * MIB)]
        .map(|(from, to)| NulRun { offset: from as u64, length: (to - from) as u64 });
    assert_eq!(line.runs, runs);
    assert_eq!(line.hasher.finish().sha256, Some(Digest::of(&bytes[..=4 * MIB])));
}

/// The file system reports a hole where bytes are stored.
#[test]
fn line_that_differs_from_two_scans_is_left_until_later() {
    let mut reader = LineReader::new(ReadSizes { buffer: STEP, record: 8 * MIB, part: 2 * MIB });
    let mut bytes = vec![0; 2 * MIB + 1];
    bytes[2 * MIB - 1..].copy_from_slice(b"y\n");
    let hole = STEP as u64..2 * MIB as u64;
    let file = Holes(&bytes, std::slice::from_ref(&hole));
    let position = ReadPosition { end: bytes.len() as u64, ..ReadPosition::default() };
    let mut scan = None;
    for _ in 0..2 {
        let outcome = reader.read(&file, &position, None, &mut scan).unwrap();
        assert!(matches!(outcome, ReadOutcome::Paused), "{outcome:?}");
        let outcome = reader.read(&file, &position, None, &mut scan).unwrap();
        assert!(matches!(outcome, ReadOutcome::Nothing { scanned: 0 }), "{outcome:?}");
    }
}

/// What changes while a line is scanned is not mixed with what was scanned before.
#[test]
fn line_that_changes_during_the_scan_is_scanned_again() {
    let mut reader = LineReader::new(ReadSizes { buffer: 1 << 18, record: 8 << 20, part: 2 << 20 });
    let mut file = [b"abc", &[0; 20 << 20][..], b"def\n"].concat();
    let position = ReadPosition { end: file.len() as u64, ..ReadPosition::default() };
    let mut scan = None;
    let mut pauses = 0;
    let mut read = |file: &[u8]| {
        let outcome = reader.read(&file, &position, None, &mut scan).unwrap();
        match outcome {
            ReadOutcome::Paused => None,
            ReadOutcome::Scanned(line) => Some((line.data.to_vec(), line.runs.to_vec())),
            outcome => panic!("{outcome:?}"),
        }
    };
    assert_eq!(read(&file), None);
    file[1] = b'B';
    let found = loop {
        match read(&file) {
            Some(found) => break found,
            None => pauses += 1,
        }
    };
    assert_eq!(found, (b"aBcdef".to_vec(), vec![NulRun { offset: 3, length: 20 << 20 }]));
    assert!(pauses >= 4, "{pauses}");
}

const SIZES: ReadSizes = ReadSizes { buffer: 16, record: 40, part: 10 };

#[test]
fn lines_of_any_length_are_read_whole_or_in_parts() {
    for ending in ["\n", "\r\n"] {
        for len in 0..100 {
            let line = format!("a\n{}{ending}\r\r\nb\n", "x".repeat(len));
            check(line.as_bytes(), &[], SIZES);
            let bytewise: Vec<_> = (0..line.len()).collect();
            check(line.as_bytes(), &bytewise, SIZES);
        }
    }
}

#[test]
fn line_of_the_record_size_is_read_whole() {
    let file = [&[b'x'; 40][..], b"\r\n", &[b'y'; 41], b"\r\n"].concat();
    let mut reader = LineReader::new(SIZES);
    let mut follower = LineFollower::default();
    // Before its newline, the line could still become too long.
    follower.follow(&mut reader, &file[..41]);
    assert_eq!((follower.out.len(), follower.long.is_none()), (0, true));
    follower.follow(&mut reader, &file);
    assert_eq!((follower.out[0].parts, follower.out[1].parts), (0, 5));
}

#[test]
fn buffer_shrinks_after_a_long_line() {
    let mut reader = LineReader::new(ReadSizes { buffer: 1 << 10, record: 1 << 20, part: 1 << 16 });
    let file = [&[b'x'; 1 << 19][..], b"\nshort\n"].concat();
    let mut follower = LineFollower::default();
    follower.follow(&mut reader, &file);
    assert_eq!(follower.out.len(), 2);
    assert!(reader.footprint() <= 2 << 10, "{}", reader.footprint());
}

/// Counts the bytes that are read.
struct Counted<'a>(&'a [u8], std::cell::Cell<u64>);

impl ReadAt for Counted<'_> {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.0.read_at(bytes, offset)?;
        self.1.set(self.1.get() + count as u64);
        Ok(count)
    }
}

#[test]
fn newline_search_resumes_where_it_stopped() {
    let mut reader = LineReader::new(ReadSizes { buffer: 1 << 10, record: 1 << 20, part: 1 << 16 });
    let mut position = ReadPosition::default();
    let file = vec![b'x'; 1 << 19];
    let mut read = 0;
    for end in (0..file.len()).step_by(1 << 9) {
        let file = Counted(&file[..end], std::cell::Cell::default());
        position.end = end as u64;
        let outcome = reader.read(&file, &position, None, &mut None).unwrap();
        let ReadOutcome::Nothing { scanned } = outcome else {
            panic!("there is no newline");
        };
        position.scanned = scanned;
        read += file.1.get();
    }
    assert!(read < 2 << 19, "{read} bytes were read of {}", file.len());
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(b"\n".to_vec()),
        2 => Just(b"\r\n".to_vec()),
        1 => Just(b"\r".to_vec()),
        1 => Just(b"\0".to_vec()),
        4 => (0..130_usize).prop_map(|len| vec![b'x'; len]),
        2 => proptest::collection::vec(any::<u8>(), 0..20),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn bytes_with_runs() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        3 => Just(b"\n".to_vec()),
        1 => Just(b"\r\n".to_vec()),
        1 => Just(b"\r".to_vec()),
        2 => (4090..4100_usize).prop_map(|len| vec![0; len]),
        2 => (1..30_000_usize).prop_map(|len| vec![0; len]),
        2 => (0..3000_usize).prop_map(|len| vec![b'x'; len]),
        2 => proptest::collection::vec(any::<u8>(), 0..20),
    ];
    proptest::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn runs_of_nul_in_any_pieces_are_read_as_lines(
        file in bytes_with_runs(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        buffer in 1000..20_000_usize,
        record in 1000..30_000_usize,
        part in 500..8000_usize,
    ) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(file.len() + 1)).collect();
        cuts.sort_unstable();
        check(&file, &cuts, ReadSizes { buffer, record, part: part.min(record) });
    }

    #[test]
    fn any_bytes_in_any_pieces_are_read_as_lines(
        file in bytes(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        buffer in 1..300_usize,
        record in 1..150_usize,
        part in 1..60_usize,
    ) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(file.len() + 1)).collect();
        cuts.sort_unstable();
        check(&file, &cuts, ReadSizes { buffer, record, part: part.min(record) });
    }
}
