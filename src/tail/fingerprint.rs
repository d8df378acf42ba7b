//! Recognising a file by its bytes: hashes of samples, and the boundaries of the last lines.

use std::{collections::VecDeque, io};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::platform::file::ReadAt;

/// Largest size of a sample in bytes.
pub(super) const SAMPLE: usize = 4096;

/// Number of line boundaries that are stored.
pub(super) const BORDERS: usize = 64;

/// Length and hash of a run of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sample {
    len: u16,
    hash: u64,
}

impl Sample {
    /// Samples the first `limit` bytes of `bytes`, at most [`SAMPLE`].
    pub(super) fn of_head(bytes: &[u8], limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(SAMPLE);
        Self::of(&bytes[..bytes.len().min(limit).min(SAMPLE)])
    }

    /// Samples all of `bytes`, at most [`SAMPLE`].
    pub(super) fn of(bytes: &[u8]) -> Self {
        let len = u16::try_from(bytes.len()).expect("a sample is small");
        Self { len, hash: if len == 0 { 0 } else { xxh3_64(bytes) } }
    }

    /// Returns true if `bytes` starts with the sampled bytes.
    fn is_prefix_of(self, bytes: &[u8]) -> bool {
        bytes.get(..usize::from(self.len)).is_some_and(|bytes| Self::of(bytes) == self)
    }

    /// Number of sampled bytes.
    pub(super) fn len(self) -> u64 {
        u64::from(self.len)
    }
}

/// End of a line, and a short hash of its last bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Border {
    end: u64,
    hash: u32,
}

/// Boundaries of the last lines that were read. They show where a file whose last lines were cut
/// off continues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Borders {
    /// Start of the oldest stored line.
    base: u64,
    lines: VecDeque<Border>,
}

impl Borders {
    /// Boundaries without lines, starting at `base`.
    pub(super) fn starting_at(base: u64) -> Self {
        Self { base, lines: VecDeque::new() }
    }

    /// Start of the oldest stored line.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// End of the newest stored line.
    pub(super) fn end(&self) -> u64 {
        self.lines.back().map_or(self.base, |border| border.end)
    }

    /// Adds the next line: its last bytes (at most [`SAMPLE`]), and its size including the ending.
    pub(super) fn push(&mut self, last_bytes: &[u8], size: u64) {
        let end = self.end() + size;
        self.lines.push_back(Border { end, hash: short_hash(last_bytes) });
        if self.lines.len() > BORDERS
            && let Some(oldest) = self.lines.pop_front()
        {
            self.base = oldest.end;
        }
    }

    /// Removes all lines and starts again at `base`.
    pub(super) fn restart(&mut self, base: u64) {
        self.lines.clear();
        self.base = base;
    }

    /// Removes the lines after `end`.
    pub(super) fn cut(&mut self, end: u64) {
        self.lines.retain(|border| border.end <= end);
    }

    /// Returns the last boundary up to which `file` still holds the stored lines, and whether the
    /// bytes behind it are known to differ.
    fn common(&self, file: &dyn ReadAt, size: u64) -> io::Result<(Option<u64>, bool)> {
        let mut common = None;
        let mut start = self.base;
        let mut bytes = [0; SAMPLE];
        for border in self.lines.iter().take_while(|border| border.end <= size) {
            let len = usize::try_from(border.end - start).map_or(SAMPLE, |len| len.min(SAMPLE));
            let filled = file.fill_at(&mut bytes[..len], border.end - len as u64)?;
            if filled < len {
                break;
            }
            if short_hash(&bytes[..len]) != border.hash {
                return Ok((common, true));
            }
            common = Some(border.end);
            start = border.end;
        }
        Ok((common, false))
    }

