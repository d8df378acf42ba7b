//! Erases lines again that a damaged journal brought back.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use memchr::memmem;
use siem_protocol::Digest;
use tracing::warn;

use crate::{
    batch::seq_of,
    regular_file::open_regular_file,
    store::{
        catalog::{Catalog, Key},
        epoch::{Stem, open},
        erase::LineToErase,
        erased_lines::number,
        index_record,
        note::{ErasureNote, Note},
    },
};

/// Replaces lines by tombstones again that are erased according to the notes `known` of the index, or
/// to those `behind` damage of a journal, which the index may lack. Returns the numbers of all that are
/// erased and there.
///
/// The frames before the damage were written to the files again, and one of them may have brought such
/// a line, while the frame with its erasure is behind the damage.
pub(super) fn erase_again<'a>(
    machines: &Path,
    stem: &Stem,
    key: &Key,
    known: impl Iterator<Item = &'a ErasureNote>,
    behind: &'a [Note],
    catalog: &Catalog,
) -> io::Result<BTreeSet<u64>> {
    let behind = behind.iter().filter_map(|note| note.erased.as_ref());
    let mut erased: HashMap<u64, Vec<(Digest, &str)>> = HashMap::new();
    for (line, id) in known.chain(behind).flat_map(|it| it.lines.iter().map(|line| (line, &*it.id)))
    {
        erased.entry(line.seq).or_default().push((line.line_sha256, id));
    }
    let (path, mut present) = (stem.lines(machines), BTreeSet::new());
    if erased.is_empty() || !path.try_exists()? {
        return Ok(present);
    }
    let file = open(&path)?;
    let (mut at, (end, _)) = (catalog.lines_from(key), catalog.ends(key));
    let mut reader = open_regular_file(&path)?;
    reader.seek(SeekFrom::Start(at))?;
    let mut reader = BufReader::with_capacity(256 << 10, reader.take(end.saturating_sub(at)));
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let start = at;
        at += line.len() as u64;
        if let Some(text) = line.strip_suffix(b"\n")
            && let Some((seq, marks)) = number(text).and_then(|it| erased.get_key_value(&it))
        {
            if let Some((tombstone, id)) = lacking_tombstone(*seq, text, marks) {
                let mut writer = &file;
                writer.seek(SeekFrom::Start(start))?;
                writer.write_all(&tombstone)?;
                warn!(code = "erasure_repeated_after_damage", file = %path.display(), seq, erasure = id, "a damaged journal brought an erased line back: it was erased again");
            }
            present.insert(*seq);
        }
        line.clear();
    }
    Ok(present)
}

/// Returns the tombstone of an erased line, and the id of the erasure, if the line has its text or a part of
/// it. `marks` has the hash of its text and the id of each erasure. A line that arrived with another text after
/// its erasure stays.
fn lacking_tombstone<'a>(
    seq: u64,
    line: &[u8],
    marks: &[(Digest, &'a str)],
) -> Option<(Vec<u8>, &'a str)> {
    let tombstone = |(digest, id): &(Digest, &'a str)| {
        (LineToErase::noted(seq, line.len() as u64, *digest).tombstone(id), *id)
    };
    let tombstones: Vec<_> = marks.iter().map(tombstone).collect();
    let strip = |it: &(Vec<u8>, _)| it.0.len().saturating_sub(1);
    if tombstones.iter().any(|it| it.0[..strip(it)] == *line) {
        return None;
    }
    let digest = Digest::of(line);
    let whole = marks.iter().find(|mark| mark.0 == digest).map(tombstone);
    let half = || tombstones.into_iter().rfind(|it| is_half_overwritten(line, &it.0[..strip(it)]));
    whole.or_else(half)
}

/// Reports whether a line consists of a part of an entry and a part of its tombstone: it is no entry any more,
/// begins as only tombstones do, or ends so.
fn is_half_overwritten(line: &[u8], tombstone: &[u8]) -> bool {
    let same = line.iter().zip(tombstone).take_while(|(line, it)| line == it).count();
    let begin = &tombstone[..same];
    let begins = begin.ends_with(br#","kind":"e"#) && !line[same..].starts_with(b"vent\"")
        || memmem::find(begin, br#","kind":"er"#).is_some();
    let padding = tombstone.len() - tombstone.trim_ascii_end().len();
    let end = if padding > 0 { padding + 1 } else { 10 };
    let ends = line.ends_with(&tombstone[tombstone.len().saturating_sub(end)..]);
    begins || ends || seq_of(line).is_none()
}

/// Adds notes of the erasures `behind` damage to the index, with those of their numbers that are `present`
/// and not in one of its notes `known`.
pub(super) fn note_again<'a>(
    machines: &Path,
    stem: &Stem,
    key: &Key,
    known: impl Iterator<Item = &'a ErasureNote>,
    behind: &[Note],
    present: &BTreeSet<u64>,
    catalog: &mut Catalog,
) -> io::Result<()> {
    let noted: BTreeSet<(&str, u64)> =
        known.flat_map(|it| it.lines.iter().map(|line| (&*it.id, line.seq))).collect();
    for note in behind {
        let Some(ErasureNote { id, lines }) = &note.erased else { continue };
        let lines: Vec<_> = lines
            .iter()
            .filter(|it| present.contains(&it.seq) && !noted.contains(&(&**id, it.seq)))
            .cloned()
            .collect();
        if lines.is_empty() {
            continue;
        }
        let (lines_at, index_end) = catalog.ends(key);
        let erased = Some(ErasureNote { id: id.clone(), lines });
        let note = Note { at: note.at.clone(), lines_at, erased, ..Note::default() };
        let record = index_record::encode(&note.line(), &[], &[])?;
        let mut index = open(&stem.index(machines))?;
        index.seek(SeekFrom::Start(index_end))?;
        index.write_all(&record)?;
        catalog.record(key, &note, record.len() as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_overwritten_to_any_byte_lacks_its_tombstone() {
        for kind in ["record", "event", "record_part"] {
            let line = format!(
                r#"{{"seq":7,"kind":"{kind}","source":"s","path":"/p","record":{{"text":"{}"}}}}"#,
                "secret ".repeat(30)
            );
            let digest = Digest::of(line.as_bytes());
            let mut tombstone = LineToErase::new(7, 0, line.as_bytes()).tombstone("01");
            tombstone.pop();
            let marks = [(Digest::ZERO, "00"), (digest, "01")];
            for cut in 0..=line.len() {
                let (old, new) = (line.as_bytes(), tombstone.as_slice());
                for half in
                    [[&new[..cut], &old[cut..]].concat(), [&old[..cut], &new[cut..]].concat()]
                {
                    let found = lacking_tombstone(7, &half, &marks);
                    let found = found.map_or(half, |(it, _)| it[..it.len() - 1].to_vec());
                    assert_eq!(found, tombstone, "{kind} {cut}");
                }
            }
        }
        let other = br#"{"seq":7,"kind":"event","source":"s","event":"another"}"#;
        assert_eq!(lacking_tombstone(7, other, &[(Digest::ZERO, "01")]), None);
    }
}
