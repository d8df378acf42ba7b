//! Ships Claude Code session logs from a developer's machine to a SIEM, without losing a byte.
//!
//! A binary with additional stages is three lines; the stages are written with the crate
//! `ai-agent-stage`:
//! ```no_run
//! // use my_filters as _;
//! fn main() -> std::process::ExitCode {
//!     ai_agent::main()
//! }
//! ```
//!
//! Data flow: the command line ([`main()`]) loads the configuration (`config`) and builds a pipeline
//! (`pipeline`) of stages (`stages`). A source follows files with `tail` and hands over lines in
//! chunks, each with the checkpoint that covers it. Filters and enrichers are pure. Kept records are
//! encoded into `frame`s and stored in the outbox, in one transaction with the checkpoints. Sinks
//! deliver batches out of the outbox, `http-siem` with `siem`.
//!
//! Dependencies point one way: cli → control → agent → pipeline → stages → tail → platform.

#![cfg_attr(
    not(feature = "internals"),
    allow(
        dead_code,
        unreachable_pub,
        unused_imports,
        reason = "public and used by benches, fuzz targets and tests with the feature `internals`"
    )
)]

mod agent;
mod cli;
#[cfg(not(feature = "internals"))]
mod compliance;
#[cfg(feature = "internals")]
pub mod compliance;
#[cfg(not(feature = "internals"))]
mod config;
#[cfg(feature = "internals")]
pub mod config;
mod control;
#[cfg(not(feature = "internals"))]
mod event;
#[cfg(feature = "internals")]
pub mod event;
#[cfg(not(feature = "internals"))]
mod frame;
#[cfg(feature = "internals")]
pub mod frame;
mod logging;
#[cfg(not(feature = "internals"))]
mod pipeline;
#[cfg(feature = "internals")]
pub mod pipeline;
#[cfg(not(feature = "internals"))]
mod platform;
#[cfg(feature = "internals")]
pub mod platform;
#[cfg(not(feature = "internals"))]
mod siem;
#[cfg(feature = "internals")]
pub mod siem;
#[cfg(not(feature = "internals"))]
mod stages;
#[cfg(feature = "internals")]
pub mod stages;
#[cfg(not(feature = "internals"))]
mod tail;
#[cfg(feature = "internals")]
pub mod tail;
#[cfg(test)]
mod test_context;
mod text;
#[cfg(not(feature = "internals"))]
mod units;
#[cfg(feature = "internals")]
pub mod units;

pub use cli::{command_line, main};
#[cfg(feature = "internals")]
pub use siem_protocol as protocol;
