//! Local connection to a running agent, for its user only: a Unix socket or a named pipe.
//!
//! Only the process that holds the lock of a state directory may bind there: a socket that exists
//! was left by a process that has ended.

mod stream;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

pub use stream::Stream;
#[cfg(unix)]
pub use unix::{EndpointGuard, Listener, bind, connect, prepare_dir};
#[cfg(windows)]
pub use windows::{EndpointGuard, Listener, bind, connect, prepare_dir};
