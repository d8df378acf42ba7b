//! The first act of the program: it counts starts of a new program that is not confirmed, and brings the
//! previous one back.

use std::{
    ffi::OsString,
    io,
    path::Path,
    process::{Command, ExitCode},
    sync::OnceLock,
    thread,
    time::Duration,
};

use super::{
    child, outside,
    program_files::{ProgramFiles, UpdateLock},
    record::{RollbackReason, UpdateRecord, UpdateState},
    steps::{Reach, Step, reach},
    swap::{self, RestoreError},
};
use crate::{
    platform::{Environment, own_program, service, test_limits},
    text::causes,
    version::version,
};

/// Start at which the previous program comes back.
const MAX_STARTS: u32 = 3;
/// Longest time that a new program may take until it is confirmed.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(120);
/// Variable with a shorter time for tests, in milliseconds.
pub(super) const TEST_TIMEOUT: &str = "AI_AGENT_TEST_UPDATE_TIMEOUT_MS";
/// Longest time to wait for another process that holds the lock; the program then starts uncounted.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// First argument of the command line with which the previous program finds out if it could start.
pub(crate) const START_TEST: &str = "--start-test";
/// Longest time that it may take: another process may hold the state directory for some seconds.
const START_TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Files of this process's program, if it is new and not confirmed.
static UNCONFIRMED: OnceLock<ProgramFiles> = OnceLock::new();

/// Counts the start of an agent with a new program that is not confirmed, and at the third one replaces
/// this process with the previous program. Returns the exit code of a process that has nothing more to do.
pub(super) fn enter(arguments: &[OsString]) -> Option<ExitCode> {
    if !is_run(arguments) {
        return None;
    }
    let files = ProgramFiles::of_current().ok()?;
    let record = UpdateRecord::read(&files)?;
    if !record.is_pending() {
        if !record.reported {
            // Without the thread, the event is repeated at the next start.
            drop(outside::start());
        }
        return None;
    }
    let lock = UpdateLock::take_within(&files, LOCK_WAIT).ok();
    let started = match &lock {
        Some(lock) => count_start(lock, invocation().as_deref(), &reach),
        None => Started::New,
    };
    drop(lock);
    if started == Started::RolledBack {
        let code = own_program::run_in_place(files.program(), arguments);
        let code = code.ok().and_then(|code| u8::try_from(code).ok());
        // The service manager starts the previous program if this process could not.
        return Some(code.map_or(ExitCode::FAILURE, ExitCode::from));
    }
    drop(outside::start());
    // A process of the previous program, started just before the swap, proves nothing about the new one.
    if started == Started::New && record.to == version() {
        UNCONFIRMED.get_or_init(|| files.clone());
        thread::spawn(move || {
            roll_back_after(&files, test_limits::limit(TEST_TIMEOUT, CONFIRM_TIMEOUT))
        });
    }
    None
}

/// Returns whether a command line is that of the agent.
fn is_run(arguments: &[OsString]) -> bool {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            arguments.next();
        } else if !argument.as_encoded_bytes().starts_with(b"-") {
            return argument == "run" && !arguments.any(|argument| argument == "--test");
        }
    }
    false
}

/// Returns the name of the invocation of the service in which the service manager started this process.
///
/// A process supervisor that is a service itself passes its own name on to all that it starts: each start
/// counts. Older versions of systemd do not name the process.
pub(super) fn invocation() -> Option<String> {
    let variable = |name: &str| std::env::var_os(name).and_then(|value| value.into_string().ok());
    let process = variable("SYSTEMD_EXEC_PID");
    let is_started = process.is_none_or(|process| process == std::process::id().to_string());
    variable("INVOCATION_ID").filter(|_| is_started)
}

/// Program that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Started {
    /// A new program that is not confirmed.
    New,
    /// The new program, which was replaced by the previous one.
    RolledBack,
    /// Any other program.
    Other,
}

/// Counts a start of the program in place, and brings the previous one back if there were too many.
pub(super) fn count_start(
    lock: &UpdateLock,
    invocation: Option<&str>,
    reach: Reach<'_>,
) -> Started {
    let Some(mut record) = swap::recover(lock).filter(UpdateRecord::is_pending) else {
        return Started::Other;
    };
    let reason = record.reason;
    let is_counted = invocation.is_some() && record.invocation.as_deref() == invocation;
    let mut is_stored = true;
    if !is_counted && record.state == UpdateState::Unconfirmed {
        record.starts += 1;
        record.invocation = invocation.map(str::to_owned);
        is_stored = reach(Step::WriteRecord).and_then(|()| record.write(lock.files())).is_ok();
    }
    let (reason, detail) = match record.state {
        UpdateState::RollingBack => {
            let detail = record.detail.clone().unwrap_or_default();
            (reason.unwrap_or(RollbackReason::Interrupted), detail)
        }
        _ if record.starts >= MAX_STARTS => {
            let starts = record.starts;
            (RollbackReason::Crashed, format!("it was started {starts} times and never confirmed"))
        }
        // Starts that are not counted could go on for ever.
        _ if !is_stored => (RollbackReason::Crashed, "its starts could not be counted".to_owned()),
        _ => return Started::New,
    };
    match swap::restore(lock, record, reason, &detail, reach) {
        Ok(_) => Started::RolledBack,
        // The new program is all there is.
        Err(_) => Started::New,
    }
}

