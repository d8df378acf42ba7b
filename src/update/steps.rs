//! Points between the steps of an update, at which tests fail or kill the process.

use std::io;

/// Action that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The new program is copied beside the running one.
    CopyNew,
    /// The running program is kept as the previous one.
    KeepPrevious,
    /// The record is written, or changed to another state.
    WriteRecord,
    /// The supervisor is started.
    StartSupervisor,
    /// The new program is renamed into place.
    Swap,
    /// The new program is run at its place.
    RunNew,
    /// The previous program is renamed into place.
    Restore,
}

/// Called before each step.
pub(crate) type Reach<'a> = &'a (dyn Fn(Step) -> io::Result<()> + Sync);

/// Does nothing. In a debug build, kills the process before the step that the variable names.
///
/// # Errors
/// None.
#[cfg_attr(
    not(debug_assertions),
    expect(clippy::unnecessary_wraps, reason = "tests return errors")
)]
pub(crate) fn reach(step: Step) -> io::Result<()> {
    #[cfg(debug_assertions)]
    if std::env::var_os("AI_AGENT_TEST_KILL_BEFORE")
        .is_some_and(|name| name == *format!("{step:?}"))
    {
        std::process::abort();
    }
    #[cfg(not(debug_assertions))]
    let _ = step;
    Ok(())
}
