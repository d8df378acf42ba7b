//! Accounting of every byte of every file.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};
pub use siem_protocol::totals::{Count, Lost, Parts, Totals};

/// Accounting of the bytes of one generation, as [`Totals`] are for an epoch. Kept as long as the
/// file exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Share {
    /// Lines that became records, without their endings.
    pub shipped: Count,
    /// Parts of long lines.
    pub parts: Parts,
    /// Bytes of the line endings of both.
    pub endings: u64,
    /// Lines that filters have dropped.
    pub filtered: Count,
    /// Blank lines.
    pub blank: Count,
    /// Lines that were read again because bytes in or near them were altered; the others include
    /// them.
    pub altered: Count,
    /// Bytes that were lost before they were read.
    pub deleted_unread: Lost,
}

impl AddAssign for Share {
    fn add_assign(&mut self, other: Self) {
        self.shipped += other.shipped;
        self.parts += other.parts;
        self.endings = self.endings.saturating_add(other.endings);
        self.filtered += other.filtered;
        self.blank += other.blank;
        self.altered += other.altered;
        self.deleted_unread += other.deleted_unread;
    }
}

impl Share {
    /// Returns the lines and bytes that became entries, line endings included.
    #[must_use]
    pub fn sent(&self) -> Count {
        let Self { shipped, parts, endings, .. } = self;
        let mut sent = *shipped;
        sent += Count { lines: parts.lines, bytes: parts.bytes };
        sent += Count { lines: 0, bytes: *endings };
        sent
    }

    /// Returns the lines and bytes that were read, without those that were read again.
    #[must_use]
    pub fn read(&self) -> Count {
        let mut all = self.sent();
        all += self.filtered;
        all += self.blank;
        let Count { lines, bytes } = self.altered;
        Count { lines: all.lines.saturating_sub(lines), bytes: all.bytes.saturating_sub(bytes) }
    }

    /// Adds the share to `totals`, except for `filtered`, which [`Totals::drop`] has counted.
    pub fn add_to(&self, totals: &mut Totals) {
        let Self { shipped, parts, endings, filtered: _, blank, altered, deleted_unread } = self;
        totals.shipped += *shipped;
        totals.parts += *parts;
        totals.endings = totals.endings.saturating_add(*endings);
        totals.blank += *blank;
        totals.altered += *altered;
        totals.deleted_unread += *deleted_unread;
    }
}

impl From<&Totals> for Share {
    fn from(totals: &Totals) -> Self {
        Self {
            shipped: totals.shipped,
            parts: totals.parts,
            endings: totals.endings,
            filtered: totals.all_filtered(),
            blank: totals.blank,
            altered: totals.altered,
            deleted_unread: totals.deleted_unread,
        }
    }
}
