//! Where every byte of every file went.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Cumulative totals of an epoch. They are stored in the transaction that stores the entries, and
/// travel with heartbeats: each covers exactly the sequence numbers below its own.
///
/// Bytes are bytes of files, line endings and all, so that the parts add up to what was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Lines that became records.
    pub shipped: Count,
    /// Parts of large lines that became entries, and the lines that they completed.
    #[serde(default)]
    pub parts: Count,
    /// Lines that a filter dropped, by stage and reason.
    pub filtered: BTreeMap<String, BTreeMap<String, Count>>,
    /// Lines with nothing in them.
    pub blank: Count,
    /// Bytes that filters cut out of records that were shipped, by stage.
    #[serde(default)]
    pub cut: BTreeMap<String, u64>,
    /// Events that the agent reported.
    pub events: u64,
}

/// Lines, and the bytes that they take in their files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// How many lines.
    pub lines: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl Count {
    /// Counts one line of `bytes`.
    pub fn add(&mut self, bytes: u64) {
        self.lines += 1;
        self.bytes += bytes;
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.lines += other.lines;
        self.bytes += other.bytes;
    }
}

impl Totals {
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

    /// All that filters dropped.
    #[must_use]
    pub fn all_filtered(&self) -> Count {
        let mut all = Count::default();
        self.filtered.values().flat_map(BTreeMap::values).for_each(|count| all += *count);
        all
    }

    /// All that was read.
    #[must_use]
    pub fn read(&self) -> Count {
        let mut all = self.all_filtered();
        for count in [self.shipped, self.parts, self.blank] {
            all += count;
        }
        all
    }
}
