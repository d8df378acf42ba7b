//! Commands of root work as the owner of the data directory: a receiver that runs as that user could not read
//! files of root.

use std::fs::Metadata;

use crate::failure::Failure;

/// Starts this command again as the owner of the data directory, if root called it and does not own it.
#[cfg(unix)]
pub(crate) fn continue_as_owner(directory: &Metadata) -> Result<(), Failure> {
    use std::{
        env,
        os::unix::{fs::MetadataExt as _, process::CommandExt as _},
        process::Command,
    };

    if !rustix::process::geteuid().is_root() || directory.uid() == 0 {
        return Ok(());
    }
    let program = env::current_exe().map_err(Failure::failed)?;
    let mut command = Command::new(program);
    command.args(env::args_os().skip(1)).uid(directory.uid()).gid(directory.gid());
    // Returns only if it fails.
    Err(Failure::failed(command.exec()))
}

#[cfg(not(unix))]
pub(crate) fn continue_as_owner(_: &Metadata) -> Result<(), Failure> {
    Ok(())
}
