//! Work for benches: the same bytes each time, by way of what the agent does with them.
//!
//! The criterion benches time it, the binary `instructions` runs it for callgrind to count. Both go
//! through the public interface, so that what is measured is what runs.
#![allow(clippy::unwrap_used, reason = "a bench that fails ends there")]

pub mod frames;
pub mod records;
pub mod session;
pub mod tree;
