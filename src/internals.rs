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

pub mod tail {
    pub use crate::tail::*;
}
