//! Functions of the fuzz targets: one per file, independent of the fuzzer.
//!
//! They have two callers. The targets in `fuzz_targets` run them under cargo-fuzz, which needs
//! nightly; `tests/it/fuzz_corpora.rs` of the agent includes this file by its path and replays the
//! corpora on stable.
#![allow(clippy::unwrap_used, reason = "a target that fails ends there")]

pub mod activity;
pub mod audit;
pub mod config;
pub mod frame;
pub mod ingest;
pub mod json;
pub mod managed;
pub mod reader;
pub mod retry_after;
pub mod tool_call;
pub mod trust;
pub mod update;

/// A target: accepts any bytes, and panics if a check fails.
pub type Target = fn(&[u8]);

/// All targets, with the names of their corpora.
pub const TARGETS: [(&str, Target); 12] = [
    ("activity", activity::run),
    ("audit", audit::run),
    ("config", config::run),
    ("frame", frame::run),
    ("ingest", ingest::run),
    ("json", json::run),
    ("managed", managed::run),
    ("reader", reader::run),
    ("retry_after", retry_after::run),
    ("tool_call", tool_call::run),
    ("trust", trust::run),
    ("update", update::run),
];
