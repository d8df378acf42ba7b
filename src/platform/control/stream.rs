//! Connection between the agent and a client, and the name of its endpoint.

use tokio::io::{AsyncRead, AsyncWrite};

/// Connection between the agent and a client.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Returns a name for a state directory that is unique in a shared directory.
pub(super) fn name_of(state_dir: &std::path::Path) -> String {
    let hash = xxhash_rust::xxh3::xxh3_64(state_dir.as_os_str().as_encoded_bytes());
    format!("{hash:016x}")
}
