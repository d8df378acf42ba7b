//! One batch in the index of its epoch: the note, the values of the chain, and the starts of its
//! lines.
//!
//! ```text
//! magic 4 | note u32 | values u32 | starts u32 | check 8 | check 8 | note | values | starts
//! ```
//! Lengths are little-endian. The first check is over the lengths and the note, the second one over
//! the values: when the store is opened it reads all notes, but skips the rest. The starts have a
//! check of their own.

use std::{
    fs::File,
    io::{self, BufReader, Read as _, Seek as _, SeekFrom},
};

use memchr::memmem;
use siem_protocol::Digest;

use super::note::Note;

const MAGIC: &[u8; 4] = b"six3";
const FIXED: usize = 16;
/// Size of a head in bytes.
const HEAD: usize = 32;
/// No part of a record is larger: a longer one is damaged.
const LARGEST: u64 = 1 << 30;
/// Most records of an agent that sends as it reads fit.
const BUFFER: usize = 8 << 10;

/// Encodes a record.
pub(super) fn encode(note: &[u8], values: &[u8], starts: &[u8]) -> io::Result<Vec<u8>> {
    let mut record = Vec::with_capacity(HEAD + note.len() + values.len() + starts.len());
    record.extend_from_slice(MAGIC);
    for part in [note, values, starts] {
        let length = u32::try_from(part.len()).map_err(io::Error::other)?;
        record.extend_from_slice(&length.to_le_bytes());
    }
    let check = check(&[&record, note]);
    record.extend_from_slice(&check);
    record.extend_from_slice(&self::check(&[values]));
    record.extend_from_slice(note);
    record.extend_from_slice(values);
    record.extend_from_slice(starts);
    Ok(record)
}

fn check(parts: &[&[u8]]) -> [u8; 8] {
    let mut check = [0; 8];
    check.copy_from_slice(&Digest::of(&parts.concat()).as_bytes()[..8]);
    check
}

/// Lengths and checks of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHead {
    bytes: [u8; HEAD],
    note: u64,
    values: u64,
    starts: u64,
}

/// Parts of a record in memory, without its starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordParts<'a> {
    /// Text of the note, with its newline.
    pub(super) note: &'a [u8],
    /// Values of the chain, 32 bytes each.
    pub(super) values: &'a [u8],
}

impl RecordHead {
    fn parse(bytes: &[u8; HEAD]) -> Option<Self> {
        let length = |at: usize| {
            u64::from(u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
        };
        let (note, values, starts) = (length(4), length(8), length(12));
        let is_plausible = [note, values, starts].iter().all(|length| *length <= LARGEST);
        let head = Self { bytes: *bytes, note, values, starts };
        (bytes.starts_with(MAGIC) && is_plausible).then_some(head)
    }

    /// Size of the record in bytes.
    pub(super) fn length(&self) -> u64 {
        HEAD as u64 + self.note + self.values + self.starts
    }

    /// Position of the starts, from the record's first byte.
    pub(super) fn starts_at(&self) -> u64 {
        HEAD as u64 + self.note + self.values
    }

    /// Size of the starts in bytes.
    pub(super) fn starts_length(&self) -> u64 {
        self.starts
    }

    fn covers_note(&self, note: &[u8]) -> bool {
        check(&[&self.bytes[..FIXED], note]) == self.bytes[FIXED..FIXED + 8]
    }

    fn covers_values(&self, values: &[u8]) -> bool {
        check(&[values]) == self.bytes[FIXED + 8..]
    }
}

impl<'a> RecordParts<'a> {
    /// Takes the record at the start of `bytes`; `None` if there is no undamaged one.
    pub(super) fn take(bytes: &mut &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        let head = RecordHead::parse(head)?;
        let size = |length: u64| usize::try_from(length).ok();
        let (note, rest) = rest.split_at_checked(size(head.note)?)?;
        let (values, rest) = rest.split_at_checked(size(head.values)?)?;
        let (_, rest) = rest.split_at_checked(size(head.starts)?)?;
        if !head.covers_note(note) || !head.covers_values(values) {
            return None;
        }
        *bytes = rest;
        Some(Self { note, values })
    }

