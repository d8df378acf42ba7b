//! The templates of `cargo xtask new` compile, and their tests pass.
#![allow(clippy::unwrap_used, reason = "a test ends there")]

#[path = "../../xtask/templates/enricher.rs"]
mod enricher;
#[path = "../../xtask/templates/filter.rs"]
mod filter;
#[path = "../../xtask/templates/sink.rs"]
mod sink;
#[path = "../../xtask/templates/source.rs"]
mod source;
