//! Ships Claude Code session logs from a developer's machine to a SIEM, without losing a byte.
//!
//! How the parts fit: the command line ([`main()`]) reads the configuration ([`config`]) and builds
//! a pipeline ([`pipeline`]) out of stages ([`stages`]). A source follows files with [`tail`] and
//! hands over lines in chunks, each with the checkpoint that covers it. Filters and enrichers are
//! pure. What is kept is encoded into [`frame`]s and stored in the outbox, in one transaction with
//! the checkpoints. Sinks deliver batches out of the outbox, `http-siem` with [`siem`].
//!
//! The arrows point one way: command line → pipeline → stages → tail, with [`platform`] below all.
//!
//! A binary of your own, with a stage of your own, is three lines:
//! ```no_run
//! // use my_filters as _;
//! fn main() -> std::process::ExitCode {
//!     ai_agent::main()
//! }
//! ```

mod agent;
pub mod audit;
mod cli;
pub mod compliance;
pub mod config;
mod control;
pub mod event;
pub mod frame;
mod logging;
pub mod pipeline;
pub mod platform;
pub mod siem;
pub mod stages;
pub mod tail;
#[cfg(test)]
mod testing;
mod text;
pub mod units;

pub use ai_agent_stage;
pub use cli::{command_line, main};
pub use siem_protocol as protocol;
