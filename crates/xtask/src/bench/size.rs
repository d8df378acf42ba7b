//! The size of the agent as one file that runs on any Linux: static and stripped.

use std::fs;

use crate::{Failure, dist::linux};

/// The bytes of the program that is given away; none where it can't be built.
pub(super) fn measure() -> Result<Option<u64>, Failure> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        println!("skipped: the static binary is built on x86-64 Linux only");
        return Ok(None);
    }
    println!("── building the agent as a static binary");
    Ok(Some(fs::metadata(linux::program()?)?.len()))
}
