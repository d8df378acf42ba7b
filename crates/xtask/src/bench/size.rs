//! Size of the agent as one static, stripped file.

use std::fs;

use crate::{Failure, dist::linux};

/// Returns the size of the released program; `None` if it cannot be built.
pub(super) fn measure() -> Result<Option<u64>, Failure> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        println!("skipped: the static binary is built on x86-64 Linux only");
        return Ok(None);
    }
    println!("── building the agent as a static binary");
    Ok(Some(fs::metadata(linux::program()?)?.len()))
}
