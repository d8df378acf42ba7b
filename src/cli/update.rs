//! `ai-agent update`: arguments, and updates by a person.

mod text;

use std::{fs, path::Path};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use siem_protocol::{
    agent_event::{UpdateMode, UpdateReason, UpdateState},
    update::UpdateRelease,
};
use tokio::runtime::Runtime;

pub(super) use self::text::{reason_text, summary_text};
use super::{
    context::CliContext,
    failure::Failure,
    output::{JSON_VERSION, print},
    service,
};
use crate::{
    config::LoadedConfig,
    pipeline::assembly,
    platform::{Clock as _, LockRole, StateLock, SystemClock, identify},
    text::causes,
    update::{
        self, Decision, DownloadLock, Installation, Limits, ProgramFiles, StoredState, UpdateError,
        UpdateRecord, Updater, Wish, swap,
    },
    version::version,
};

/// Check for a newer release of the agent, install it, or go back to the one before
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Ask the receiver for a newer release
    ///
    /// Changes nothing. Exits 1 if the receiver does not respond.
    Check {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Install the newest release, and restart the service
    ///
    /// The release is downloaded, verified with `update.keys`, and tested with the configuration of this
    /// machine. A staged roll-out does not count, but a release that was halted is not installed.
    Install {
        /// Also install a release that is older than this one
        #[arg(long)]
        allow_downgrade: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Put the previous program back, and restart the service
    Rollback {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the state of updates
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Result of a command: for people and as JSON.
struct Report {
    text: String,
    json: Value,
}

impl Arguments {
    /// Returns true if the command changes no program.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(self.action, Action::Check { .. } | Action::Status { .. })
    }

    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let context = CliContext::new(explicit)?;
        let (report, as_json) = match &self.action {
            Action::Check { json } => (check(&context)?, json),
            Action::Install { allow_downgrade, json } => {
                (install(&context, explicit, *allow_downgrade)?, json)
            }
            Action::Rollback { json } => (roll_back(&context)?, json),
            Action::Status { json } => (status(&context)?, json),
        };
        match as_json {
            true => print(format_args!("{:#}", report.json)),
            false => print(format_args!("{}", report.text)),
        }
    }
}

fn check(context: &CliContext) -> Result<Report, Failure> {
    let loaded = context.load_in_force()?;
    let updater = updater(context, &loaded)?;
    let record = swap::look(&files()?);
    let mut state = StoredState::read(&updater.dir);
    let rolled_back = state.rolled_back(record.as_ref());
    let check = updater.check(Wish::Mode(UpdateMode::Notify), rolled_back);
    Ok(report_of(&runtime()?.block_on(check).map_err(failed)?))
}

fn report_of(decision: &Decision) -> Report {
    let (state, release, reason) = match decision {
        Decision::Current => (UpdateState::Current, None, None),
        Decision::Waiting(release, reason) => (UpdateState::Waiting, Some(release), Some(*reason)),
        Decision::RolledBack(release) => {
            (UpdateState::RolledBack, Some(release), Some(UpdateReason::RolledBackBefore))
        }
        Decision::Available(release) => (UpdateState::Available, Some(release), None),
    };
    let name = release.map(|release| release.version.to_string());
    let text = match (&name, reason) {
        (None, _) => format!("ai-agent {} is the newest release", version()),
        (Some(name), None) => {
            format!("release {name} is available: `ai-agent update install` installs it")
        }
        (Some(name), Some(reason)) => {
            format!("release {name} is not for this machine: {}", reason_text(reason))
        }
    };
    let published = release.map(|release| &release.published_at);
    let json = json!({
        "version": JSON_VERSION,
        "installed": version(),
        "state": state,
        "release": name,
        "published_at": published,
        "reason": reason,
    });
    Report { text, json }
}

fn install(
    context: &CliContext,
    explicit: Option<&Path>,
    allows_downgrade: bool,
) -> Result<Report, Failure> {
    let loaded = context.load_in_force()?;
    if loaded.settings.update.keys.is_empty() {
        return Err(Failure::usage(
            "`update.keys` has no key, so no release can be verified: see docs/update.md",
        ));
    }
    let updater = updater(context, &loaded)?;
    let files = files()?;
    files.check_replaceable().map_err(Failure::failed)?;
    if let Some(record) = swap::settle(&files).filter(UpdateRecord::is_pending) {
        let to = record.to;
        return Err(Failure::failed(format!("the update to {to} has not been confirmed yet")));
    }
    let runtime = runtime()?;
    let check = updater.check(Wish::Command { allows_downgrade }, &[]);
    let decision = runtime.block_on(check).map_err(failed)?;
    let Decision::Available(release) = &decision else {
        let report = report_of(&decision);
        return match decision {
            Decision::Current => Ok(report),
            _ => Err(Failure::failed(report.text)),
        };
    };
    let downloads = DownloadLock::take(&updater.dir).map_err(failed)?;
    let mut state = StoredState::read(&updater.dir);
    let fetched = runtime.block_on(updater.fetch(&downloads, release, &mut state));
    if let Err(error) = state.write(&updater.dir) {
        tracing::debug!(%error, "cannot write the state of updates");
    }
    let staged = fetched.map_err(failed)?;
    let is_service = service::is_active_service(context, files.program());
    let installation = Installation {
        staged: &staged,
        downloads: &downloads,
        release,
        files: &files,
        config: explicit,
        at: SystemClock.now(),
        // Without a service there is no start to watch over: the next one counts.
        is_supervised: is_service,
    };
    installation.run().map_err(failed)?;
    // With the mode `off` no check removes it.
    drop(fs::remove_file(&staged));
    restarted(release, is_service, &loaded.settings.agent.state_dir)
}

/// Restarts the service after an installation, and reports it.
fn restarted(
    release: &UpdateRelease,
    is_service: bool,
    state_dir: &Path,
) -> Result<Report, Failure> {
    let name = release.version.to_string();
    let (next, pid) = restart(is_service, state_dir)?;
    let text = format!("installed release {name} in place of {}; {next}", version());
    let json = json!({
        "version": JSON_VERSION,
        "installed": name,
        "previous": version(),
        "state": UpdateState::Unconfirmed,
        "pid": pid,
    });
    Ok(Report { text, json })
}

/// Restarts the service, so that the program in place runs. Returns what was done, or what a person has
/// to do.
fn restart(is_service: bool, state_dir: &Path) -> Result<(String, Option<u32>), Failure> {
    if is_service {
        let pid = service::restart_after_update()?;
        let next = "`ai-agent update status` shows whether it makes progress";
        return Ok((format!("the service was restarted (PID {pid}): {next}"), Some(pid)));
    }
    let holder = StateLock::current_holder(state_dir).map_err(Failure::failed)?;
    let is_agent = holder.is_some_and(|holder| holder.role == LockRole::Agent);
    let next = match is_agent {
        true => "restart the running agent, which is not a service",
        false => "it runs from the next start on",
    };
    Ok((next.to_owned(), None))
}

fn roll_back(context: &CliContext) -> Result<Report, Failure> {
    let files = files()?;
    files.check_replaceable().map_err(Failure::failed)?;
    let lock = update::lock(&files).map_err(failed)?;
    let is_service = service::is_active_service(context, files.program());
    let record = update::roll_back_by_hand(&lock, &update::reach).map_err(Failure::failed)?;
    // The restarted program reads the record.
    drop(lock);
    let (next, pid) = restart(is_service, &context.state_dir()?)?;
    let text =
        format!("release {} is in place again, instead of {}; {next}", record.from, record.to);
    let json = json!({
        "version": JSON_VERSION,
        "installed": record.from,
        "previous": record.to,
        "state": UpdateState::RolledBack,
        "pid": pid,
    });
    Ok(Report { text, json })
}

fn status(context: &CliContext) -> Result<Report, Failure> {
    let loaded = context.load_in_force()?;
    let (json, summary) = status_json(&loaded)?;
    let mut lines = vec![format!("installed   {}", version()), format!("updates     {summary}")];
    let mut line = |name: &str, value: &Value| {
        lines.extend(value.as_str().map(|text| format!("{name:<12}{text}")));
    };
    line("detail", &json["detail"]);
    line("checked", &json["checked_at"]);
    line("program", &json["program"]);
    line("", &json["not_replaceable"]);
    line("previous", &json["previous"]);
    Ok(Report { text: lines.join("\n"), json })
}

/// Returns the state of updates as JSON, and as a line for people.
pub(super) fn status_json(loaded: &LoadedConfig) -> Result<(Value, String), Failure> {
    let settings = &loaded.settings;
    let files = files()?;
    let record = swap::look(&files);
    let stored = StoredState::read(&update::dir(&settings.agent.state_dir));
    let summary = update::summary(settings.update.mode, &stored, record.as_ref(), version());
    let not_replaceable = files.check_replaceable().err().map(|error| causes(&error));
    let previous = files.previous();
    let detail = match summary.state {
        UpdateState::RolledBack => record.as_ref().and_then(|record| record.detail.clone()),
        UpdateState::Current | UpdateState::Off | UpdateState::Unconfirmed => None,
        _ => stored.detail,
    };
    let json = json!({
        "version": JSON_VERSION,
        "installed": version(),
        "mode": summary.mode,
        "state": summary.state,
        "release": summary.version,
        "reason": summary.reason,
        "detail": detail,
        "checked_at": summary.checked_at,
        "program": files.program().display().to_string(),
        "not_replaceable": not_replaceable,
        "previous": previous.is_file().then(|| previous.display().to_string()),
        "record": record,
    });
    Ok((json, summary_text(&summary)))
}

fn updater(context: &CliContext, loaded: &LoadedConfig) -> Result<Updater, Failure> {
    let stage_context = context.stage_context(loaded);
    let connection = assembly::manager(loaded, &stage_context).map_err(|error| {
        // A setting that is missing is reported with every way to set it.
        Failure::usage(loaded.missing_for_delivery().unwrap_or(error))
    })?;
    let connection = connection.ok_or_else(|| {
        Failure::usage(
            "releases come from the receiver of a sink of type `http-siem`: there is none",
        )
    })?;
    let state_dir = &loaded.settings.agent.state_dir;
    Ok(Updater {
        connection,
        keys: loaded.settings.update.keys.clone(),
        // With the machine id that the agent has.
        identity: identify(Some(state_dir)).identity,
        dir: update::dir(state_dir),
        program_dir: update::program_dir(),
        limits: Limits::default(),
    })
}

fn files() -> Result<ProgramFiles, Failure> {
    ProgramFiles::of_current().map_err(Failure::failed)
}

fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::failed)
}

fn failed(error: UpdateError) -> Failure {
    Failure::failed(error)
}
