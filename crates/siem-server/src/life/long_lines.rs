//! Lines of session files that arrived in parts, of which only some name the session.
//!
//! A line of more than 8 MiB arrives as several entries. All belong to the session that one of them names, and
//! have in common machine and user, the generation of the file and the offset of the line. Of erased lines these
//! are kept, so that parts that arrive later are erased too.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use memchr::memmem;
use serde::{Deserialize, Serialize};
use siem_protocol::json;
use tracing::error;

use super::{directory, replace};
use crate::regular_file::read_whole_file;

/// Maximum number of lines of an erasure: each takes memory.
const MOST: usize = 100_000;

/// A line that arrived in parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct LongLine {
    /// Machine and user that sent it: otherwise an erasure of what one sender made up would take parts of
    /// another's line.
    machine: String,
    user: String,
    /// Generation of its file.
    generation: String,
    /// Position in the file.
    offset: u64,
}

impl LongLine {
    /// Returns the line of which an entry of a machine and user is a part.
    pub(super) fn of_part(machine: &str, user: &str, entry: &[u8]) -> Option<Self> {
        memmem::find(entry, b"\"record_part\"")?;
        let (mut is_part, mut generation, mut offset) = (false, None, None);
        json::members(std::str::from_utf8(entry).ok()?.trim_ascii_end(), |member| {
            if member.is("kind") {
                is_part = json::string(member.value).is_some_and(|kind| kind == "record_part");
            } else if member.is("generation") {
                generation = json::string(member.value).map(Into::into);
            } else if member.is("offset") {
                offset = member.value.parse().ok();
            }
        })?;
        let (generation, offset) = (generation.filter(|_| is_part)?, offset?);
        Some(Self { machine: machine.to_owned(), user: user.to_owned(), generation, offset })
    }
}

/// Lines that arrived in parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct LongLines(BTreeSet<LongLine>);

impl LongLines {
    /// Reads the lines of an erasure, also those that its repetitions found.
    pub(super) fn read(data: &Path, erasure: &str) -> io::Result<Self> {
        Ok(read_all(data)?.remove(erasure).unwrap_or_default())
    }

    /// Adds the lines to those of an erasure. The lock of removals must be held.
    pub(super) fn write(&self, data: &Path, erasure: &str) -> io::Result<()> {
        let mut all = read_all(data)?;
        all.entry(erasure.to_owned()).or_default().0.extend(self.0.iter().cloned());
        replace(&path(data), &serde_json::to_vec(&all)?)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reports whether an entry of a machine and user is a part of one of the lines.
    pub(super) fn have_part(&self, machine: &str, user: &str, entry: &[u8]) -> bool {
        let line = || LongLine::of_part(machine, user, entry);
        !self.0.is_empty() && line().is_some_and(|line| self.0.contains(&line))
    }

    /// Adds the line of which an entry of a machine and user is a part.
    pub(super) fn add_line_of(&mut self, machine: &str, user: &str, entry: &[u8]) {
        let Some(line) = LongLine::of_part(machine, user, entry) else { return };
        if self.0.len() < MOST {
            self.0.insert(line);
        } else if !self.0.contains(&line) {
            error!(
                code = "erasure_parts_left",
                most = MOST,
                "an erased session has too many lines in parts: parts that do not name it may stay"
            );
        }
    }

    /// Adds other lines. Reports whether one of them was not known.
    pub(super) fn extend(&mut self, other: &Self) -> bool {
        let before = self.0.len();
        self.0.extend(other.0.iter().cloned());
        self.0.len() > before
    }
}

fn path(data: &Path) -> PathBuf {
    directory(data).join("long-lines.json")
}

/// Returns the lines by the id of the erasure.
pub(super) fn read_all(data: &Path) -> io::Result<BTreeMap<String, LongLines>> {
    match read_whole_file(&path(data)) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parts_have_a_line() {
        let line = |text: &str| LongLine::of_part("m", "u", text.as_bytes());
        let part = r#"{"seq":1,"kind":"record_part","generation":"g","offset":7,"part":2,"raw_base64":""}"#;
        let (machine, user, generation) = ("m".into(), "u".into(), "g".into());
        assert_eq!(line(part), Some(LongLine { machine, user, generation, offset: 7 }));
        let mut lines = LongLines::default();
        lines.add_line_of("m", "u", part.as_bytes());
        assert!(lines.have_part("m", "u", part.as_bytes()));
        assert!(!lines.have_part("m", "v", part.as_bytes()));
        assert!(!lines.have_part("n", "u", part.as_bytes()));
        for text in [
            r#"{"seq":1,"kind":"record","generation":"g","offset":7,"record":{"a":"record_part"}}"#,
            r#"{"seq":1,"kind":"record_part","offset":7}"#,
            r#"{"seq":1,"kind":"record_part","generation":"g","offset":-7}"#,
            r#"{"seq":1,"kind":"record_part","generation":"g","offset":7"#,
        ] {
            assert_eq!(line(text), None, "{text}");
        }
    }
}
