//! Erased lines as readers beside the writer see them.
//!
//! A line is overwritten while others read it, who may get a part of it and a part of its tombstone. The
//! record of an erasure is in the index before the first of its lines is overwritten, so a reader that looks
//! for it after the lines knows which ones it must not trust.

use std::{collections::HashMap, fs::File, io, path::Path};

use siem_protocol::DeadLettered;

use super::{erase::LineToErase, index_record::scan, note::Note};
use crate::{batch::seq_of, regular_file::open_regular_file};

/// Erasures in the index of an epoch.
#[derive(Debug)]
pub(super) struct ErasedLines {
    index: File,
    /// End of the records that were read.
    end: u64,
    /// Each with the position of the record and the id of its erasure, by number.
    lines: HashMap<u64, (u64, String, DeadLettered)>,
}

impl ErasedLines {
    /// Reads the records of an index from a position on.
    pub(super) fn open(index: &Path, from: u64) -> io::Result<Self> {
        let index = open_regular_file(index)?;
        let mut erased = Self { index, end: from, lines: HashMap::new() };
        erased.refresh()?;
        Ok(erased)
    }

    /// Reads the records that were added since.
    fn refresh(&mut self) -> io::Result<()> {
        if self.index.metadata()?.len() <= self.end {
            return Ok(());
        }
        let found = scan(&self.index, self.end, |at, _, text| {
            if let Ok(Note { erased: Some(erased), .. }) = serde_json::from_slice(text) {
                for line in erased.lines {
                    self.lines.insert(line.seq, (at, erased.id.clone(), line));
                }
            }
            Ok(())
        })?;
        self.end = found.end;
        Ok(())
    }

    /// Puts tombstones in the place of erased lines in `text`, which was read before and has the lines of the
    /// batch whose record is at `brought_at`. A line that was lost and arrived again after its erasure stays.
    pub(super) fn replace(&mut self, brought_at: u64, text: &mut [u8]) -> io::Result<()> {
        self.refresh()?;
        if self.lines.is_empty() {
            return Ok(());
        }
        for line in text.split_inclusive_mut(|byte| *byte == b'\n') {
            let bytes = line.len() - usize::from(line.ends_with(b"\n"));
            let erased = number(&line[..bytes]).and_then(|seq| self.lines.get(&seq));
            if let Some((at, id, DeadLettered { seq, line_sha256 })) = erased
                && *at > brought_at
            {
                let tombstone = LineToErase::noted(*seq, bytes as u64, *line_sha256).tombstone(id);
                line.copy_from_slice(&tombstone[..line.len()]);
            }
        }
        Ok(())
    }
}

/// Returns the number of a line that may consist of two parts. Those that agents send and tombstones begin
/// with it.
pub(super) fn number(line: &[u8]) -> Option<u64> {
    let Some(rest) = line.strip_prefix(br#"{"seq":"#) else { return seq_of(line) };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}
