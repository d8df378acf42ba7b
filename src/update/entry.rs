//! The first act of `main`.

use std::{ffi::OsString, process::ExitCode};

use super::{guard, supervisor};

/// Runs before everything else in `main`. For `run` with a new program that is not confirmed, counts the
/// start, and at the third one replaces this process with the previous program. Also runs the hidden
/// commands of the guard and the supervisor.
///
/// Returns the exit code of a process that has nothing more to do. Without an update, tries to open one
/// file.
pub(crate) fn enter(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let arguments: Vec<OsString> = arguments.into_iter().skip(1).collect();
    supervisor::run_hidden_command(&arguments).or_else(|| guard::enter(&arguments))
}
