//! Storage of batches: the trait, the store in files, and one in memory.

mod admission;
mod applier;
mod catalog;
mod checkpoint;
mod damage;
mod epoch;
mod epoch_lines;
mod erase;
mod erased_lines;
mod files;
mod format;
mod frame;
mod index_record;
mod journal;
mod memory;
mod migrate;
mod names;
mod note;
mod note_index;
mod range_read;
mod read_only;
mod recover;
mod release;
mod repeats;
mod starts;
mod storage;
mod verify;
mod writer;

#[cfg(test)]
mod device_tests;
#[cfg(test)]
mod life_tests;
#[cfg(test)]
mod suite;

use std::{fs, io, path::Path};

pub(crate) use damage::{damage, left_by_repairs};
pub(crate) use epoch_lines::EpochLines;
pub(crate) use erase::{LineToErase, OldPart, StoreHandle};
pub(crate) use files::StoreLock;
pub use files::{FileStore, FileStoreOptions, OpenError};
pub use format::{DataFormat, FormatError};
pub(crate) use format::{begin_restoration, end_restoration};
pub(crate) use journal::{DamagedPart, copy_with_blanks, damaged_parts};
pub use memory::MemoryStore;
pub use read_only::{ReadError, StoredLines, read_lines, read_stats};
pub(crate) use read_only::{ReadOnlyStore, read_epochs};
pub use release::open_lines;
pub use storage::{Answer, EpochKey, HeldPoint, Storage, StoreError, StoredBatch, StoredLine};
pub use verify::EntryProblem;
pub(crate) use verify::verify_epochs;

/// Copies an error, for several callers.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// Creates a directory and its parents with access for the owner only: it holds session records of
/// developers.
pub(crate) fn create_private(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

/// Makes the entries of a directory durable. Windows has no such call: its file systems do it on
/// their own.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(windows) {
        return Ok(());
    }
    fs::File::open(path)?.sync_all()
}
