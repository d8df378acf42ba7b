//! A file is known by its bytes: samples of them, and the borders of the last lines.

use std::{collections::VecDeque, io};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::checkpoint::LongLinePosition;
use crate::platform::file::ReadAt;

/// How many bytes a sample takes at most.
pub(super) const SAMPLE: usize = 4096;

/// How many lines' borders are remembered.
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

    /// Samples all of `bytes`, of which there are at most [`SAMPLE`].
    pub(super) fn of(bytes: &[u8]) -> Self {
        let len = u16::try_from(bytes.len()).expect("a sample is small");
        Self { len, hash: if len == 0 { 0 } else { xxh3_64(bytes) } }
    }

    /// Whether the first bytes of `bytes` are those sampled.
    fn begins(self, bytes: &[u8]) -> bool {
        bytes.get(..usize::from(self.len)).is_some_and(|bytes| Self::of(bytes) == self)
    }

    /// How many bytes were sampled.
    pub(super) fn len(self) -> u64 {
        u64::from(self.len)
    }
}

/// Where a line ends, and a short hash of its last bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Border {
    end: u64,
    hash: u32,
}

/// The last lines that were read: where each ends, so that a file whose last lines were cut off
/// goes on at the cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Borders {
    /// Where the oldest remembered line begins.
    base: u64,
    lines: VecDeque<Border>,
}

impl Borders {
    /// Remembers nothing before `base`.
    pub(super) fn starting_at(base: u64) -> Self {
        Self { base, lines: VecDeque::new() }
    }

    /// Where the oldest remembered line begins.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Where the newest remembered line ends.
    pub(super) fn end(&self) -> u64 {
        self.lines.back().map_or(self.base, |border| border.end)
    }

    /// Remembers the next line by its last bytes (at most [`SAMPLE`]) and its size, ending and all.
    pub(super) fn push(&mut self, last_bytes: &[u8], size: u64) {
        let end = self.end() + size;
        self.lines.push_back(Border { end, hash: short_hash(last_bytes) });
        if self.lines.len() > BORDERS
            && let Some(oldest) = self.lines.pop_front()
        {
            self.base = oldest.end;
        }
    }

    /// Forgets everything, and begins again at `base`.
    pub(super) fn restart(&mut self, base: u64) {
        self.lines.clear();
        self.base = base;
    }

    /// Keeps the borders up to `end`.
    pub(super) fn cut(&mut self, end: u64) {
        self.lines.retain(|border| border.end <= end);
    }

    /// The last border up to which `file` still holds the lines remembered, and whether other
    /// bytes than remembered were seen behind it.
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

    /// Whether the newest line remembered still stands there.
    fn has_last(&self, file: &dyn ReadAt) -> io::Result<bool> {
        let Some(last) = self.lines.back() else { return Ok(true) };
        let start = self.lines.iter().rev().nth(1).map_or(self.base, |border| border.end);
        let len = usize::try_from(last.end - start).map_or(SAMPLE, |len| len.min(SAMPLE));
        let mut bytes = [0; SAMPLE];
        let filled = file.fill_at(&mut bytes[..len], last.end - len as u64)?;
        Ok(short_hash(&bytes[..filled]) == last.hash)
    }

    /// Packs them: for each line its size as a varint and four bytes of hash.
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

    /// Unpacks what [`Borders::pack`] made; what makes no sense ends it.
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

/// How the bytes of a file compare with those that were read of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileMatch {
    /// The same up to the checkpoint.
    Whole,
    /// Fewer than were read, and none of them known to be others: it may have been cut, or it is
    /// being written again.
    Short {
        /// The last border that is still there.
        up_to: Option<u64>,
    },
    /// The same up to a border before the checkpoint, then others.
    UpTo(u64),
    /// Others.
    Other,
}

impl FileMatch {
    /// What a file shows that nobody is writing: what is not there will not come.
    pub(super) fn settled(self) -> Self {
        match self {
            Self::Short { up_to: Some(border) } => Self::UpTo(border),
            Self::Short { up_to: None } => Self::Other,
            other => other,
        }
    }
}

/// The bytes at both ends of what was read: read to be compared, kept to be sampled again.
#[derive(Debug, Default)]
pub(super) struct EdgeSamples {
    /// The first bytes of the file, at most [`SAMPLE`], none of them after the checkpoint.
    pub(super) head: Vec<u8>,
    /// The last bytes before the checkpoint, at most [`SAMPLE`].
    pub(super) tail: Vec<u8>,
}

impl EdgeSamples {
    /// Reads both ends of what lies before `offset`; they are short when the file is.
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

    /// Takes in what was read next.
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

/// What is remembered of a file's bytes, beside the borders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// The first bytes, none of them after the oldest border: the borders vouch for the rest. Of a
    /// generation that is to be read again from its beginning, all that were sampled.
    pub(super) head: Sample,
    /// The last bytes before the checkpoint.
    pub(super) tail: Sample,
}

