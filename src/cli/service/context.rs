//! The service of this user and its agent, as used by all service commands.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::{
    agent::status_file,
    cli::{context::CliContext, failure::Failure},
    platform::{
        LockHolder, LockRole, StateLock,
        service::{ManagerCommand, ManagerCommandError, Service, ServiceStatus},
    },
    text::causes,
};

/// Longest time that a service may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time that a service may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// Interval between two checks.
const INTERVAL: Duration = Duration::from_millis(50);

/// Status of the service of this user; `None` when none is installed.
pub(in crate::cli) fn installed_service(
    context: &CliContext,
) -> Result<Option<ServiceStatus>, ManagerCommandError> {
    let installed = &context.paths().installed;
    // The service manager is queried only if there is a definition.
    let mut definitions = [&installed.definition].into_iter().chain(&installed.machine_definitions);
    if !definitions.any(|path| path.try_exists().unwrap_or(false)) {
        return Ok(None);
    }
    let service = Service::of_this_user(installed, context.environment());
    Ok(Some(service.status()?).filter(|status| status.is_installed))
}

/// The service of this user, and the state directory of its agent.
pub(super) struct ServiceContext {
    pub(super) context: CliContext,
    pub(super) service: Service,
    pub(super) state_dir: PathBuf,
}

impl ServiceContext {
    pub(super) fn new(explicit: Option<&Path>) -> Result<Self, Failure> {
        let context = CliContext::new(None)?;
        let paths = context.paths();
        if explicit.is_some() {
            return Err(Failure::usage(format!(
                "a service does not read the file of `--config`: copy its contents to the user's \
                 file, `{}`",
                paths.user_config.display()
            )));
        }
        let service = Service::of_this_user(&paths.installed, context.environment());
        // A wrong configuration does not keep a service from being stopped or uninstalled.
        let settings = context.sources.load().map(|loaded| loaded.settings);
        let state_dir = settings.map(|settings| settings.agent.state_dir);
        let state_dir = state_dir.unwrap_or_else(|_| paths.default_state_dir.clone());
        Ok(Self { context, service, state_dir })
    }

    /// Returns the status of the service.
    pub(super) fn status(&self) -> Result<ServiceStatus, Failure> {
        self.service.status().map_err(|error| {
            // The answer of the service manager says little if there is none for this user.
            let probed = self.probe();
            probed.err().unwrap_or_else(|| manager_failure(error))
        })
    }

    /// Checks that the service manager of this user responds.
    pub(super) fn probe(&self) -> Result<(), Failure> {
        let Some(probe) = self.service.probe() else { return Ok(()) };
        match probe.run() {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::failed(format!(
                "the service manager of this user does not respond: log in as this user (not with \
                 `su` or `sudo`), or run `loginctl enable-linger` as root: {}",
                causes(&error)
            ))),
        }
    }

    /// Checks that the agent would start with the configuration of the service.
    pub(super) fn check_startable(&self) -> Result<(), Failure> {
        self.context.load_startable().map(drop)
    }

    /// Returns the process that runs an agent on the state directory: `Some(None)` if its PID is
    /// unknown.
    pub(super) fn running_agent(&self) -> Result<Option<Option<u32>>, Failure> {
        Ok(agent_on(&self.state_dir)?.map(|holder| holder.pid))
    }

    /// Fails if an agent that was started by hand holds the state directory.
    pub(super) fn refuse_other_agent(
        &self,
        service_is_active: Option<bool>,
        agent: Option<Option<u32>>,
    ) -> Result<(), Failure> {
        match (service_is_active, agent) {
            (Some(false), Some(pid)) => Err(Failure::failed(format!(
                "an agent{} that is not a service holds the state directory `{}`: stop it first",
                with_pid(pid),
                self.state_dir.display()
            ))),
            _ => Ok(()),
        }
    }
}

/// Returns the agent that holds a state directory; a command that holds it does not count.
fn agent_on(state_dir: &Path) -> Result<Option<LockHolder>, Failure> {
    let holder = StateLock::current_holder(state_dir).map_err(Failure::failed)?;
    Ok(holder.filter(|holder| holder.role == LockRole::Agent))
}

pub(super) fn with_pid(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (PID {pid})"))
}

pub(super) fn manager_failure(error: impl std::error::Error) -> Failure {
    Failure::failed(causes(&error))
}

/// Runs commands of the service manager.
pub(super) fn run_all(commands: &[ManagerCommand]) -> Result<(), Failure> {
    for command in commands {
        match command.run() {
            Ok(_) => {}
            Err(error) if command.is_required => return Err(manager_failure(error)),
            Err(error) => tracing::debug!(%error, "optional command of the service manager failed"),
        }
    }
    Ok(())
}

/// Waits until an agent other than `before` is running on `state_dir`; returns its process.
pub(super) fn wait_until_running(state_dir: &Path, before: Option<u32>) -> Result<u32, Failure> {
    let begun = Instant::now();
    loop {
        let holder = agent_on(state_dir).ok().flatten().and_then(|holder| holder.pid);
        if let Some(pid) = holder.filter(|pid| before != Some(*pid))
            && status_file::read(state_dir).is_some_and(|status| status.pid == pid)
        {
            return Ok(pid);
        }
        if begun.elapsed() >= START_TIMEOUT {
            return Err(Failure::failed(format!(
                "the service was started and is not running after {} s: see the log in `{}`, or \
                 run `ai-agent run`",
                START_TIMEOUT.as_secs(),
                state_dir.join("logs").display()
            )));
        }
        thread::sleep(INTERVAL);
    }
}

/// Waits until no agent holds `state_dir`.
pub(super) fn wait_until_stopped(state_dir: &Path) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let Some(holder) = agent_on(state_dir)? else { return Ok(()) };
        if begun.elapsed() >= STOP_TIMEOUT {
            return Err(Failure::failed(format!(
                "an agent{holder} still holds `{}`: check whether it is not a service",
                state_dir.display()
            )));
        }
        thread::sleep(INTERVAL);
    }
}
