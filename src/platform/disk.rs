//! Free space of a disk, and whether a file is on one.

use std::{fs::File, path::Path};

/// Returns true if `file` is known to be on a disk or in the memory of this machine: reading it does
/// not depend on another machine or process.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[must_use]
pub(super) fn is_local(file: &File) -> bool {
    /// Magic numbers of ext4, XFS, Btrfs, tmpfs, overlayfs, F2FS, ZFS, Bcachefs, ramfs, FAT, exFAT and
    /// eCryptfs: <https://man7.org/linux/man-pages/man2/statfs.2.html>.
    const LOCAL: [u32; 12] = [
        0xef53,
        0x5846_5342,
        0x9123_683e,
        0x0102_1994,
        0x794c_7630,
        0xf2f5_2010,
        0x2fc1_2fc1,
        0xca45_1a4e,
        0x8584_58f6,
        0x4d44,
        0x2011_bab0,
        0xf15f,
    ];

    // Some architectures have the number as a signed one.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "32 bits are used")]
    rustix::fs::fstatfs(file).is_ok_and(|found| LOCAL.contains(&(found.f_type as u32)))
}

/// Returns true if `file` is known to be on a disk or in the memory of this machine: reading it does
/// not depend on another machine or process.
#[cfg(target_os = "macos")]
#[must_use]
pub(super) fn is_local(file: &File) -> bool {
    const MNT_LOCAL: u32 = 0x1000;

    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_flags & MNT_LOCAL != 0)
}

/// Returns true if `file` is known to be on a disk or in the memory of this machine: reading it does
/// not depend on another machine or process.
#[cfg(windows)]
#[must_use]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
pub(super) fn is_local(file: &File) -> bool {
    use std::{mem, os::windows::io::AsRawHandle as _};

    use windows_sys::Win32::Storage::FileSystem::{
        FILE_REMOTE_PROTOCOL_INFO, FileRemoteProtocolInfo, GetFileInformationByHandleEx,
    };

    let size = u32::try_from(size_of::<FILE_REMOTE_PROTOCOL_INFO>()).unwrap_or_default();
    // SAFETY: the structure consists of numbers, for which zero is valid.
    let mut info: FILE_REMOTE_PROTOCOL_INFO = unsafe { mem::zeroed() };
    // SAFETY: the handle is open, and the structure has the given size and outlives the call.
    let is_remote = unsafe {
        GetFileInformationByHandleEx(
            file.as_raw_handle(),
            FileRemoteProtocolInfo,
            (&raw mut info).cast(),
            size,
        )
    };
    // Fails for a file that is not on a share.
    is_remote == 0
}

/// Returns true if `file` is known to be on a disk or in the memory of this machine: here it is not.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos", windows)))]
#[must_use]
pub(super) fn is_local(_: &File) -> bool {
    false
}

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

    #[cfg(target_os = "linux")]
    #[test]
    fn file_of_the_kernel_is_not_on_a_disk() {
        assert!(is_local(&tempfile::tempfile().unwrap()));
        assert!(!is_local(&File::open("/proc/version").unwrap()));
    }

    #[test]
    fn free_space_is_known_for_existing_directories_only() {
        let directory = tempfile::tempdir().unwrap();
        assert!(free_space(directory.path()).is_some_and(|free| free > 0));
        assert_eq!(free_space(&directory.path().join("none")), None);
    }
}