/// Compares `file` with what was read of it up to `offset`, and leaves both ends in `ends`.
///
/// # Errors
/// What reading the file says.
pub(super) fn compare(
    file: &dyn ReadAt,
    size: u64,
    offset: u64,
    fingerprint: &Fingerprint,
    borders: &Borders,
    long: Option<&LongLinePosition>,
    ends: &mut EdgeSamples,
) -> io::Result<FileMatch> {
    ends.read(file, offset)?;
    if fingerprint.head.len() > offset {
        // A generation that is read again from its beginning: how it began is all that is known.
        let mut first = [0; SAMPLE];
        let filled = file.fill_at(&mut first[..usize::from(fingerprint.head.len)], 0)?;
        let is_same = fingerprint.head.begins(&first[..filled]);
        return Ok(if is_same { FileMatch::Whole } else { FileMatch::Other });
    }
    let is_short = size < offset;
    let has_head = ends.head.len() as u64 >= fingerprint.head.len();
    if (has_head || !is_short) && !fingerprint.head.begins(&ends.head) {
        return Ok(FileMatch::Other);
    }
    let is_whole = !is_short
        && ends.tail.len() as u64 == fingerprint.tail.len()
        && fingerprint.tail.begins(&ends.tail);
    let begins = |long| begins_there(file, long, borders);
    if is_whole && long.map_or(Ok(true), begins)? {
        return Ok(FileMatch::Whole);
    }
    Ok(match borders.common(file, size)? {
        (up_to, false) if is_short => FileMatch::Short { up_to },
        (Some(border), _) if border < offset => FileMatch::UpTo(border),
        _ => FileMatch::Other,
    })
}

/// Whether a large line still begins where it did, with the same bytes. In the middle of one the
/// last bytes may be all alike, and say nothing.
fn begins_there(file: &dyn ReadAt, long: &LongLinePosition, borders: &Borders) -> io::Result<bool> {
    let LongLinePosition { start, head, .. } = long;
    let mut bytes = [0; SAMPLE];
    let len = usize::from(head.len);
    let filled = file.fill_at(&mut bytes[..len], *start)?;
    Ok(head.begins(&bytes[..filled]) && borders.has_last(file)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl ReadAt for &[u8] {
        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
            let start = usize::try_from(offset).unwrap().min(self.len());
            let rest = &self[start..];
            // A few bytes at a time, as a system may.
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

    /// Remembers all complete lines of `content`.
    fn read(content: &[u8]) -> Read {
        let mut borders = Borders::default();
        let mut ends = EdgeSamples::default();
        for line in content.split_inclusive(|byte| *byte == b'\n') {
            borders.push(&line[line.len().saturating_sub(SAMPLE)..], line.len() as u64);
            ends.extend(line);
        }
        let head = Sample::of_head(&ends.head, borders.base());
        let fingerprint = Fingerprint { head, tail: Sample::of(&ends.tail) };
        Read { offset: content.len() as u64, fingerprint, borders }
    }

    fn sameness(before: &[u8], after: &[u8]) -> FileMatch {
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
    fn an_appended_file_is_the_same() {
        assert_eq!(sameness(b"", b""), FileMatch::Whole);
        assert_eq!(sameness(b"", b"a\n"), FileMatch::Whole);
        assert_eq!(sameness(b"a\n", b"a\nb\n"), FileMatch::Whole);
        assert_eq!(sameness(&lines(0..500), &lines(0..501)), FileMatch::Whole);
    }

    #[test]
    fn a_trimmed_file_goes_on_at_the_cut() {
        let before = lines(0..500);
        let cut = lines(0..470);
        let border = FileMatch::UpTo(cut.len() as u64);
        assert_eq!(sameness(&before, &cut).settled(), border);
        let torn = [&cut, &b"other bytes than before"[..]].concat();
        assert_eq!(sameness(&before, &torn).settled(), border);
        assert_eq!(sameness(&before, &[cut, lines(900..990)].concat()), border);
        assert_eq!(sameness(b"a\nb\n", b"a\nc\nd\n"), FileMatch::UpTo(2));
    }

    #[test]
    fn fewer_bytes_may_be_on_their_way_until_others_are_seen() {
        let short = |up_to| FileMatch::Short { up_to };
        assert_eq!(sameness(b"a\n", b""), short(None));
        assert_eq!(sameness(b"a\nb\n", b"a\n"), short(Some(2)));
        assert_eq!(sameness(b"a\nb\n", b"a\nx"), short(Some(2)), "no whole line");
        assert_eq!(sameness(b"a\nb\ncc\n", b"a\nc\n"), FileMatch::UpTo(2));
        assert_eq!(sameness(b"a\nb\ncc\n", b"b\na\n"), FileMatch::Other);
        let before = lines(0..500);
        assert_eq!(sameness(&before, &before[..1000]), short(None), "before the end of the head");
        assert_eq!(sameness(&before, &lines(0..300)), short(None), "before all borders");
        assert_eq!(sameness(&before, &lines(1..300)), FileMatch::Other);
        assert_eq!(short(None).settled(), FileMatch::Other);
        assert_eq!(short(Some(2)).settled(), FileMatch::UpTo(2));
    }

    #[test]
    fn other_bytes_are_seen() {
        assert_eq!(sameness(b"a\n", b"b\n"), FileMatch::Other);
        let before = lines(0..500);
        assert_eq!(sameness(&before, &lines(1..501)), FileMatch::Other);
        let mut changed = before.clone();
        changed[17] = b'!';
        assert_eq!(sameness(&before, &changed), FileMatch::Other, "the head");
        let mut changed = before.clone();
        let last = changed.len() - 2;
        changed[last] = b'!';
        assert_eq!(sameness(&before, &changed), FileMatch::UpTo(lines(0..499).len() as u64));
    }

    #[test]
    fn the_same_first_kilobyte_is_not_enough() {
        let before = lines(0..100);
        let after = [&before[..1024], &lines(200..300)].concat();
        assert_eq!(sameness(&before, &after), FileMatch::Other);
    }

    #[test]
    fn packed_borders_that_make_no_sense_end_the_list() {
        assert_eq!(Borders::unpack(5, &[0x80; 30]).end(), 5);
        assert_eq!(Borders::unpack(5, &[2, 0, 0, 0, 0, 9, 1]).end(), 7);
    }
}
