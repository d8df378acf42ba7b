//! What a disk has left.

use std::path::Path;

/// Bytes that an ordinary user may still write on the file system of `folder`; `None` when the
/// system does not say.
#[cfg(unix)]
#[must_use]
pub fn free_space(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// Not asked for yet: a full disk is noticed when a transaction fails.
#[cfg(not(unix))]
#[must_use]
pub fn free_space(_: &Path) -> Option<u64> {
    None
}
