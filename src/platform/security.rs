//! Users and rules of access, as Windows writes them.

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

/// Says who may do what.
pub(super) struct Descriptor(PSECURITY_DESCRIPTOR);

// SAFETY: a block of memory that nobody changes.
#[expect(unsafe_code, reason = "the system's own type says nothing of threads")]
unsafe impl Send for Descriptor {}

impl Descriptor {
    /// What `rules` say, in the system's own language for them:
    /// <https://learn.microsoft.com/windows/win32/secauthz/security-descriptor-string-format>.
    ///
    /// # Errors
    /// What the system says.
    #[expect(unsafe_code, reason = "a call of the system")]
    pub(super) fn new(rules: &str) -> io::Result<Self> {
        let rules: Vec<u16> = rules.encode_utf16().chain([0]).collect();
        let mut descriptor: PSECURITY_DESCRIPTOR = ptr::null_mut();
        // SAFETY: the text ends with a zero, and the descriptor is freed when this is dropped.
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

    /// Takes what the system made.
    ///
    /// # Safety
    /// Nobody else frees it.
    #[expect(unsafe_code, reason = "it is freed")]
    pub(super) unsafe fn from_raw(descriptor: PSECURITY_DESCRIPTOR) -> Self {
        Self(descriptor)
    }

    /// For a call of the system: good as long as this is.
    pub(super) fn as_ptr(&self) -> PSECURITY_DESCRIPTOR {
        self.0
    }
}

impl Drop for Descriptor {
    #[expect(unsafe_code, reason = "a call of the system")]
    fn drop(&mut self) {
        // SAFETY: the system made it, and nobody else has it.
        unsafe { LocalFree(self.0) };
    }
}

/// The name of the user that this process runs as, as rules write it.
///
/// # Errors
/// What the system says.
#[expect(unsafe_code, reason = "calls of the system")]
pub(super) fn this_user() -> io::Result<String> {
    // Aligned for what is written there; no user's id is longer.
    let mut buffer = [0_u64; 64];
    let mut token: HANDLE = ptr::null_mut();
    // SAFETY: the buffer is as long as it is said to be, what is read from it was written by the
    // call before, and what the system made is given back.
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

/// The name of a user or a group, as rules write it: `S-1-5-18`.
///
/// # Errors
/// What the system says.
///
/// # Safety
/// `id` is one, whole.
#[expect(unsafe_code, reason = "calls of the system")]
pub(super) unsafe fn name_of(id: PSID) -> io::Result<String> {
    let mut text: *mut u16 = ptr::null_mut();
    // SAFETY: the caller says so; the text ends with a zero, and is given back.
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
