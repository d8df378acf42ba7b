//! Faults of the file system for tests, injected into calls of the current thread.

use std::{
    cell::RefCell,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Kind of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Opening a file or a directory.
    Open,
    /// Reading the content of an open file.
    Read,
    /// Reading metadata, of a path or an open file.
    Stat,
    /// Reading the next entry of an open directory.
    List,
}

impl Call {
    pub(crate) const ALL: [Self; 4] = [Self::Open, Self::Read, Self::Stat, Self::List];
}

/// Calls that fail: those on a path and on everything below it.
struct Fault {
    call: Call,
    path: PathBuf,
    /// Files at and below the path.
    files: Vec<FileId>,
    errno: i32,
    /// Number of calls that still fail.
    left: usize,
    failed: usize,
}

/// Device and inode.
type FileId = (u64, u64);

fn id_of(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

thread_local! {
    static FAULT: RefCell<Option<Fault>> = const { RefCell::new(None) };
}

/// Makes the next `times` calls on `path` and everything below it fail with `errno`, instead of
/// those of an earlier call.
pub(crate) fn inject(call: Call, path: &Path, errno: i32, times: usize) {
    let mut files = Vec::new();
    add_files(path, &mut files);
    let fault = Fault { call, path: path.to_owned(), files, errno, left: times, failed: 0 };
    FAULT.set(Some(fault));
}

/// Ends the fault; returns the number of calls that failed.
pub(crate) fn end() -> usize {
    FAULT.take().map_or(0, |fault| fault.failed)
}

fn add_files(path: &Path, files: &mut Vec<FileId>) {
    files.extend(fs::metadata(path).map(|metadata| id_of(&metadata)));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        add_files(&entry.path(), files);
    }
}

/// Fails if a fault is injected for a call on `path`.
pub(super) fn check(call: Call, path: &Path) -> io::Result<()> {
    check_where(call, |fault| path.starts_with(&fault.path))
}

/// Fails if a fault is injected for a call on an open file.
pub(super) fn check_open(call: Call, file: &File) -> io::Result<()> {
    if FAULT.with_borrow(|fault| fault.as_ref().is_none_or(|fault| fault.call != call)) {
        return Ok(());
    }
    let id = id_of(&file.metadata()?);
    check_where(call, |fault| fault.files.contains(&id))
}

fn check_where(call: Call, is_affected: impl FnOnce(&Fault) -> bool) -> io::Result<()> {
    FAULT.with_borrow_mut(|fault| match fault {
        Some(fault) if fault.call == call && fault.left > 0 && is_affected(fault) => {
            fault.left -= 1;
            fault.failed += 1;
            Err(io::Error::from_raw_os_error(fault.errno))
        }
        _ => Ok(()),
    })
}
