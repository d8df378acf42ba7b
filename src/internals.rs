//! Modules of the library for benches, fuzz targets and integration tests. Not a stable interface.

#![expect(missing_docs, reason = "each module has the docs of the module that it re-exports")]

pub use siem_protocol as protocol;

pub mod compliance {
    pub use crate::compliance::*;
}

pub mod config {
    pub use crate::config::*;
}

pub mod event {
    pub use crate::event::*;
}

pub mod frame {
    pub use crate::frame::*;
}

pub mod pipeline {
    pub use crate::pipeline::*;
}

pub mod platform {
    pub use crate::platform::*;
}

pub mod siem {
    pub use crate::siem::*;
}

pub mod stages {
    pub use crate::stages::*;
}

/// Puts the program `staged` into the place of `program`, as an update does, without a supervisor.
///
/// # Errors
/// Description of the failure; `program` is unchanged.
pub fn install_update(
    program: &std::path::Path,
    staged: &std::path::Path,
    from: &str,
    to: &str,
) -> Result<(), String> {
    crate::update::swap::install_for_test(program, staged, from, to)
}

/// Runs the guard of an update, as the first act of an agent of `version`. Returns the exit code of a process
/// that has nothing more to do.
#[must_use]
pub fn enter_update_guard(version: &'static str) -> Option<std::process::ExitCode> {
    crate::version::set(version);
    crate::update::entry::enter(std::env::args_os())
}

/// Returns whether the guard has counted a start of this program, which is not confirmed yet.
#[must_use]
pub fn is_unconfirmed_program() -> bool {
    crate::update::guard::is_unconfirmed()
}

/// Asks the previous program why this one has failed to start, as an agent does that is not confirmed.
pub fn ask_previous_program() {
    crate::update::guard::ask_previous(None);
}

pub mod tail {
    pub use crate::tail::*;
}
