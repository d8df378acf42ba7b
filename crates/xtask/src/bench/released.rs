//! The measured agent: the program of a release where this system can build it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Failure, dist::linux, sh};

/// Builds the agent: on Linux the static program of the release, elsewhere a release build.
pub(super) fn build() -> Result<PathBuf, Failure> {
    if cfg!(target_os = "linux") {
        println!("── building the agent as a static binary");
        return linux::program();
    }
    let [agent] = sh::build(["ai-agent"], ["ai-agent"], true)?;
    Ok(agent)
}

/// Returns the size of the static program in bytes; `None` on other systems than Linux.
pub(super) fn size(agent: &Path) -> Result<Option<u64>, Failure> {
    Ok(if cfg!(target_os = "linux") { Some(fs::metadata(agent)?.len()) } else { None })
}
