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

use siem_protocol::Digest;

use super::{
    guard::{self, Started},
    program_files::{ProgramFiles, UpdateLock},
    record::UpdateRecord,
    steps::{Reach, reach},
};
use crate::platform::{
    Environment, Paths, Timestamp,
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
/// Longest time that the guard waits for another process that holds the lock.
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

/// Time that a new program has to be confirmed.
#[derive(Debug)]
pub(super) struct Countdown {
    timeout: Duration,
    begun: Instant,
    /// What of the record makes it begin again.
    known: Option<(Timestamp, Digest, u32, u32)>,
    is_stopped: bool,
}

impl Countdown {
    pub(super) fn new(timeout: Duration, now: Instant) -> Self {
        Self { timeout, begun: now, known: None, is_stopped: false }
    }

    /// Begins again for another update, and after a start: the service may have been stopped before it.
    /// Three starts that count bring the previous program back, and others are no fault of the new one.
    pub(super) fn note(&mut self, record: &UpdateRecord, now: Instant) {
        let found = Some((record.at, record.to_sha256, record.starts, record.withdrawn));
        if self.known != found {
            (self.known, self.begun) = (found, now);
        }
    }

    /// Notes if a person has stopped the service, once the time is over: it begins again at a start. Until
    /// then it does not run.
    pub(super) fn note_stopped(&mut self, is_stopped: bool, now: Instant) {
        if is_stopped {
            self.begun = now.checked_sub(self.timeout).unwrap_or(self.begun);
        } else if self.is_stopped {
            self.begun = now;
        }
        self.is_stopped = is_stopped;
    }

    /// Returns whether the time is over.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.begun) >= self.timeout
    }

    /// Returns whether no further attempt is made to put the previous program back.
    pub(super) fn is_given_up(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.begun) >= self.timeout.saturating_add(GIVE_UP)
    }

    /// Returns the time until the next look at the record.
    fn pause(&self, now: Instant) -> Duration {
        match self.is_due(now) {
            false => PAUSE,
            true if self.is_stopped => STOPPED_PAUSE.min(self.timeout),
            true => RETRY_PAUSE.min(self.timeout),
        }
    }
}

/// Waits until the update is no longer pending, or for `timeout`; then brings the previous program back,
/// and returns true. Time in which no program could run does not count: while the service is stopped, and
/// until the last start.
pub(super) fn supervise(
    files: &ProgramFiles,
    timeout: Duration,
    service: &dyn Watched,
    reach: Reach<'_>,
) -> bool {
    let detail = format!("it was not confirmed within {} s", timeout.as_secs());
    let mut resumed = Instant::now();
    let mut countdown = Countdown::new(timeout, resumed);
    let mut unreadable = 0;
    while unreadable < MAX_UNREADABLE && !countdown.is_given_up(Instant::now()) {
        match UpdateRecord::read(files) {
            Some(record) if !record.is_pending() => return false,
            Some(record) => {
                unreadable = 0;
                countdown.note(&record, Instant::now());
            }
            // Another process may be replacing it, or an uninstallation has removed it: then the file of the
            // lock must not be created again.
            None => {
                unreadable += 1;
                thread::sleep(PAUSE);
                continue;
            }
        }
        if countdown.is_due(Instant::now()) {
            countdown.note_stopped(service.is_stopped(), Instant::now());
        }
        let is_missing = is_missing(files);
        let is_due = countdown.is_due(Instant::now()) && !countdown.is_stopped;
        if is_due || is_missing {
            let is_back = guard::try_roll_back(files, &detail, reach);
            if is_missing {
                // Otherwise a later attempt may fill the place.
                if !self::is_missing(files) {
                    return true;
                }
            } else if let Some(is_back) = is_back {
                return is_back;
            }
        }
        if resumed.elapsed() >= RESUME_PAUSE {
            resumed = Instant::now();
            service.resume();
        }
        thread::sleep(countdown.pause(Instant::now()));
    }
    false
}

/// Returns whether no program is in place.
fn is_missing(files: &ProgramFiles) -> bool {
    !files.program().try_exists().unwrap_or(true)
}

fn service() -> Option<Service> {
    let environment = Environment::from_process();
    let paths = Paths::from_environment(&environment).ok()?;
    Some(Service::of_this_user(&paths.installed, &environment))
}