    /// Decodes the note.
    pub(super) fn note(&self) -> Option<Note> {
        serde_json::from_slice(self.note).ok()
    }
}

/// End of an index as [`scan`] found it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ScanEnd {
    /// End of the last undamaged record.
    pub(super) end: u64,
    /// Positions of bytes between records that are none.
    pub(super) damaged: Vec<u64>,
}

/// Passes each record from position `from` on to `show`: its position, its head and its note.
/// Values and starts are not read. Damaged bytes between records are skipped.
pub(super) fn scan(
    file: &File,
    from: u64,
    mut show: impl FnMut(u64, &RecordHead, &[u8]) -> io::Result<()>,
) -> io::Result<ScanEnd> {
    scan_with(file, from, |reader, at, head, note| {
        let rest = i64::try_from(head.values + head.starts).map_err(io::Error::other)?;
        reader.seek_relative(rest)?;
        show(at, head, note)
    })
}

/// Values and starts of a record, as they were read.
#[derive(Debug, Default)]
pub(super) struct Rest {
    values: Vec<u8>,
    starts: Vec<u8>,
    is_whole: bool,
}

impl Rest {
    /// Values of the chain; `None` if they are damaged.
    pub(super) fn values(&self) -> Option<&[[u8; 32]]> {
        let (values, rest) = self.values.as_chunks();
        (self.is_whole && rest.is_empty()).then_some(values)
    }

    /// Starts of the lines; the reader checks them.
    pub(super) fn starts(&self) -> &[u8] {
        &self.starts
    }
}

/// Like [`scan`] from the first record on, with values and starts.
pub(super) fn scan_whole(
    file: &File,
    mut show: impl FnMut(u64, &[u8], &Rest) -> io::Result<()>,
) -> io::Result<ScanEnd> {
    let mut rest = Rest::default();
    scan_with(file, 0, |reader, at, head, note| {
        rest.values.clear();
        reader.by_ref().take(head.values).read_to_end(&mut rest.values)?;
        rest.is_whole = head.covers_values(&rest.values);
        rest.starts.clear();
        reader.by_ref().take(head.starts).read_to_end(&mut rest.starts)?;
        show(at, note, &rest)
    })
}

/// Passes each record to `show` with a reader, which stands behind the note and must be moved to the end of
/// the record.
fn scan_with(
    file: &File,
    from: u64,
    mut show: impl FnMut(&mut BufReader<&File>, u64, &RecordHead, &[u8]) -> io::Result<()>,
) -> io::Result<ScanEnd> {
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(BUFFER, file);
    reader.seek(SeekFrom::Start(from))?;
    let mut found = ScanEnd { end: from, damaged: Vec::new() };
    let mut note = Vec::new();
    let mut at = from;
    while at < length {
        let Some(head) = read_note(&mut reader, length - at, &mut note)? else {
            let Some(next) = find_record(file, at + 1, length)? else { break };
            found.damaged.push(at);
            at = next;
            reader.seek(SeekFrom::Start(at))?;
            continue;
        };
        show(&mut reader, at, &head, &note)?;
        at += head.length();
        found.end = at;
    }
    Ok(found)
}

/// Reads head and note of the record at the reader's position; `None` if there is no whole one
/// within `rest` bytes.
fn read_note(
    reader: &mut BufReader<&File>,
    rest: u64,
    note: &mut Vec<u8>,
) -> io::Result<Option<RecordHead>> {
    if rest < HEAD as u64 {
        return Ok(None);
    }
    let mut head = [0; HEAD];
    reader.read_exact(&mut head)?;
    let Some(head) = RecordHead::parse(&head).filter(|head| head.length() <= rest) else {
        return Ok(None);
    };
    note.clear();
    reader.by_ref().take(head.note).read_to_end(note)?;
    Ok(head.covers_note(note).then_some(head))
}

