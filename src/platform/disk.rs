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

/// Bytes that this user may still write on the volume of `folder`, quotas counted; `None` when the
/// system does not say.
#[cfg(windows)]
#[must_use]
#[expect(unsafe_code, reason = "no safe call asks for it")]
pub fn free_space(folder: &Path) -> Option<u64> {
    use std::{os::windows::ffi::OsStrExt as _, ptr};

    use windows_sys::Win32::Storage::FileSystem::GetDiskFreeSpaceExW;

    // A share is only found with a separator behind its name.
    let folder = folder.join("");
    let name: Vec<u16> = folder.as_os_str().encode_wide().chain([0]).collect();
    let mut free = 0;
    // SAFETY: the name ends in a zero, and both it and the number outlive the call. Null asks for
    // neither of the other numbers.
    let found = unsafe {
        GetDiskFreeSpaceExW(name.as_ptr(), &raw mut free, ptr::null_mut(), ptr::null_mut())
    };
    (found != 0).then_some(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_room_and_none_has_none() {
        let directory = tempfile::tempdir().unwrap();
        assert!(free_space(directory.path()).is_some_and(|free| free > 0));
        assert_eq!(free_space(&directory.path().join("none")), None);
    }
}
