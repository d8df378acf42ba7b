//! Events of the Linux audit system, as auditd's log tells them: pure, no files, no clock.
//!
//! [`mod@line`] takes one line apart, [`group`] finds the lines of one event, [`facts`] says what
//! happened, [`wanted`] whether that is what is looked for. The source `auditd` and `audit tail`
//! share them.

pub mod facts;
pub mod group;
pub mod line;
pub mod wanted;

/// The key of the rule that `audit install` installs.
pub const KEY: &str = "claude-hooks-docker";
/// The programs whose calls are meant.
pub const PROGRAMS: [&str; 1] = ["docker"];
/// What ends a container, or stops it for a while.
pub const VERBS: [&str; 5] = ["stop", "rm", "kill", "restart", "pause"];
/// The containers that are meant.
pub const NAMES: [&str; 1] = ["claude-hooks-*"];
/// Where auditd writes, unless its configuration says otherwise.
pub const LOG: &str = "/var/log/audit/audit.log";
