//! Collects the status report: from the running agent, or from the files of a stopped one.

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    problems::problems,
    report::{HookStatus, State, StatusReport},
};
use crate::{
    agent::{status_file, summary_at_start},
    cli::{context::CliContext, failure::Failure, hook_files, service::installed_service},
    compliance::client_files::ClientSettingsFiles,
    config::LoadedConfig,
    control::{
        Client, Connection, DeviceStatus, Request, Response, Store, compliance_status, connect,
        status::AgentStatus,
    },
    platform::{Clock as _, LockHolder, LockRole, StateLock, SystemClock, bounded::BoundedCalls},
};

/// Longest time that the agent may take to respond.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Data that is read from a stopped agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Depth {
    /// The small files in its state directory.
    Files,
    /// Its outbox too, which is locked for a moment.
    Outbox,
}

/// Collects the status report.
pub(in crate::cli) fn collect(context: &CliContext, depth: Depth) -> Result<StatusReport, Failure> {
    let loaded = context.sources.load_if_valid().map_err(Failure::usage)?;
    let state_dir = context.sources.state_dir_of(loaded.as_ref());
    let mut report = StatusReport {
        at: SystemClock.now().to_string(),
        state_dir: state_dir.display().to_string(),
        hooks: hooks(context),
        service: installed_service(context).ok().flatten(),
        ..StatusReport::default()
    };
    match connect(&state_dir)? {
        Connection::Agent(client) => report.query(client, &state_dir),
        Connection::Unresponsive { holder, error } => {
            report.set_unresponsive(holder, &error, &state_dir);
        }
        Connection::Stopped => {
            report.status.config = last_config(&state_dir);
            report.status.device = Some(DeviceStatus::stored(&state_dir));
            let settings = loaded.as_ref().map(|loaded| &loaded.settings.update);
            report.status.update = settings.map(|it| summary_at_start(it, &state_dir));
            if let (Depth::Outbox, Some(loaded)) = (depth, loaded) {
                inspect_outbox(&mut report.status, context, &state_dir, loaded);
            }
        }
    }
    if report.status.compliance.is_none() {
        let (paths, environment) = (context.paths(), context.environment());
        let calls = BoundedCalls::new(Arc::new(SystemClock));
        let compliance = compliance_status(&state_dir, &calls, paths, environment, &[]);
        report.status.compliance = Some(compliance);
    }
    report.status.assign_trust();
    report.problems = problems(&report);
    Ok(report)
}

impl StatusReport {
    fn query(&mut self, client: Client, state_dir: &Path) {
        let queried = client.send(&Request::Status, TIMEOUT, &mut |response| {
            if let Response::Status(status) = response {
                self.pid = Some(status.agent.pid);
                self.status = *status;
                self.state = State::Running;
            }
            Ok(())
        });
        if let Err(error) = queried {
            self.state = State::Silent;
            self.silence = Some(error.to_string());
            self.pid =
                StateLock::current_holder(state_dir).ok().flatten().and_then(|holder| holder.pid);
            self.status.config = last_config(state_dir);
        }
    }

    fn set_unresponsive(&mut self, holder: LockHolder, error: &str, state_dir: &Path) {
        match holder.role {
            LockRole::Agent => {
                self.state = State::Silent;
                self.silence = Some(format!("{error}: see its log"));
            }
            LockRole::Command => self.is_busy = true,
        }
        self.pid = holder.pid;
        self.status.config = last_config(state_dir);
    }
}

fn last_config(state_dir: &Path) -> Option<status_file::ConfigReport> {
    status_file::read(state_dir)?.config
}

fn inspect_outbox(
    status: &mut AgentStatus,
    context: &CliContext,
    state_dir: &Path,
    loaded: LoadedConfig,
) {
    if !state_dir.join("outbox.redb").is_file() {
        return;
    }
    let inspected = Store::open(&context.sources, loaded).and_then(|store| {
        let stats = store.outbox.stats().map_err(crate::control::RequestError::because)?;
        status.set_outbox(stats, &store.loaded, SystemClock.now());
        Ok(())
    });
    status.outbox_error = inspected.err().map(|error| error.to_string());
}

fn hooks(context: &CliContext) -> Vec<HookStatus> {
    let (paths, environment) = (context.paths(), context.environment());
    let files = ClientSettingsFiles::new(environment, paths).read_all();
    let found = hook_files::installed(&files, &paths.home);
    let status = |hook: hook_files::InstalledHook| HookStatus {
        name: hook.hook.name().to_owned(),
        path: hook.path.display().to_string(),
        problem: hook.problem.map(|problem| problem.to_string()),
    };
    found.into_iter().map(status).collect()
}
