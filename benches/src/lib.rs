//! Workloads of the benches: deterministic input, processed with the code of the agent.
//!
//! The criterion benches time the workloads; the binary `instructions` runs them for callgrind.
#![allow(clippy::unwrap_used, reason = "a bench that fails ends there")]

pub mod frames;
pub mod records;
pub mod session;
pub mod tree;
