//! Where every byte of every file went.

use std::{collections::BTreeMap, ops::AddAssign};

use serde::{Deserialize, Serialize};

/// Cumulative totals of an epoch. They are stored in the transaction that stores the entries, and
/// travel with heartbeats: each covers exactly the sequence numbers below its own.
///
/// Bytes are bytes of files, so that the parts add up to what was read: those of shipped lines
/// and parts as their entries tell them, without line endings, which are counted by themselves;
/// those of all other lines with their endings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Lines that became records; bytes are the sum of the records' `length`.
    pub shipped: Count,
    /// Parts of large lines.
    pub parts: Parts,
    /// Bytes of the line endings behind what was shipped.
    pub endings: u64,
    /// Lines that a filter dropped, by stage and reason.
    pub filtered: BTreeMap<String, BTreeMap<String, Count>>,
    /// Lines with nothing in them.
    pub blank: Count,
    /// Bytes that filters cut out of records that were shipped, by stage.
    pub cut: BTreeMap<String, u64>,
    /// What was in files that were deleted or rewritten before it was read, as far as known.
    pub deleted_unread: Lost,
    /// Events that the agent reported.
    pub events: u64,
    /// Entries at the epoch's beginning that none of the figures above counts: they were counted
    /// in another epoch.
    pub uncounted: u64,
}

/// Lines and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// How many lines.
    pub lines: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// Parts of large lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Parts {
    /// How many parts became entries.
    pub parts: u64,
    /// How many lines they completed.
    pub lines: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// What can't be read any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// How many files lost something.
    pub files: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// Where the bytes of one generation went: what the totals say, for one life of a file. Kept as
/// long as the file is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Share {
    /// Lines that became records, without their endings.
    pub shipped: Count,
    /// Parts of large lines.
    pub parts: Parts,
    /// The endings of both.
    pub endings: u64,
    /// Lines that filters dropped.
    pub filtered: Count,
    /// Lines with nothing in them.
    pub blank: Count,
    /// What was never read.
    pub deleted_unread: Lost,
}

impl Count {
    /// One line of `bytes`.
    #[must_use]
    pub fn line(bytes: u64) -> Self {
        Self { lines: 1, bytes }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.lines += other.lines;
        self.bytes += other.bytes;
    }
}

impl AddAssign for Parts {
    fn add_assign(&mut self, other: Self) {
        self.parts += other.parts;
        self.lines += other.lines;
        self.bytes += other.bytes;
    }
}

impl AddAssign for Lost {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

impl AddAssign for Share {
    fn add_assign(&mut self, other: Self) {
        self.shipped += other.shipped;
        self.parts += other.parts;
        self.endings += other.endings;
        self.filtered += other.filtered;
        self.blank += other.blank;
        self.deleted_unread += other.deleted_unread;
    }
}

impl Share {
    /// What became entries, endings and all.
    #[must_use]
    pub fn sent(&self) -> Count {
        let Self { shipped, parts, endings, .. } = self;
        Count { lines: shipped.lines + parts.lines, bytes: shipped.bytes + parts.bytes + endings }
    }

    /// What was read.
    #[must_use]
    pub fn read(&self) -> Count {
        let mut all = self.sent();
        all += self.filtered;
        all += self.blank;
        all
    }
}

impl Totals {
    /// The totals of an epoch that begins with `entries` of another.
    #[must_use]
    pub fn after(entries: u64) -> Self {
        Self { uncounted: entries, ..Self::default() }
    }

    /// Counts what was read of a file; `filtered` has been counted by [`Totals::drop`].
    pub fn add(&mut self, share: &Share) {
        let Share { shipped, parts, endings, filtered: _, blank, deleted_unread } = share;
        self.shipped += *shipped;
        self.parts += *parts;
        self.endings += endings;
        self.blank += *blank;
        self.deleted_unread += *deleted_unread;
    }

    /// Counts what `stage` dropped.
    pub fn drop(&mut self, stage: &str, reason: &str, count: Count) {
        // Names are looked up before they are copied: nearly always they are there already.
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

    /// Counts what `stage` cut out of a record.
    pub fn cut(&mut self, stage: &str, bytes: u64) {
        *self.cut.entry(stage.to_owned()).or_default() += bytes;
    }

    /// All of it as if it were one file's.
    #[must_use]
    pub fn share(&self) -> Share {
        let mut filtered = Count::default();
        self.filtered.values().flat_map(BTreeMap::values).for_each(|count| filtered += *count);
        Share {
            shipped: self.shipped,
            parts: self.parts,
            endings: self.endings,
            filtered,
            blank: self.blank,
            deleted_unread: self.deleted_unread,
        }
    }

    /// How many entries the epoch has, by what is counted.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.uncounted + self.shipped.lines + self.parts.parts + self.events
    }
}
