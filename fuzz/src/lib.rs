//! What each fuzz target does with its input: one function a file, without the fuzzer.
//!
//! Two callers share them. The targets in `fuzz_targets` run them under cargo-fuzz, which needs
//! nightly; `tests/it/fuzz_corpora.rs` of the agent includes this file by its path and replays the
//! corpora on stable. So nothing here depends on the fuzzer, and only public items are used.
#![allow(clippy::unwrap_used, reason = "a target that fails ends there")]

pub mod audit;
pub mod config;
pub mod frame;
pub mod ingest;
pub mod json;
pub mod managed;
pub mod reader;
pub mod retry_after;
pub mod tool_call;

/// A target: takes any bytes, and panics when a promise does not hold.
pub type Target = fn(&[u8]);

/// All targets, by the names of their corpora.
pub const TARGETS: [(&str, Target); 9] = [
    ("audit", audit::run),
    ("config", config::run),
    ("frame", frame::run),
    ("ingest", ingest::run),
    ("json", json::run),
    ("managed", managed::run),
    ("reader", reader::run),
    ("retry_after", retry_after::run),
    ("tool_call", tool_call::run),
];
