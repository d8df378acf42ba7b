//! Users and security descriptors of Windows.

use std::{ffi::c_void, io, ptr};

use windows_sys::Win32::{
    Foundation::{CloseHandle, HANDLE, LocalFree},
    Security::{
        Authorization::{
            ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW,
            SDDL_REVISION_1,
        },
        GetTokenInformation, PSECURITY_DESCRIPTOR, PSID, TOKEN_QUERY, TOKEN_USER, TokenUser,
    },
    System::Threading::{GetCurrentProcess, OpenProcessToken},
};

/// Security descriptor.
pub(super) struct Descriptor(PSECURITY_DESCRIPTOR);

// SAFETY: a block of memory that does not change.
#[expect(unsafe_code, reason = "the raw pointer is not `Send`")]
unsafe impl Send for Descriptor {}

impl Descriptor {
    /// Parses `rules` in the security descriptor definition language:
    /// <https://learn.microsoft.com/windows/win32/secauthz/security-descriptor-string-format>.
    ///
    /// # Errors
    /// The error of the system.
    #[expect(unsafe_code, reason = "a system call")]
    pub(super) fn new(rules: &str) -> io::Result<Self> {
        let rules: Vec<u16> = rules.encode_utf16().chain([0]).collect();
        let mut descriptor: PSECURITY_DESCRIPTOR = ptr::null_mut();
        // SAFETY: the text is terminated by a zero, and the descriptor is freed on drop.
        let made = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                rules.as_ptr(),
                SDDL_REVISION_1,
                &raw mut descriptor,
                ptr::null_mut(),
            )
        };
        if made == 0 { Err(io::Error::last_os_error()) } else { Ok(Self(descriptor)) }
    }

    /// Takes ownership of a descriptor allocated by the system.
    ///
    /// # Safety
    /// No other code may free it.
    #[expect(unsafe_code, reason = "the descriptor is freed on drop")]
    pub(super) unsafe fn from_raw(descriptor: PSECURITY_DESCRIPTOR) -> Self {
        Self(descriptor)
    }

    /// Returns the pointer for a system call; valid as long as `self`.
    pub(super) fn as_ptr(&self) -> PSECURITY_DESCRIPTOR {
        self.0
    }
}

impl Drop for Descriptor {
    #[expect(unsafe_code, reason = "a system call")]
    fn drop(&mut self) {
        // SAFETY: the system allocated it, and it is freed once.
        unsafe { LocalFree(self.0) };
    }
}

/// Returns the SID of the user that this process runs as.
///
/// # Errors
/// The error of the system.
#[expect(unsafe_code, reason = "system calls")]
pub(super) fn this_user() -> io::Result<String> {
    // Aligned for the data written to it; no SID of a user is longer.
    let mut buffer = [0_u64; 64];
    let mut token: HANDLE = ptr::null_mut();
    // SAFETY: the size of the buffer is correct, only data written by the call is read, and the
    // handle is closed.
    unsafe {
        if OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token) == 0 {
            return Err(io::Error::last_os_error());
        }
        let mut written = 0;
        let size = u32::try_from(size_of_val(&buffer)).unwrap_or_default();
        let at = buffer.as_mut_ptr().cast::<c_void>();
        let found = GetTokenInformation(token, TokenUser, at, size, &raw mut written);
        let failure = io::Error::last_os_error();
        CloseHandle(token);
        if found == 0 {
            return Err(failure);
        }
        name_of((*buffer.as_ptr().cast::<TOKEN_USER>()).User.Sid)
    }
}

/// Formats the SID of a user or group: `S-1-5-18`.
///
/// # Errors
/// The error of the system.
///
/// # Safety
/// `id` must be a valid SID.
#[expect(unsafe_code, reason = "system calls")]
pub(super) unsafe fn name_of(id: PSID) -> io::Result<String> {
    let mut text: *mut u16 = ptr::null_mut();
    // SAFETY: the caller guarantees a valid SID; the text ends with a zero and is freed.
    unsafe {
        if ConvertSidToStringSidW(id, &raw mut text) == 0 {
            return Err(io::Error::last_os_error());
        }
        let length = (0..).take_while(|at| *text.add(*at) != 0).count();
        let name = String::from_utf16_lossy(std::slice::from_raw_parts(text, length));
        LocalFree(text.cast::<c_void>());
        Ok(name)
    }
}
