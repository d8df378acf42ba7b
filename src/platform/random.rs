//! Random bytes of the system.

use std::io;

/// Returns random bytes that keys can be made from.
///
/// # Errors
/// The system gives none.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("no random bytes"))?;
    Ok(bytes)
}
