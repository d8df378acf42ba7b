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

pub mod tail {
    pub use crate::tail::*;
}
