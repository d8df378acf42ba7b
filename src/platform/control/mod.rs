//! The way to the agent that runs, for its user only: a Unix socket, or a named pipe.
//!
//! Only the one that holds the lock of a state directory may bind there: what it finds in place was
//! left by a process that is gone.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use tokio::io::{AsyncRead, AsyncWrite};
#[cfg(unix)]
pub use unix::{EndpointGuard, Listener, bind, connect};
#[cfg(windows)]
pub use windows::{EndpointGuard, Listener, bind, connect};

/// A connection between the agent and one who asks.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Names a state directory in a place that others share.
fn name_of(state_dir: &std::path::Path) -> String {
    let hash = xxhash_rust::xxh3::xxh3_64(state_dir.as_os_str().as_encoded_bytes());
    format!("{hash:016x}")
}
