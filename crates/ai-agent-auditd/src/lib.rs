//! The source `auditd`: docker commands from the log of the Linux audit system.
//!
//! [`line`](mod@line) parses one line, [`assembler`] collects the lines of one event, [`facts`]
//! extracts the facts, and [`call_filter`] selects events. They are pure: no files, no clock.
//! [`follower`] reads the log through a follower of log files that the program provides
//! ([`Context::follow_log`](ai_agent_stage::Context::follow_log)). The source and `ai-agent audit
//! tail` share them.

pub mod assembler;
pub mod call_filter;
pub mod facts;
pub mod follower;
pub mod line;
mod source;

/// Key of the audit rules that `audit install` installs.
pub const KEY: &str = "claude-hooks-docker";
/// Programs whose calls are selected by default.
pub const PROGRAMS: [&str; 1] = ["docker"];
/// Commands that stop, remove or pause a container.
pub const VERBS: [&str; 5] = ["stop", "rm", "kill", "restart", "pause"];
/// Globs of the containers that are selected by default.
pub const NAMES: [&str; 1] = ["claude-hooks-*"];
/// Default path of the log of auditd.
pub const LOG: &str = "/var/log/audit/audit.log";
/// Maximum length of a line; the lines of auditd are shorter than 9 KiB.
pub const MAX_LINE_BYTES: u64 = 1 << 20;
