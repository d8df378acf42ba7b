//! A process of the previous program that brings it back if the new one is not confirmed.
//!
//! It covers a new program that has no guard at all: one that ends before `main`, hangs, or is no agent.

use std::{
    ffi::OsString,
    io, mem,
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
    test_limits,
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
/// Interval between two looks at a service that a person has stopped.
const STOPPED_PAUSE: Duration = Duration::from_secs(30);
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
    SupervisorJob::new(&files.previous(), &arguments(files), service().as_ref()).start()
}

fn arguments(files: &ProgramFiles) -> [OsString; 3] {
    let timeout = test_limits::limit(guard::TEST_TIMEOUT, TIMEOUT);
    [
        SUPERVISE.into(),
        files.program().as_os_str().to_owned(),
        timeout.as_millis().to_string().into(),
    ]
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
    let service = service();
    let watched = WatchedService::of(service.as_ref(), &files);
    if supervise(&files, timeout, &watched, &reach) {
        watched.restart();
    }
    SupervisorJob::remove(service.as_ref());
    Some(ExitCode::SUCCESS)
}

/// Service of the program, as a supervisor sees it.
pub(super) trait Watched {
    /// Returns whether a person has stopped the service: its program cannot make progress.
    fn is_stopped(&self) -> bool;
    /// Starts a service that has ended, where its manager does that only after minutes.
    fn resume(&self);
}

/// Service that runs the program; `None` if it is run by other means.
struct WatchedService<'a>(Option<&'a Service>);

impl<'a> WatchedService<'a> {
    fn of(service: Option<&'a Service>, files: &ProgramFiles) -> Self {
        let is_its_program = |service: &&Service| {
            let installed = service.installed().program.canonicalize();
            installed.map_or(true, |installed| installed == files.program())
        };
        Self(service.filter(is_its_program))
    }

    /// Restarts the service, unless a person has stopped it.
    fn restart(&self) {
        for command in self.0.iter().flat_map(|service| service.restart_unless_stopped()) {
            drop(command.run());
        }
    }
}

impl Watched for WatchedService<'_> {
    fn is_stopped(&self) -> bool {
        let status = self.0.and_then(|service| service.status().ok());
        status.is_some_and(|status| status.is_stopped)
    }

    fn resume(&self) {
        // Without effect while the service runs; fails if a person has stopped it.
        self.0.and_then(Service::resume).iter().for_each(|command| drop(command.run()));
    }
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
        let (program, arguments) = (files.previous(), arguments(files));
        drop(SupervisorJob::new(&program, &arguments, service().as_ref()).start_if_none());
    }
}

/// Waits until the update is no longer pending, or for `timeout`; then brings the previous program back,
/// and returns true. Time in which no program could run does not count: while the service is stopped, and
/// until the last start that was withdrawn.
pub(super) fn supervise(
    files: &ProgramFiles,
    timeout: Duration,
    service: &dyn Watched,
    reach: Reach<'_>,
) -> bool {
    let mut begun = Instant::now();
    let mut known = None;
    let mut unreadable = 0;
    let mut was_stopped = false;
    let mut resumed = begun;
    while unreadable < MAX_UNREADABLE && begun.elapsed() < timeout.saturating_add(GIVE_UP) {
        match UpdateRecord::read(files) {
            Some(record) if !record.is_pending() => return false,
            Some(UpdateRecord { at, to_sha256, withdrawn, .. }) => {
                unreadable = 0;
                let found = Some((at, to_sha256, withdrawn));
                if mem::replace(&mut known, found) != found {
                    begun = Instant::now();
                }
            }
            // Another process may be replacing it, or an uninstallation has removed it: then the file of the
            // lock must not be created again.
            None => {
                unreadable += 1;
                thread::sleep(PAUSE);
                continue;
            }
        }
        let is_missing = !files.program().try_exists().unwrap_or(true);
        let is_due = begun.elapsed() >= timeout;
        let is_stopped = is_due && service.is_stopped();
        if was_stopped && !is_stopped {
            begun = Instant::now();
        } else if is_due && !is_stopped || is_missing {
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
            service.resume();
        }
        was_stopped = is_stopped;
        thread::sleep(match begun.elapsed() < timeout {
            true => PAUSE,
            false if is_stopped => STOPPED_PAUSE.min(timeout),
            false => RETRY_PAUSE,
        });
    }
    false
}

fn service() -> Option<Service> {
    let environment = Environment::from_process();
    let paths = Paths::from_environment(&environment).ok()?;
    Some(Service::of_this_user(&paths.installed, &environment))
}