    /// Returns true if the newest stored line is still in `file`.
    fn has_last(&self, file: &dyn ReadAt) -> io::Result<bool> {
        let Some(last) = self.lines.back() else { return Ok(true) };
        let start = self.lines.iter().rev().nth(1).map_or(self.base, |border| border.end);
        let len = usize::try_from(last.end - start).map_or(SAMPLE, |len| len.min(SAMPLE));
        let mut bytes = [0; SAMPLE];
        let filled = file.fill_at(&mut bytes[..len], last.end - len as u64)?;
        Ok(short_hash(&bytes[..filled]) == last.hash)
    }

    /// Serializes the lines: the size of each as a varint, and four bytes of hash.
    pub(super) fn pack(&self) -> Vec<u8> {
        let mut packed = Vec::with_capacity(self.lines.len() * 7);
        let mut start = self.base;
        for border in &self.lines {
            let mut size = border.end - start;
            while size >= 0x80 {
                packed.push(size.to_le_bytes()[0] | 0x80);
                size >>= 7;
            }
            packed.push(size.to_le_bytes()[0]);
            packed.extend_from_slice(&border.hash.to_le_bytes());
            start = border.end;
        }
        packed
    }

    /// Deserializes the output of [`Borders::pack`] up to the first invalid line.
    pub(super) fn unpack(base: u64, mut packed: &[u8]) -> Self {
        let mut borders = Self::starting_at(base);
        while let Some((size, rest)) = varint(packed)
            && let Some((hash, rest)) = rest.split_first_chunk()
            && let Some(end) = borders.end().checked_add(size)
        {
            borders.lines.push_back(Border { end, hash: u32::from_le_bytes(*hash) });
            packed = rest;
        }
        borders
    }
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(9) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

fn short_hash(bytes: &[u8]) -> u32 {
    let [a, b, c, d, ..] = xxh3_64(bytes).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Result of comparing a file with the bytes that were read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileMatch {
    /// The bytes are the same up to the checkpoint.
    Whole,
    /// The file is shorter than the checkpoint, and no byte is known to differ: it was truncated, or
    /// is being written again.
    Short {
        /// Last boundary that still matches.
        up_to: Option<u64>,
    },
    /// The bytes are the same up to a boundary before the checkpoint, and then differ.
    UpTo(u64),
    /// The bytes differ.
    Other,
}

impl FileMatch {
    /// Returns the result for a file that is no longer being written: missing bytes will not follow.
    pub(super) fn when_final(self) -> Self {
        match self {
            Self::Short { up_to: Some(border) } => Self::UpTo(border),
            Self::Short { up_to: None } => Self::Other,
            other => other,
        }
    }
}

/// First and last bytes before the checkpoint, from which samples are taken.
#[derive(Debug, Default)]
pub(super) struct EdgeSamples {
    /// First bytes of the file, at most [`SAMPLE`], none of them after the checkpoint.
    pub(super) head: Vec<u8>,
    /// Last bytes before the checkpoint, at most [`SAMPLE`].
    pub(super) tail: Vec<u8>,
}

impl EdgeSamples {
    /// Reads the first and last bytes before `offset`; fewer if the file is shorter.
    pub(super) fn read(&mut self, file: &dyn ReadAt, offset: u64) -> io::Result<()> {
        let len = usize::try_from(offset).map_or(SAMPLE, |offset| offset.min(SAMPLE));
        self.head.resize(len, 0);
        let filled = file.fill_at(&mut self.head, 0)?;
        self.head.truncate(filled);
        self.tail.clear();
        if offset <= SAMPLE as u64 {
            self.tail.extend_from_slice(&self.head);
            return Ok(());
        }
        self.tail.resize(len, 0);
        let filled = file.fill_at(&mut self.tail, offset - len as u64)?;
        self.tail.truncate(filled);
        Ok(())
    }

    /// Updates the samples with the bytes that were read next.
    pub(super) fn extend(&mut self, next: &[u8]) {
        let missing = SAMPLE - self.head.len();
        self.head.extend_from_slice(&next[..next.len().min(missing)]);
        if next.len() >= SAMPLE {
            self.tail.clear();
            self.tail.extend_from_slice(&next[next.len() - SAMPLE..]);
        } else {
            let surplus = (self.tail.len() + next.len()).saturating_sub(SAMPLE);
            self.tail.drain(..surplus);
            self.tail.extend_from_slice(next);
        }
    }
}

/// Samples of a file's bytes that are stored with its boundaries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// First bytes of the file, none of them after the oldest boundary: later bytes are covered by
    /// the boundaries. For a generation that is read again from the beginning, all sampled bytes.
    pub(super) head: Sample,
    /// Last bytes before the checkpoint.
    pub(super) tail: Sample,
}

/// Position within a line that is handed over in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LongLinePosition {
    /// Offset of the line.
    pub(super) start: u64,
    /// Number of parts that were handed over.
    pub(super) parts: u32,
    /// First bytes of the line, within the first part.
    #[serde(default)]
    pub(super) head: Sample,
}

