//! Filters decide about one record: keep, drop or edit it.

use std::{ops::Range, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{BuildError, Event, FileKey, Record};

/// Decides about records, one at a time, in the order of their file.
///
/// A filter is pure: no I/O, no clock, no thread, no panic. Two instances of one type share
/// nothing. Filters run in the order of `pipeline.filters`. After [`Verdict::Drop`] the remaining
/// filters do not run; after [`Verdict::Edit`] or [`Verdict::Mask`] they see the edited line.
///
/// Records are stored in groups. A filter that remembers records keeps a memory permanently only
/// once the group is stored, which [`commit`](Self::commit) reports. [`rollback`](Self::rollback)
/// reports that the group was not stored and that its records will be checked again.
pub trait Filter: Send {
    /// Decides about `record`.
    fn check(&mut self, record: &Record<'_>) -> Verdict;

    /// Called when the records checked since the last `commit` or [`rollback`](Self::rollback) are
    /// stored.
    fn commit(&mut self) {}

    /// Called when the records checked since the last [`commit`](Self::commit) or `rollback` were
    /// not stored: the filter must forget them.
    fn rollback(&mut self) {}

    /// Called when a file was deleted: memory about it can be freed.
    fn forget(&mut self, _file: FileKey) {}

    /// Returns, and forgets, events about the records checked since the last call. They are stored
    /// with these records.
    fn take_events(&mut self) -> Vec<Event> {
        Vec::new()
    }
}

/// Decision of a filter. Reasons are short words in snake_case; totals are counted by them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The record is kept unchanged.
    Keep,
    /// The record is dropped, for this reason.
    Drop(&'static str),
    /// Ranges of the line are removed or replaced, for this reason. The entry states how many bytes
    /// were removed and carries the hash of the original line.
    Edit(Vec<Change>, &'static str),
    /// Matches of patterns are replaced by marks. The entry states how often each pattern matched
    /// and carries the hash of the original line.
    Mask(Vec<Match>),
}

/// A match of a pattern, and the mark that replaces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Name of the pattern.
    pub pattern: Arc<str>,
    /// Range and mark. The ranges of one verdict are in order and do not overlap.
    pub change: Change,
}

/// A range of the line and its replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Range of bytes of the line. The ranges of one verdict are in order and do not overlap.
    pub range: Range<usize>,
    /// Replacement; empty if the range is removed.
    pub with: Vec<u8>,
}

impl Change {
    /// Applies `changes` to `line`. Returns `None` if their ranges overlap, are out of order or are
    /// out of bounds.
    #[must_use]
    pub fn apply_all<'a>(
        line: &[u8],
        changes: impl IntoIterator<Item = &'a Self>,
    ) -> Option<Vec<u8>> {
        let mut edited = Vec::with_capacity(line.len());
        let mut at = 0;
        for Self { range, with } in changes {
            edited.extend_from_slice(line.get(at..range.start)?);
            edited.extend_from_slice(with);
            at = range.end.max(range.start);
        }
        edited.extend_from_slice(line.get(at..)?);
        Some(edited)
    }
}

/// Treatment of a record that a filter cannot decide about: an option of filters that need the whole
/// record, since only the first part of an oversized record is available.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// The record is kept.
    #[default]
    Keep,
    /// The record is dropped.
    Drop,
}

impl Fallback {
    /// Returns the verdict; `reason` is counted if the record is dropped.
    #[must_use]
    pub fn verdict(self, reason: &'static str) -> Verdict {
        match self {
            Self::Keep => Verdict::Keep,
            Self::Drop => Verdict::Drop(reason),
        }
    }
}

/// Options of a filter: its table, deserialized and checked by serde, and turned into a filter.
pub trait FilterOptions: DeserializeOwned + JsonSchema {
    /// The filter that these options build.
    type Filter: Filter + 'static;

    /// Builds the filter. Expensive work, such as compiling patterns, happens here once; no I/O.
    ///
    /// # Errors
    /// [`BuildError::Invalid`] if the options cannot work together.
    fn build(self) -> Result<Self::Filter, BuildError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apply_all_refuses_ranges_that_do_not_fit() {
        let cut = |start, end| Change { range: start..end, with: Vec::new() };
        let apply = |changes: &[Change]| Change::apply_all(b"abcdef", changes);
        assert_eq!(apply(&[cut(1, 2), cut(4, 6)]).unwrap(), b"acd");
        assert_eq!(apply(&[cut(4, 5), cut(1, 2)]), None);
        assert_eq!(apply(&[cut(1, 3), cut(2, 4)]), None);
        assert_eq!(apply(&[cut(5, 7)]), None);
    }
}
