//! Random bytes of the system.

use std::io;

/// Returns random bytes that keys can be made from.
///
/// They come from the operating system itself: the generator of aws-lc measures jitter of the processor for 60 ms
/// when it is first used, which would delay the first start of an agent.
///
/// # Errors
/// The system gives none.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
