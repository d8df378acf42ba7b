//! Named pipe that only its user may open.

use std::{ffi::c_void, io, mem, path::Path, time::Duration};

use tokio::net::windows::named_pipe::{ClientOptions, NamedPipeServer, ServerOptions};
use windows_sys::Win32::{Foundation::ERROR_PIPE_BUSY, Security::SECURITY_ATTRIBUTES};

use super::stream::{Stream, name_of};
use crate::platform::security::{Descriptor, this_user};

/// Number of attempts, and the pause between them, while the pipe is being created again.
const TRIES: u32 = 20;
const TRY: Duration = Duration::from_millis(50);

/// Accepts connections of clients.
pub struct Listener {
    name: String,
    security: Descriptor,
    /// Waits for the next client.
    next: NamedPipeServer,
}

/// The system removes a pipe with its process.
pub struct EndpointGuard(());

/// A named pipe needs no directory.
///
/// # Errors
/// None.
pub fn prepare_dir(_: &Path) -> io::Result<Option<std::path::PathBuf>> {
    Ok(None)
}

/// Starts to listen; the caller must hold the lock of `state_dir`.
///
/// # Errors
/// The error of the system: no client can connect, and the agent continues.
pub fn bind(state_dir: &Path) -> io::Result<(Listener, EndpointGuard)> {
    let name = pipe(state_dir);
    // Full access for this user, none for others.
    let security = Descriptor::new(&format!("D:P(A;;GA;;;{})", this_user()?))?;
    // A pipe of this name created by another user would receive our clients.
    let next = create(&security, &name, true)?;
    Ok((Listener { name, security, next }, EndpointGuard(())))
}

/// Connects to the agent that listens for `state_dir`.
///
/// # Errors
/// The error of the system: no agent listens.
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
    /// Waits for the next client. The system refuses other users.
    ///
    /// # Errors
    /// The error of the system; the next call may succeed.
    pub async fn accept(&mut self) -> io::Result<Box<dyn Stream>> {
        let connected = self.next.connect().await;
        // A pipe whose connection failed cannot be used again.
        let next = create(&self.security, &self.name, false)?;
        let stream = mem::replace(&mut self.next, next);
        connected?;
        Ok(Box::new(stream))
    }
}

fn pipe(state_dir: &Path) -> String {
    format!(r"\\.\pipe\ai-agent-{}", name_of(state_dir))
}

#[expect(unsafe_code, reason = "the call takes a pointer")]
fn create(security: &Descriptor, name: &str, first: bool) -> io::Result<NamedPipeServer> {
    let mut attributes = SECURITY_ATTRIBUTES {
        nLength: u32::try_from(size_of::<SECURITY_ATTRIBUTES>()).unwrap_or_default(),
        lpSecurityDescriptor: security.as_ptr(),
        bInheritHandle: 0,
    };
    let attributes: *mut SECURITY_ATTRIBUTES = &raw mut attributes;
    let mut options = ServerOptions::new();
    options.first_pipe_instance(first).reject_remote_clients(true);
    // SAFETY: the attributes are valid and outlive the call.
    unsafe { options.create_with_security_attributes_raw(name, attributes.cast::<c_void>()) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Wine lets every process open the same pipe twice.
    #[test_requires::requires(not_wine)]
    #[tokio::test]
    async fn a_second_listener_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (_listener, _place) = bind(dir.path()).unwrap();
        assert!(bind(dir.path()).is_err());
    }

    #[tokio::test]
    async fn user_connects_several_times() {
        let dir = tempfile::tempdir().unwrap();
        let (mut listener, _place) = bind(dir.path()).unwrap();
        for _ in 0..3 {
            let ask = async {
                let mut stream = connect(dir.path()).await.unwrap();
                stream.write_all(b"?").await.unwrap();
                stream.read_u8().await.unwrap()
            };
            let answer = async {
                let mut stream = listener.accept().await.unwrap();
                let request = stream.read_u8().await.unwrap();
                stream.write_u8(request + 1).await.unwrap();
                stream.flush().await.unwrap();
                // Kept open until the client has read it.
                drop(stream.read_u8().await);
            };
            assert_eq!(tokio::join!(ask, answer).0, b'@');
        }
        assert!(this_user().unwrap().starts_with("S-1-"));
    }
}
