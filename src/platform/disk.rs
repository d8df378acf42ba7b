//! Free space of a disk.

use std::path::Path;

/// Returns the bytes that an ordinary user may write on the file system of `folder`; `None` if
/// unknown.
#[cfg(unix)]
#[must_use]
pub fn free_space(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// Returns the bytes that this user may write on the volume of `folder`, including quotas; `None`
/// if unknown.
#[cfg(windows)]
#[must_use]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
pub fn free_space(folder: &Path) -> Option<u64> {
    use std::{os::windows::ffi::OsStrExt as _, ptr};

    use windows_sys::Win32::Storage::FileSystem::GetDiskFreeSpaceExW;

    // A network share is only found with a trailing separator.
    let folder = folder.join("");
    let name: Vec<u16> = folder.as_os_str().encode_wide().chain([0]).collect();
    let mut free = 0;
    // SAFETY: the name is terminated by a zero, and both it and the number outlive the call. The other
    // outputs may be null.
    let found = unsafe {
        GetDiskFreeSpaceExW(name.as_ptr(), &raw mut free, ptr::null_mut(), ptr::null_mut())
    };
    (found != 0).then_some(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_known_for_existing_directories_only() {
        let directory = tempfile::tempdir().unwrap();
        assert!(free_space(directory.path()).is_some_and(|free| free > 0));
        assert_eq!(free_space(&directory.path().join("none")), None);
    }
}
