//! `ai-agent install`, `uninstall`, `start`, `stop`, `restart`: the agent as a service of the user.

mod install;
mod purge;
mod step;
mod uninstall;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

pub(super) use install::Arguments as Install;
pub(super) use uninstall::Arguments as Uninstall;

use super::{
    Failure, print,
    setup::{self, Surroundings},
};
use crate::{
    platform::{
        LockHolder, LockRole, StateLock,
        service::{ManagerCommand, ManagerCommandError, Service, ServiceStatus},
    },
    text::causes,
};

/// How long a service may take to be ready once it was started.
const READY: Duration = Duration::from_secs(60);
/// How long one may take to end.
const GONE: Duration = Duration::from_secs(15);

/// What to do with a service that is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Start,
    Stop,
    Restart,
}

impl Order {
    pub(super) fn execute(self, explicit: Option<&Path>) -> Result<(), Failure> {
        let at_hand = AtHand::look(explicit)?;
        let AtHand { service, state_dir, .. } = &at_hand;
        let standing = service.status().map_err(failed)?;
        if !standing.is_installed {
            return Err(Failure::failed(
                "the service is not installed: `ai-agent install` makes it one",
            ));
        }
        let before = at_hand.holder()?;
        if self != Self::Stop {
            at_hand.refuse_another(standing.is_active, before)?;
        }
        match self {
            Self::Start if before.is_some() => {
                return print(format_args!("ai-agent runs already{}", named(before.flatten())));
            }
            Self::Start => {
                at_hand.would_work()?;
                call_all(&service.start())?;
            }
            Self::Restart => {
                // One that runs is not stopped for one that would not.
                at_hand.would_work()?;
                call_all(&service.restart())?;
            }
            Self::Stop => {
                // Where it is stopped already, that is how it should be.
                let stopped = call_all(&service.stop());
                if before.is_some() {
                    stopped?;
                }
                wait_until_gone(state_dir)?;
                let until = match service.stays_stopped() {
                    true => "until `ai-agent start`",
                    false => "until `ai-agent start`, or the next login",
                };
                return print(format_args!(
                    "ai-agent is stopped {until}: what is written meanwhile is shipped then"
                ));
            }
        }
        let pid = wait_until_ready(state_dir, before.flatten())?;
        print(format_args!("ai-agent runs (PID {pid})"))
    }
}

/// The service of this user, and where its agent keeps its state.
struct AtHand {
    surroundings: Surroundings,
    service: Service,
    state_dir: PathBuf,
}

/// How the service of this user stands; none where none is installed.
pub(super) fn standing(
    surroundings: &Surroundings,
) -> Result<Option<ServiceStatus>, ManagerCommandError> {
    let installed = &surroundings.paths().installed;
    // The manager is asked only where there is something to ask it for.
    let is_laid_down = [&installed.definition].into_iter().chain(&installed.machine_definitions);
    if !is_laid_down.into_iter().any(|path| path.try_exists().unwrap_or(false)) {
        return Ok(None);
    }
    let service = Service::of_this_user(installed, surroundings.environment());
    Ok(Some(service.status()?).filter(|standing| standing.is_installed))
}

impl AtHand {
    fn look(explicit: Option<&Path>) -> Result<Self, Failure> {
        let surroundings = Surroundings::look()?;
        let paths = surroundings.paths();
        if explicit.is_some() {
            return Err(Failure::usage(format!(
                "a service reads no file of `--config`: write what is in it to the user's file, `{}`",
                paths.user_config.display()
            )));
        }
        let service = Service::of_this_user(&paths.installed, surroundings.environment());
        // A configuration that is wrong says nothing about what is installed.
        let settings = surroundings.load_managed(None, None).map(|loaded| loaded.settings);
        let state_dir = settings.map(|settings| settings.agent.state_dir);
        let state_dir = state_dir.unwrap_or_else(|_| paths.default_state_dir.clone());
        Ok(Self { surroundings, service, state_dir })
    }

    /// Whether the agent would start with what the service is given.
    fn would_work(&self) -> Result<(), Failure> {
        let loaded = self.surroundings.load(None)?;
        if let Some(missing) = loaded.missing_for_delivery() {
            return Err(Failure::usage(missing));
        }
        let context = self.surroundings.context(&loaded, None, true);
        setup::would_run(&loaded, &context)
    }

    /// Whether an agent has the state directory, and which, if it says so.
    fn holder(&self) -> Result<Option<Option<u32>>, Failure> {
        Ok(agent_on(&self.state_dir)?.map(|holder| holder.pid))
    }

    /// An agent that somebody runs by hand would keep the service from its state.
    fn refuse_another(
        &self,
        service_runs: Option<bool>,
        holder: Option<Option<u32>>,
    ) -> Result<(), Failure> {
        match (service_runs, holder) {
            (Some(false), Some(pid)) => Err(Failure::failed(format!(
                "an agent that is no service has the state directory `{}`{}: stop that one first",
                self.state_dir.display(),
                named(pid)
            ))),
            _ => Ok(()),
        }
    }
}

/// The agent that has a state directory; a command that is at work there is none.
fn agent_on(state_dir: &Path) -> Result<Option<LockHolder>, Failure> {
    let holder = StateLock::current_holder(state_dir).map_err(Failure::failed)?;
    Ok(holder.filter(|holder| holder.role == LockRole::Agent))
}

fn named(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (PID {pid})"))
}

fn failed(error: impl std::error::Error) -> Failure {
    Failure::failed(causes(&error))
}

fn call_all(calls: &[ManagerCommand]) -> Result<(), Failure> {
    for call in calls {
        match call.run() {
            Ok(_) => {}
            Err(error) if call.is_required => return Err(failed(error)),
            Err(error) => tracing::debug!(%error, "this is not needed"),
        }
    }
    Ok(())
}

/// Waits until an agent other than `before` is at work in `state_dir`: its process.
fn wait_until_ready(state_dir: &Path, before: Option<u32>) -> Result<u32, Failure> {
    let begun = Instant::now();
    loop {
        let holder = agent_on(state_dir).ok().flatten().and_then(|holder| holder.pid);
        if let Some(pid) = holder.filter(|pid| before != Some(*pid))
            && at_work(state_dir) == Some(pid)
        {
            return Ok(pid);
        }
        if begun.elapsed() >= READY {
            return Err(Failure::failed(format!(
                "the service was started and is not ready after {} s: `ai-agent run` says why, or \
                 the log in `{}`",
                READY.as_secs(),
                state_dir.join("logs").display()
            )));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The agent that says it is at work.
fn at_work(state_dir: &Path) -> Option<u32> {
    let status: Value =
        serde_json::from_slice(&fs::read(state_dir.join("status.json")).ok()?).ok()?;
    u32::try_from(status["pid"].as_u64()?).ok()
}

fn wait_until_gone(state_dir: &Path) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let Some(holder) = agent_on(state_dir)? else { return Ok(()) };
        if begun.elapsed() >= GONE {
            return Err(Failure::failed(format!(
                "an agent{holder} still has `{}`: is it one that is no service?",
                state_dir.display()
            )));
        }
        thread::sleep(Duration::from_millis(50));
    }
}
