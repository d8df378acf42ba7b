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
    allow(unreachable_pub, reason = "public items are reachable with the feature `internals`")
)]

mod agent;
mod cli;
mod compliance;
mod config;
mod control;
mod event;
mod frame;
#[cfg(feature = "internals")]
pub mod internals;
mod logging;
mod pipeline;
mod platform;
mod siem;
mod stages;
mod tail;
#[cfg(test)]
mod test_context;
mod text;
mod update;
mod version;

pub use cli::{command_line, main, main_of};
