//! A named pipe that nobody but its user may open.

use std::{ffi::c_void, io, mem, path::Path, ptr, time::Duration};

use tokio::net::windows::named_pipe::{ClientOptions, NamedPipeServer, ServerOptions};
use windows_sys::Win32::{
    Foundation::{CloseHandle, ERROR_PIPE_BUSY, HANDLE, LocalFree},
    Security::{
        Authorization::{
            ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW,
            SDDL_REVISION_1,
        },
        GetTokenInformation, PSECURITY_DESCRIPTOR, SECURITY_ATTRIBUTES, TOKEN_QUERY, TOKEN_USER,
        TokenUser,
    },
    System::Threading::{GetCurrentProcess, OpenProcessToken},
};

use super::{Stream, name_of};

/// How often, and how long between, a pipe is tried again that is being made anew just now.
const TRIES: u32 = 20;
const TRY: Duration = Duration::from_millis(50);

/// Takes those who want to ask.
pub struct Listener {
    name: String,
    security: Security,
    /// Waits for the next.
    next: NamedPipeServer,
}

/// A pipe goes with its process.
pub struct Place(());

/// Begins to listen, for whoever holds the lock of `state_dir`.
///
/// # Errors
/// What the system says: nobody can ask then, and all else goes on.
pub fn bind(state_dir: &Path) -> io::Result<(Listener, Place)> {
    let (name, security) = (pipe(state_dir), Security::for_this_user()?);
    // Somebody else who has made one of this name would be asked in our place.
    let next = security.create(&name, true)?;
    Ok((Listener { name, security, next }, Place(())))
}

/// Goes to the agent that listens for `state_dir`.
///
/// # Errors
/// What the system says: nobody listens there.
pub async fn connect(state_dir: &Path) -> io::Result<Box<dyn Stream>> {
    let name = pipe(state_dir);
    let mut tries = 0;
    loop {
        match ClientOptions::new().open(&name) {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error)
                if error.raw_os_error() == Some(ERROR_PIPE_BUSY.cast_signed()) && tries < TRIES =>
            {
                tries += 1;
                tokio::time::sleep(TRY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

impl Listener {
    /// Waits for the next who wants to ask. The system turns other users away.
    ///
    /// # Errors
    /// What the system says: the next call may have better luck.
    pub async fn accept(&mut self) -> io::Result<Box<dyn Stream>> {
        let connected = self.next.connect().await;
        // One that failed is good for nothing any more.
        let next = self.security.create(&self.name, false)?;
        let stream = mem::replace(&mut self.next, next);
        connected?;
        Ok(Box::new(stream))
    }
}

fn pipe(state_dir: &Path) -> String {
    format!(r"\\.\pipe\ai-agent-{}", name_of(state_dir))
}

/// Says that this user may do everything, and nobody else anything.
struct Security(PSECURITY_DESCRIPTOR);

// SAFETY: a block of memory that nobody changes.
#[expect(unsafe_code, reason = "the system's own type says nothing of threads")]
unsafe impl Send for Security {}

impl Security {
    #[expect(unsafe_code, reason = "calls of the system")]
    fn for_this_user() -> io::Result<Self> {
        let rule = format!("D:P(A;;GA;;;{})", this_user()?);
        let rule: Vec<u16> = rule.encode_utf16().chain([0]).collect();
        let mut descriptor: PSECURITY_DESCRIPTOR = ptr::null_mut();
        // SAFETY: the text ends with a zero, and the descriptor is freed when this is dropped.
        let made = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                rule.as_ptr(),
                SDDL_REVISION_1,
                &raw mut descriptor,
                ptr::null_mut(),
            )
        };
        if made == 0 { Err(io::Error::last_os_error()) } else { Ok(Self(descriptor)) }
    }

    #[expect(unsafe_code, reason = "the call takes a pointer")]
    fn create(&self, name: &str, first: bool) -> io::Result<NamedPipeServer> {
        let mut attributes = SECURITY_ATTRIBUTES {
            nLength: u32::try_from(size_of::<SECURITY_ATTRIBUTES>()).unwrap_or_default(),
            lpSecurityDescriptor: self.0,
            bInheritHandle: 0,
        };
        let attributes: *mut SECURITY_ATTRIBUTES = &raw mut attributes;
        let mut options = ServerOptions::new();
        options.first_pipe_instance(first).reject_remote_clients(true);
        // SAFETY: the attributes are whole, and outlive the call.
        unsafe { options.create_with_security_attributes_raw(name, attributes.cast::<c_void>()) }
    }
}

impl Drop for Security {
    #[expect(unsafe_code, reason = "a call of the system")]
    fn drop(&mut self) {
        // SAFETY: the system made it, and nobody else has it.
        unsafe { LocalFree(self.0) };
    }
}

/// The name of the user that this process runs as, as rules write it.
#[expect(unsafe_code, reason = "calls of the system")]
fn this_user() -> io::Result<String> {
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
        let user = &*buffer.as_ptr().cast::<TOKEN_USER>();
        let mut text: *mut u16 = ptr::null_mut();
        if ConvertSidToStringSidW(user.User.Sid, &raw mut text) == 0 {
            return Err(io::Error::last_os_error());
        }
        let length = (0..).take_while(|at| *text.add(*at) != 0).count();
        let name = String::from_utf16_lossy(std::slice::from_raw_parts(text, length));
        LocalFree(text.cast::<c_void>());
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn the_user_may_ask_again_and_again_and_there_is_one_that_answers() {
        let dir = tempfile::tempdir().unwrap();
        let (mut listener, _place) = bind(dir.path()).unwrap();
        if !crate::platform::is_wine("lets anybody open the same pipe twice") {
            assert!(bind(dir.path()).is_err(), "there is one already");
        }
        for _ in 0..3 {
            let ask = async {
                let mut stream = connect(dir.path()).await.unwrap();
                stream.write_all(b"?").await.unwrap();
                stream.read_u8().await.unwrap()
            };
            let answer = async {
                let mut stream = listener.accept().await.unwrap();
                let asked = stream.read_u8().await.unwrap();
                stream.write_u8(asked + 1).await.unwrap();
                stream.flush().await.unwrap();
                // Kept until the other has read it.
                drop(stream.read_u8().await);
            };
            assert_eq!(tokio::join!(ask, answer).0, b'@');
        }
        assert!(this_user().unwrap().starts_with("S-1-"));
    }
}
