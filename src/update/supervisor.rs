//! A process of the previous program that brings it back if the new one is not confirmed.
//!
//! It covers a new program that has no guard at all: one that ends before `main`, hangs, or is no agent.

use std::{
    ffi::OsString,
    io,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use super::{
    guard::{self, Started},
    program_files::{ProgramFiles, UpdateLock},
    record::{RollbackReason, UpdateRecord},
    steps::{Reach, reach},
};
use crate::platform::{
    Environment, Paths,
    service::{Service, SupervisorJob},
};

/// First argument of the supervisor's command line.
const SUPERVISE: &str = "supervise-update";
/// First argument of the command line that the service manager runs before each start.
const GUARD: &str = "guard-update";
/// Time after which a new program that is not confirmed is replaced. Longer than that of the guard, which
/// ends its own process in order.
const TIMEOUT: Duration = Duration::from_secs(150);
/// Interval between two looks at the record.
const PAUSE: Duration = Duration::from_millis(200);
/// Interval between attempts to put the previous program back that cannot succeed yet, and time after which
/// there are no more.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
const GIVE_UP: Duration = Duration::from_secs(60 * 60);
/// Interval between attempts to start a service that its manager starts only after minutes.
const RESUME_PAUSE: Duration = Duration::from_secs(10);
/// Number of consecutive failures to read the record after which the supervisor gives up.
const MAX_UNREADABLE: u32 = 25;
/// Longest time to wait for another process that holds the lock.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// Starts the supervisor with the previous program, outside of the agent's service.
///
/// # Errors
/// The error of the system or of the service manager: an update must not be installed without it.
pub(crate) fn start(files: &ProgramFiles) -> io::Result<()> {
    let timeout = guard::timeout(TIMEOUT);
    let arguments = [
        SUPERVISE.into(),
        files.program().as_os_str().to_owned(),
        timeout.as_millis().to_string().into(),
    ];
    SupervisorJob::new(&files.previous(), &arguments, service().as_ref()).start()
}

/// Runs the command line of the supervisor, or of the guard that the service manager runs.
pub(super) fn run_hidden_command(arguments: &[OsString]) -> Option<ExitCode> {
    let [command, program, rest @ ..] = arguments else { return None };
    let files = ProgramFiles::of(&PathBuf::from(program));
    if command == GUARD {
        guard_start(&files);
        return Some(ExitCode::SUCCESS);
    }
    if command != SUPERVISE {
        return None;
    }
    let timeout = rest.first().and_then(|millis| millis.to_str()?.parse().ok());
    let timeout = timeout.map_or(TIMEOUT, Duration::from_millis);
    if supervise(&files, timeout, &reach) {
        restart_service();
    }
    SupervisorJob::remove(service().as_ref());
    Some(ExitCode::SUCCESS)
}

/// Counts a start of the service's program, in a process of the previous one, and starts a supervisor,
/// since a restart of the machine has ended the one before.
fn guard_start(files: &ProgramFiles) {
    if !UpdateRecord::read(files).is_some_and(|record| record.is_pending()) {
        return;
    }
    let Ok(lock) = UpdateLock::take_within(files, LOCK_WAIT) else { return };
    let started = guard::count_start(&lock, guard::invocation().as_deref(), &reach);
    drop(lock);
    if started == Started::New {
        // The guards work without it.
        drop(start(files));
    }
}

/// Waits until the update is no longer pending, or for `timeout`; then brings the previous program back,
/// and returns true.
pub(super) fn supervise(files: &ProgramFiles, timeout: Duration, reach: Reach<'_>) -> bool {
    let begun = Instant::now();
    let mut unreadable = 0;
    let resume = service().as_ref().and_then(Service::resume);
    let mut resumed = begun;
    while unreadable < MAX_UNREADABLE && begun.elapsed() < timeout.saturating_add(GIVE_UP) {
        match UpdateRecord::read(files) {
            Some(record) if !record.is_pending() => return false,
            Some(_) => unreadable = 0,
            // Another process may be replacing it.
            None => unreadable += 1,
        }
        let is_missing = !files.program().try_exists().unwrap_or(true);
        if begun.elapsed() >= timeout || is_missing {
            // Held while the new program is put into place.
            if let Ok(lock) = UpdateLock::take_within(files, LOCK_WAIT) {
                let detail = format!("it was not confirmed within {} s", timeout.as_secs());
                let done = guard::roll_back(&lock, RollbackReason::NotConfirmed, &detail, reach);
                if !is_missing || files.program().try_exists().unwrap_or(true) {
                    return done.unwrap_or(false) || is_missing;
                }
            }
        }
        if resumed.elapsed() >= RESUME_PAUSE {
            resumed = Instant::now();
            // Without effect while the service runs; fails if a person has stopped it.
            resume.iter().for_each(|command| drop(command.run()));
        }
        thread::sleep(if begun.elapsed() < timeout { PAUSE } else { RETRY_PAUSE });
    }
    false
}

fn service() -> Option<Service> {
    let environment = Environment::from_process();
    let paths = Paths::from_environment(&environment).ok()?;
    Some(Service::of_this_user(&paths.installed, &environment))
}

fn restart_service() {
    for command in service().iter().flat_map(Service::restart) {
        drop(command.run());
    }
}