/// Compares `file` with the bytes that were read from it up to `offset`, and leaves its first and
/// last bytes in `edges`.
///
/// # Errors
/// Errors of reading the file.
pub(super) fn compare(
    file: &dyn ReadAt,
    size: u64,
    offset: u64,
    fingerprint: &Fingerprint,
    borders: &Borders,
    long: Option<&LongLinePosition>,
    edges: &mut EdgeSamples,
) -> io::Result<FileMatch> {
    edges.read(file, offset)?;
    if fingerprint.head.len() > offset {
        // A generation that is read again from the beginning: only its first bytes are known.
        let mut first = [0; SAMPLE];
        let filled = file.fill_at(&mut first[..usize::from(fingerprint.head.len)], 0)?;
        let is_same = fingerprint.head.is_prefix_of(&first[..filled]);
        return Ok(if is_same { FileMatch::Whole } else { FileMatch::Other });
    }
    let is_short = size < offset;
    let has_head = edges.head.len() as u64 >= fingerprint.head.len();
    if (has_head || !is_short) && !fingerprint.head.is_prefix_of(&edges.head) {
        return Ok(FileMatch::Other);
    }
    let is_whole = !is_short
        && edges.tail.len() as u64 == fingerprint.tail.len()
        && fingerprint.tail.is_prefix_of(&edges.tail);
    let long_line_matches = |long| is_same_long_line(file, long, borders);
    if is_whole && long.map_or(Ok(true), long_line_matches)? {
        return Ok(FileMatch::Whole);
    }
    Ok(match borders.common(file, size)? {
        (up_to, false) if is_short => FileMatch::Short { up_to },
        (Some(border), _) if border < offset => FileMatch::UpTo(border),
        _ => FileMatch::Other,
    })
}

