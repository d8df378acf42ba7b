//! Commands of root work as the owner of the data directory: a receiver that runs as that user could not read
//! files of root.

use std::fs::Metadata;

use crate::failure::Failure;

/// Variable with the user who called a command that continues as another one.
pub(crate) const CALLER: &str = "SIEM_SERVER_CALLER";

/// Starts this command again as the owner of the data directory, if root called it and does not own it.
#[cfg(unix)]
pub(crate) fn continue_as_owner(directory: &Metadata) -> Result<(), Failure> {
    use std::os::unix::process::CommandExt as _;

    match this_as_owner(directory, &[])? {
        // Returns only if it fails.
        Some(mut command) => Err(Failure::failed(command.exec())),
        None => Ok(()),
    }
}

/// Executes this command with further arguments as the owner of the data directory, and waits for it. Returns
/// `false` if this process has the right user itself.
#[cfg(unix)]
pub(crate) fn run_as_owner(directory: &Metadata, further: &[&str]) -> Result<bool, Failure> {
    let Some(mut command) = this_as_owner(directory, further)? else { return Ok(false) };
    match command.status() {
        Ok(status) if status.success() => Ok(true),
        // It said why.
        Ok(status) => Err(Failure::failed(std::io::Error::other(format!(
            "the same command as the owner of the data directory failed, {status}"
        )))),
        Err(error) => Err(Failure::failed(error)),
    }
}

#[cfg(unix)]
fn this_as_owner(
    directory: &Metadata,
    further: &[&str],
) -> Result<Option<std::process::Command>, Failure> {
    use std::{
        env,
        os::unix::{fs::MetadataExt as _, process::CommandExt as _},
        process::Command,
    };

    if !rustix::process::geteuid().is_root() || directory.uid() == 0 {
        return Ok(None);
    }
    let mut command = Command::new(env::current_exe().map_err(Failure::failed)?);
    command.args(env::args_os().skip(1)).args(further).env(CALLER, "root");
    command.uid(directory.uid()).gid(directory.gid());
    Ok(Some(command))
}

#[cfg(not(unix))]
pub(crate) fn continue_as_owner(_: &Metadata) -> Result<(), Failure> {
    Ok(())
}

#[cfg(not(unix))]
pub(crate) fn run_as_owner(_: &Metadata, _: &[&str]) -> Result<bool, Failure> {
    Ok(false)
}