/// Brings the previous program back and ends this process, unless it was confirmed within `limit`.
fn roll_back_after(files: &ProgramFiles, limit: Duration) {
    let detail = format!("it made no progress within {} s", limit.as_secs());
    thread::sleep(limit);
    let is_back = loop {
        if !UpdateRecord::read(files).is_some_and(|record| record.is_pending()) {
            return;
        }
        match try_roll_back(files, &detail, &reach) {
            Some(is_back) => break is_back,
            None => thread::sleep(LOCK_WAIT),
        }
    };
    if is_back {
        tracing::error!(
            code = "update_rolled_back",
            "the new program was not confirmed in time: the previous one is back, restarting"
        );
        let is_restarted = service::restarts_process(&Environment::from_process());
        // This process holds the state directory until it ends.
        if own_program::REPLACES_PROCESS && !is_restarted {
            let arguments: Vec<_> = std::env::args_os().skip(1).collect();
            drop(own_program::run_in_place(files.program(), &arguments));
        }
        std::process::exit(1);
    }
}

/// Brings the previous program back if the new one was not confirmed in time. Returns whether it is back,
/// and `None` if a later attempt may succeed: another process or program holds a file, or the system cannot
/// read or rename one at the moment.
pub(super) fn try_roll_back(files: &ProgramFiles, detail: &str, reach: Reach<'_>) -> Option<bool> {
    let lock = UpdateLock::take_within(files, LOCK_WAIT).ok()?;
    let record = swap::recover(&lock)?;
    if !record.is_pending() {
        return Some(record.state == UpdateState::RolledBack);
    }
    match swap::restore(&lock, record, RollbackReason::NotConfirmed, detail, reach) {
        Ok(_) => Some(true),
        Err(RestoreError::NoPrevious | RestoreError::Changed(_)) => Some(false),
        Err(RestoreError::Io(_)) => None,
    }
}

/// Asks the previous program why the start of this one has failed, with the file of `--config`. If it could
/// not start either, for example because of the configuration or another agent, it [takes the start
/// back](withdraw_start). This program is not trusted with that: it may be the one that is wrong.
pub(crate) fn ask_previous(config: Option<&Path>) {
    let Some(files) = UNCONFIRMED.get() else { return };
    if !UpdateRecord::read(files).is_some_and(|record| record.is_pending()) {
        return;
    }
    let mut command = Command::new(files.previous());
    command.arg(START_TEST).arg(files.program()).arg(std::process::id().to_string());
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    // If it does not run, the start counts.
    drop(outside::run(move || child::run(&mut command, START_TEST_TIMEOUT)));
}

/// Takes the last start out of the count: no other program could have started.
///
/// # Errors
/// The error of the system: the start counts.
pub(crate) fn withdraw_start(files: &ProgramFiles) -> io::Result<()> {
    let lock = UpdateLock::take_within(files, LOCK_WAIT)?;
    match UpdateRecord::read(files) {
        Some(mut record) if record.state == UpdateState::Unconfirmed => {
            record.starts = record.starts.saturating_sub(1);
            record.withdrawn = record.withdrawn.saturating_add(1);
            record.write(lock.files())
        }
        _ => Ok(()),
    }
}

/// Returns whether this process runs a new program that must be confirmed.
pub(crate) fn is_unconfirmed() -> bool {
    UNCONFIRMED.get().is_some()
}

/// Records that the new program runs: the caller has seen that this process makes progress.
///
/// # Errors
/// Description of the failure; the caller tries again.
pub(crate) fn confirm() -> Result<(), String> {
    let Some(files) = UNCONFIRMED.get() else { return Ok(()) };
    outside::run(|| confirm_at(files, &reach)).map_err(|error| causes(&error))?
}

pub(super) fn confirm_at(files: &ProgramFiles, reach: Reach<'_>) -> Result<(), String> {
    let lock = UpdateLock::take_within(files, LOCK_WAIT).map_err(|error| causes(&error))?;
    let Some(mut record) = UpdateRecord::read(files) else { return Ok(()) };
    if record.state != UpdateState::Unconfirmed {
        return Ok(());
    }
    record.state = UpdateState::Confirmed;
    let written = reach(Step::WriteRecord).and_then(|()| record.write(lock.files()));
    written.map_err(|error| causes(&error))?;
    own_program::remove_old(files.program());
    Ok(())
}
