//! Cumulative totals: where every byte of every file went, within one epoch.

use std::{collections::BTreeMap, ops::AddAssign};

use serde::{Deserialize, Serialize};

/// Cumulative totals of an epoch, as a heartbeat reports them: they cover exactly the sequence
/// numbers below the heartbeat's own.
///
/// Bytes are bytes of files, so that the figures add up to the bytes that were read. Shipped lines
/// and parts count without line endings, which have a figure of their own; all other lines count
/// with their endings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Totals {
    /// Lines that became records; bytes are the sum of the records' `length`.
    pub shipped: Count,
    /// Parts of large lines, and the lines that they completed.
    pub parts: Parts,
    /// Bytes of the line endings of shipped lines and parts.
    pub endings: u64,
    /// Lines that a filter dropped, by stage and reason.
    pub filtered: BTreeMap<String, BTreeMap<String, Count>>,
    /// Lines that hold only white space.
    pub blank: Count,
    /// Bytes that filters cut out of shipped records, by stage.
    pub cut: BTreeMap<String, u64>,
    /// Lines that were read again because bytes in or near them were altered. The other figures
    /// include them: they are read bytes, and not further bytes of files.
    pub altered: Count,
    /// Bytes of files that were deleted or rewritten before they were read, as far as known.
    pub deleted_unread: Lost,
    /// Events that the agent reported.
    pub events: u64,
    /// Entries at the start of the epoch that the other figures leave out, because they were
    /// counted in another epoch.
    pub uncounted: u64,
}

/// Number of lines and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Count {
    /// Number of lines.
    pub lines: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// Number of parts of large lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Parts {
    /// Number of parts that became entries.
    pub parts: u64,
    /// Number of lines that they completed.
    pub lines: u64,
    /// Number of bytes in the parts.
    pub bytes: u64,
}

/// Bytes that can no longer be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Lost {
    /// Number of files that lost bytes.
    pub files: u64,
    /// Number of bytes.
    pub bytes: u64,
}

impl Count {
    /// Counts one line of `bytes` bytes.
    #[must_use]
    pub fn line(bytes: u64) -> Self {
        Self { lines: 1, bytes }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.lines = self.lines.saturating_add(other.lines);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

impl AddAssign for Parts {
    fn add_assign(&mut self, other: Self) {
        self.parts = self.parts.saturating_add(other.parts);
        self.lines = self.lines.saturating_add(other.lines);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

impl AddAssign for Lost {
    fn add_assign(&mut self, other: Self) {
        self.files = self.files.saturating_add(other.files);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

impl Totals {
    /// Returns the totals of an epoch that starts with `entries` entries of another epoch.
    #[must_use]
    pub fn after(entries: u64) -> Self {
        Self { uncounted: entries, ..Self::default() }
    }

    /// Counts lines that the filter `stage` dropped.
    pub fn drop(&mut self, stage: &str, reason: &str, count: Count) {
        // The names are nearly always present, so they are looked up before they are copied.
        if !self.filtered.contains_key(stage) {
            self.filtered.insert(stage.to_owned(), BTreeMap::new());
        }
        let Some(reasons) = self.filtered.get_mut(stage) else { return };
        match reasons.get_mut(reason) {
            Some(known) => *known += count,
            None => {
                reasons.insert(reason.to_owned(), count);
            }
        }
    }

    /// Counts bytes that the filter `stage` cut out of a record.
    pub fn cut(&mut self, stage: &str, bytes: u64) {
        *self.cut.entry(stage.to_owned()).or_default() += bytes;
    }

    /// Returns the sum of the lines that filters dropped.
    #[must_use]
    pub fn all_filtered(&self) -> Count {
        let mut all = Count::default();
        self.filtered.values().flat_map(BTreeMap::values).for_each(|count| all += *count);
        all
    }

    /// Returns the number of entries of the epoch, according to the figures.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.uncounted + self.shipped.lines + self.parts.parts + self.events
    }
}