/// Returns the position of the first whole record from `from` on.
fn find_record(mut file: &File, from: u64, length: u64) -> io::Result<Option<u64>> {
    const STEP: u64 = 1 << 20;
    let (mut at, mut note) = (from, Vec::new());
    while at < length {
        let mut block = Vec::new();
        file.seek(SeekFrom::Start(at))?;
        file.take(STEP + MAGIC.len() as u64 - 1).read_to_end(&mut block)?;
        for found in memmem::find_iter(&block, MAGIC) {
            let found = at + found as u64;
            let mut reader = BufReader::with_capacity(BUFFER, file);
            reader.seek(SeekFrom::Start(found))?;
            if read_note(&mut reader, length - found, &mut note)?.is_some() {
                return Ok(Some(found));
            }
        }
        at += STEP;
    }
    Ok(None)
}

#[cfg(test)]
pub(in crate::store) mod tests {
    use super::*;

    /// Changes the notes of an index, with the checks that belong to them.
    pub(in crate::store) fn with_note(
        mut index: &[u8],
        edit: impl Fn(&mut serde_json::Value),
    ) -> Vec<u8> {
        let mut changed = Vec::new();
        while !index.is_empty() {
            let whole = index;
            let RecordParts { note, values } = RecordParts::take(&mut index).unwrap();
            let parts = HEAD + note.len() + values.len();
            let starts = &whole[parts..whole.len() - index.len()];
            let mut note = serde_json::from_slice(note).unwrap();
            edit(&mut note);
            changed.extend(encode(&serde_json::to_vec(&note).unwrap(), values, starts).unwrap());
        }
        changed
    }

    fn scanned(bytes: &[u8]) -> (Vec<(u64, Vec<u8>)>, ScanEnd) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        std::fs::write(&path, bytes).unwrap();
        let mut notes = Vec::new();
        let end = scan(&File::open(path).unwrap(), 0, |at, _, note| {
            notes.push((at, note.to_vec()));
            Ok(())
        });
        (notes, end.unwrap())
    }

    #[test]
    fn cut_or_changed_record_is_not_taken() {
        let record = encode(b"{}\n", &[7; 64], b"starts").unwrap();
        let parts = RecordParts::take(&mut record.as_slice()).unwrap();
        assert_eq!((parts.note, parts.values), (b"{}\n".as_slice(), [7; 64].as_slice()));
        for at in 0..record.len() {
            assert!(RecordParts::take(&mut &record[..at]).is_none(), "{at}");
        }
        // The starts have a check of their own.
        for at in 0..record.len() - b"starts".len() {
            let mut changed = record.clone();
            changed[at] ^= 1;
            assert!(RecordParts::take(&mut changed.as_slice()).is_none(), "{at}");
        }
    }

    #[test]
    fn scan_skips_damage_and_stops_before_a_torn_end() {
        let one = encode(b"1", &[1; 32], b"").unwrap();
        let two = encode(b"2", b"", b"starts").unwrap();
        let three = encode(b"3", &[3; 96], b"").unwrap();
        let whole = [&one[..], &two[..], &three[..]].concat();
        let (first, second) = (one.len(), one.len() + two.len());
        for cut in 0..three.len() {
            let (notes, end) = scanned(&whole[..second + cut]);
            assert_eq!(notes.len(), 2, "{cut}");
            assert_eq!(end, ScanEnd { end: second as u64, damaged: Vec::new() }, "{cut}");
        }
        // A damaged head or note; the values are not read here.
        for at in first..first + HEAD - 8 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            let (notes, end) = scanned(&damaged);
            assert_eq!(notes, [(0, b"1".to_vec()), (second as u64, b"3".to_vec())], "{at}");
            assert_eq!((end.end, end.damaged), (whole.len() as u64, vec![first as u64]), "{at}");
        }
    }
}
