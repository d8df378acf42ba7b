//! Faults of the file system for tests, injected into calls of the current thread and of helper
//! threads that run its calls.

use std::{
    cell::RefCell,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
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

/// Calls that fail or hang: those on a path and on everything below it.
#[derive(Clone)]
pub(super) struct Fault(Arc<(Mutex<FaultState>, Condvar)>);

struct FaultState {
    call: Call,
    path: PathBuf,
    /// Files at and below the path.
    files: Vec<FileId>,
    /// Error of the calls; `None` if they hang.
    errno: Option<i32>,
    /// Number of calls before the first that fails.
    skip: usize,
    /// Number of calls that still fail.
    left: usize,
    failed: usize,
    /// Number of calls that hang at present.
    hanging: usize,
}

impl Fault {
    fn state(&self) -> MutexGuard<'_, FaultState> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Device and inode.
type FileId = (u64, u64);

fn id_of(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

thread_local! {
    static FAULT: RefCell<Option<Fault>> = const { RefCell::new(None) };
}

/// Returns the fault of this thread, for a helper thread.
pub(super) fn current() -> Option<Fault> {
    FAULT.with_borrow(Clone::clone)
}

/// Runs `call` with a fault of another thread.
pub(super) fn with<T>(fault: Option<Fault>, call: impl FnOnce() -> T) -> T {
    FAULT.set(fault);
    let result = call();
    FAULT.take();
    result
}

/// Makes the next `times` calls on `path` and everything below it fail with `errno`, instead of
/// those of an earlier call.
pub(crate) fn inject(call: Call, path: &Path, errno: i32, times: usize) {
    set(call, path, Some(errno), 0, times);
}

/// Makes all calls on `path` and everything below it hang until [`end`] is called.
pub(crate) fn hang(call: Call, path: &Path) {
    hang_after(call, path, 0);
}

/// Same as [`hang`], for the calls after the next `skip` ones.
pub(crate) fn hang_after(call: Call, path: &Path, skip: usize) {
    set(call, path, None, skip, usize::MAX);
}

fn set(call: Call, path: &Path, errno: Option<i32>, skip: usize, left: usize) {
    let mut files = Vec::new();
    add_files(path, &mut files);
    let path = path.to_owned();
    let state = FaultState { call, path, files, errno, skip, left, failed: 0, hanging: 0 };
    FAULT.set(Some(Fault(Arc::new((Mutex::new(state), Condvar::new())))));
}

/// Returns true if calls hang on some path: files that are opened then count as remote.
pub(super) fn is_hang() -> bool {
    current().is_some_and(|fault| fault.state().errno.is_none())
}

/// Returns the number of calls that hang at present.
pub(crate) fn hanging() -> usize {
    current().map_or(0, |fault| fault.state().hanging)
}

/// Ends the fault; returns the number of calls that failed or hung.
pub(crate) fn end() -> usize {
    let Some(fault) = FAULT.take() else { return 0 };
    let mut state = fault.state();
    state.left = 0;
    fault.0.1.notify_all();
    state.failed
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
    if current().is_none_or(|fault| fault.state().call != call) {
        return Ok(());
    }
    let id = id_of(&file.metadata()?);
    check_where(call, |fault| fault.files.contains(&id))
}

fn check_where(call: Call, is_affected: impl FnOnce(&FaultState) -> bool) -> io::Result<()> {
    let Some(fault) = current() else { return Ok(()) };
    let mut state = fault.state();
    if state.call != call || state.left == 0 || !is_affected(&state) {
        return Ok(());
    }
    if state.skip > 0 {
        state.skip -= 1;
        return Ok(());
    }
    state.failed += 1;
    if let Some(errno) = state.errno {
        state.left -= 1;
        return Err(io::Error::from_raw_os_error(errno));
    }
    state.hanging += 1;
    while state.left > 0 {
        state = fault.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    state.hanging -= 1;
    Ok(())
}
