//! Installation of a verified release.

use std::{io, path::Path};

use siem_protocol::update::UpdateRelease;

use super::{
    error::UpdateError,
    program_files::UpdateLock,
    self_test::{remove_copies, self_test},
    steps,
    swap::{self, NewProgram},
};
use crate::{
    platform::{Timestamp, own_program},
    version::version,
};

/// Tests a verified file with the configuration of this machine, and puts it into the place of the
/// program. From the next start on it runs, and must prove that it makes progress. `supervise` starts the
/// process that brings the previous program back if it does not even start.
///
/// # Errors
/// [`UpdateError`]; the program is unchanged.
pub(crate) fn install(
    lock: &UpdateLock,
    staged: &Path,
    release: &UpdateRelease,
    config: Option<&Path>,
    at: Timestamp,
    supervise: &dyn Fn() -> io::Result<()>,
) -> Result<(), UpdateError> {
    let to = &*release.version.to_string();
    own_program::make_executable(staged)
        .map_err(|error| UpdateError::file("cannot make the download executable", &error))?;
    let tested = self_test(staged, to, config);
    // One that hangs or crashes leaves its own.
    staged.parent().into_iter().for_each(remove_copies);
    tested?;
    let new = NewProgram { staged, sha256: release.sha256, from: version(), to, at };
    swap::install(lock, &new, supervise, &steps::reach)?;
    Ok(())
}
