//! The redb file of the store: how it is opened, and when it is worth compacting.

use std::{path::Path, time::Duration};

use redb::{Builder, Database, DatabaseError, StorageError, backends::FileBackend};

use crate::platform::{
    file::{self, FileId},
    secure_file,
};

/// Size of redb's page cache in bytes.
pub(super) const CACHE: usize = 6 << 20;

/// Opens the store at start and again after an error. Returns the id of the file, if it is one.
pub(in crate::pipeline) type Opener =
    Box<dyn Fn() -> Result<(Database, Option<FileId>), DatabaseError> + Send + Sync>;

/// Returns the options with which a store is opened.
pub(in crate::pipeline) fn builder() -> Builder {
    let mut builder = Builder::new();
    // Without the check, redb trusts a file that was closed cleanly, and panics on damaged pages.
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder
}

/// Returns an opener for the file at `path`.
pub(super) fn file_opener(path: &Path) -> Opener {
    let file = path.to_owned();
    Box::new(move || {
        // Created here and not by redb, so that only its owner can read it.
        let opened = secure_file::open(secure_file::options().read(true), &file);
        let opened = opened.map_err(StorageError::Io)?;
        let id = file::Stamp::of(&opened).map_err(StorageError::Io)?.id;
        Ok((builder().create_with_backend(FileBackend::new(opened)?)?, id))
    })
}

/// Identity and state of the store's file.
#[derive(Debug, Default)]
pub(super) struct StoreFile {
    /// Id of the open file; `None` for a store in memory.
    pub(super) id: Option<FileId>,
    /// Uptime of the last compaction, and the size of the file after it.
    pub(super) compacted: Option<(Duration, u64)>,
}

impl StoreFile {
    /// Returns true if compaction is due for a file of `size` bytes whose blocks occupy `stored` bytes.
    ///
    /// Compaction blocks readers and writers. A store with entries is compacted only if that frees
    /// much, moves little, and did not happen within the last hour. Other rows stay, so the file
    /// must have doubled since the last compaction.
    pub(super) fn is_oversized(&self, size: u64, stored: u64, now: Duration) -> bool {
        const MIN_SIZE_DRAINED: u64 = 16 << 20;
        const MIN_SIZE_IN_USE: u64 = 64 << 20;
        const MAX_MOVED: u64 = 256 << 20;
        const MIN_INTERVAL: Duration = Duration::from_secs(3600);

        let has_grown = self.compacted.is_none_or(|(_, least)| size / 2 >= least);
        if stored == 0 {
            return size >= MIN_SIZE_DRAINED && has_grown;
        }
        let is_due = self.compacted.is_none_or(|(at, _)| now.saturating_sub(at) >= MIN_INTERVAL);
        let is_sparse = size >= MIN_SIZE_IN_USE && stored <= size / 4 && stored <= MAX_MOVED;
        is_sparse && has_grown && is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn file_is_oversized_only_when_compaction_is_worth_it() {
        let at = |minutes: u64| Duration::from_secs(60 * minutes);
        let never = StoreFile::default();
        let table = [
            ("drained", 16, 0, true),
            ("drained and small", 15, 0, false),
            ("few entries in a large file", 64, 16, true),
            ("few entries in a file that is not large", 63, 1, false),
            ("too many entries", 64, 17, false),
            ("too much to move", 10_000, 257, false),
        ];
        for (what, size, stored, expected) in table {
            assert_eq!(never.is_oversized(size * MB, stored * MB, at(0)), expected, "{what}");
        }
        let once = StoreFile { id: None, compacted: Some((at(100), 40 * MB)) };
        assert!(!once.is_oversized(80 * MB, MB, at(159)), "within the hour");
        assert!(once.is_oversized(80 * MB, MB, at(160)));
        assert!(!once.is_oversized(79 * MB, MB, at(500)), "has not doubled");
        assert!(!once.is_oversized(79 * MB, 0, at(500)), "drained, but has not doubled");
        assert!(once.is_oversized(80 * MB, 0, at(101)), "drained: no interval applies");
    }
}
