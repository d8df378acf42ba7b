//! Ships Claude Code session logs from a developer's machine to a SIEM, without losing a byte.

pub mod config;
pub mod event;
pub mod platform;
pub mod tail;
pub mod units;

pub use siem_protocol as protocol;
