//! Local connection to a running agent, for its user only: a Unix socket or a named pipe.
//!
//! Only the process that holds the lock of a state directory may bind there: a socket that exists
//! was left by a process that has ended.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use tokio::io::{AsyncRead, AsyncWrite};
#[cfg(unix)]
pub use unix::{EndpointGuard, Listener, bind, connect};
#[cfg(windows)]
pub use windows::{EndpointGuard, Listener, bind, connect};

/// Connection between the agent and a client.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Returns a name for a state directory that is unique in a shared directory.
fn name_of(state_dir: &std::path::Path) -> String {
    let hash = xxhash_rust::xxh3::xxh3_64(state_dir.as_os_str().as_encoded_bytes());
    format!("{hash:016x}")
}