/// Returns true if a long line still starts at its offset with the same bytes. Within such a line
/// the last bytes before the checkpoint may be uniform and prove nothing.
fn is_same_long_line(
    file: &dyn ReadAt,
    long: &LongLinePosition,
    borders: &Borders,
) -> io::Result<bool> {
    let LongLinePosition { start, head, .. } = long;
    let mut bytes = [0; SAMPLE];
    let len = usize::from(head.len);
    let filled = file.fill_at(&mut bytes[..len], *start)?;
    Ok(head.is_prefix_of(&bytes[..filled]) && borders.has_last(file)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl ReadAt for &[u8] {
        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
            let start = usize::try_from(offset).unwrap().min(self.len());
            let rest = &self[start..];
            // Short reads, as an operating system may return.
            let count = rest.len().min(bytes.len()).min(1000);
            bytes[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        }
    }

    struct Read {
        offset: u64,
        fingerprint: Fingerprint,
        borders: Borders,
    }

    /// Reads all complete lines of `content`.
    fn read(content: &[u8]) -> Read {
        let mut borders = Borders::default();
        let mut edges = EdgeSamples::default();
        for line in content.split_inclusive(|byte| *byte == b'\n') {
            borders.push(&line[line.len().saturating_sub(SAMPLE)..], line.len() as u64);
            edges.extend(line);
        }
        let head = Sample::of_head(&edges.head, borders.base());
        let fingerprint = Fingerprint { head, tail: Sample::of(&edges.tail) };
        Read { offset: content.len() as u64, fingerprint, borders }
    }

    fn file_match(before: &[u8], after: &[u8]) -> FileMatch {
        let Read { offset, fingerprint, borders } = read(before);
        let borders = Borders::unpack(borders.base(), &borders.pack());
        let size = after.len() as u64;
        compare(&after, size, offset, &fingerprint, &borders, None, &mut EdgeSamples::default())
            .unwrap()
    }

    fn lines(range: std::ops::Range<usize>) -> Vec<u8> {
        range
            .flat_map(|n| format!("{{\"n\":{n},\"x\":\"{}\"}}\n", "x".repeat(n % 300)).into_bytes())
            .collect()
    }

    #[test]
    fn appended_file_matches_whole() {
        assert_eq!(file_match(b"", b""), FileMatch::Whole);
        assert_eq!(file_match(b"", b"a\n"), FileMatch::Whole);
        assert_eq!(file_match(b"a\n", b"a\nb\n"), FileMatch::Whole);
        assert_eq!(file_match(&lines(0..500), &lines(0..501)), FileMatch::Whole);
    }

    #[test]
    fn trimmed_file_matches_up_to_the_cut() {
        let before = lines(0..500);
        let cut = lines(0..470);
        let border = FileMatch::UpTo(cut.len() as u64);
        assert_eq!(file_match(&before, &cut).when_final(), border);
        let torn = [&cut, &b"other bytes than before"[..]].concat();
        assert_eq!(file_match(&before, &torn).when_final(), border);
        assert_eq!(file_match(&before, &[cut, lines(900..990)].concat()), border);
        assert_eq!(file_match(b"a\nb\n", b"a\nc\nd\n"), FileMatch::UpTo(2));
    }

    #[test]
    fn shorter_file_is_undecided_until_bytes_differ() {
        let short = |up_to| FileMatch::Short { up_to };
        assert_eq!(file_match(b"a\n", b""), short(None));
        assert_eq!(file_match(b"a\nb\n", b"a\n"), short(Some(2)));
        assert_eq!(file_match(b"a\nb\n", b"a\nx"), short(Some(2)), "no complete line");
        assert_eq!(file_match(b"a\nb\ncc\n", b"a\nc\n"), FileMatch::UpTo(2));
        assert_eq!(file_match(b"a\nb\ncc\n", b"b\na\n"), FileMatch::Other);
        let before = lines(0..500);
        assert_eq!(file_match(&before, &before[..1000]), short(None), "before the end of the head");
        assert_eq!(file_match(&before, &lines(0..300)), short(None), "before all boundaries");
        assert_eq!(file_match(&before, &lines(1..300)), FileMatch::Other);
        assert_eq!(short(None).when_final(), FileMatch::Other);
        assert_eq!(short(Some(2)).when_final(), FileMatch::UpTo(2));
    }

    #[test]
    fn different_bytes_are_detected() {
        assert_eq!(file_match(b"a\n", b"b\n"), FileMatch::Other);
        let before = lines(0..500);
        assert_eq!(file_match(&before, &lines(1..501)), FileMatch::Other);
        let mut changed = before.clone();
        changed[17] = b'!';
        assert_eq!(file_match(&before, &changed), FileMatch::Other, "the head");
        let mut changed = before.clone();
        let last = changed.len() - 2;
        changed[last] = b'!';
        assert_eq!(file_match(&before, &changed), FileMatch::UpTo(lines(0..499).len() as u64));
    }

    #[test]
    fn equal_first_kilobyte_is_not_enough() {
        let before = lines(0..100);
        let after = [&before[..1024], &lines(200..300)].concat();
        assert_eq!(file_match(&before, &after), FileMatch::Other);
    }

    #[test]
    fn unpack_stops_at_invalid_boundaries() {
        assert_eq!(Borders::unpack(5, &[0x80; 30]).end(), 5);
        assert_eq!(Borders::unpack(5, &[2, 0, 0, 0, 0, 9, 1]).end(), 7);
    }
}
