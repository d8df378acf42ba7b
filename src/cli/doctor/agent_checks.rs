//! Checks of the agent itself: its service, its status, and its hooks.

use std::{path::Path, time::Duration};

use super::check_result::CheckResult;
use crate::{
    cli::{
        context::CliContext,
        hook_files,
        service::installed_service,
        status::{
            collect::{Depth, collect},
            render::landlock_text,
            report::{Level, Problem, State, StatusReport},
            trust_text::{trust_problem, trust_text},
        },
    },
    compliance::{client_files::ClientSettingsFiles, hook_response::Hook},
    control::{
        Connection, DeviceStatus, Request, RequestError, Response, connect, status::SinkStatus,
    },
    platform::sandbox,
};
use config_text::Time;

/// Longest time until the test event is acknowledged: without acknowledgements, entries count as
/// delivered only after a while.
const CANARY_TIMEOUT: Duration = Duration::from_secs(60);
/// Additional time that the agent has to respond.
const GRACE: Duration = Duration::from_secs(5);

pub(super) fn run(context: &CliContext) -> Vec<CheckResult> {
    let mut results = vec![service(context)];
    match collect(context, Depth::Outbox) {
        Ok(report) => {
            results.extend(agent(&report));
            results.extend(landlock(&report));
            results.extend(report.status.device.as_ref().map(device));
            results.extend(trust(&report));
        }
        Err(failure) => results.push(CheckResult::fail("agent", failure.message())),
    }
    results.push(hooks(context));
    results
}

fn service(context: &CliContext) -> CheckResult {
    const SUBJECT: &str = "service";

    match installed_service(context) {
        Ok(Some(status)) if status.is_active == Some(false) => CheckResult::fail(
            SUBJECT,
            format!(
                "{}: start it with `ai-agent start`; its log shows why it ended",
                status.summary()
            ),
        ),
        Ok(Some(status)) => CheckResult::ok(SUBJECT, status.summary()),
        Ok(None) => CheckResult::warn(SUBJECT, "not installed: run `ai-agent install`"),
        Err(error) => CheckResult::warn(SUBJECT, format!("unknown: {error}")),
    }
}

fn agent(report: &StatusReport) -> Vec<CheckResult> {
    const SUBJECT: &str = "agent";

    let trust: Vec<_> = trust_problems(report).collect();
    let others = report.problems.iter().filter(|problem| !trust.contains(problem));
    let results: Vec<_> = others.map(|problem| problem_result(SUBJECT, problem)).collect();
    match (results.is_empty(), report.state) {
        (true, State::Running) => vec![CheckResult::ok(SUBJECT, "running and making progress")],
        _ => results,
    }
}

/// Restriction of the running agent, or the one that it would get.
fn landlock(report: &StatusReport) -> Option<CheckResult> {
    const SUBJECT: &str = "landlock";

    let (status, text) = match report.state {
        State::Running => {
            let status = report.status.agent.landlock.clone()?;
            let text = landlock_text(&status);
            (status, text)
        }
        State::Silent | State::Stopped => {
            let status = sandbox::probe()?;
            let text = format!("in an agent that is started: {}", landlock_text(&status));
            (status, text)
        }
    };
    Some(match status.active {
        true => CheckResult::ok(SUBJECT, text),
        false => CheckResult::warn(SUBJECT, text),
    })
}

/// Key of the device.
fn device(device: &DeviceStatus) -> CheckResult {
    const SUBJECT: &str = "device key";

    match (&device.problem, device.instance.is_some()) {
        (None, _) => CheckResult::ok(SUBJECT, device.summary()),
        // The agent makes a key when it starts; a file that it refuses is reported then.
        (Some(problem), false) => CheckResult::warn(SUBJECT, problem),
        (Some(problem), true) => CheckResult::fail(SUBJECT, problem),
    }
}

/// State of the device at the receiver of each sink.
fn trust(report: &StatusReport) -> Vec<CheckResult> {
    const SUBJECT: &str = "trust";

    let check = |sink: &SinkStatus| {
        let trust = sink.trust.as_ref()?;
        Some(match trust_problem(sink, report.status.device.as_ref()) {
            Some(problem) => problem_result(SUBJECT, &problem),
            None => CheckResult::ok(SUBJECT, format!("`{}`: {}", sink.name, trust_text(trust))),
        })
    };
    report.status.sinks.iter().filter_map(check).collect()
}

fn trust_problems(report: &StatusReport) -> impl Iterator<Item = Problem> {
    let device = report.status.device.as_ref();
    report.status.sinks.iter().filter_map(move |sink| trust_problem(sink, device))
}

fn problem_result(subject: &'static str, problem: &Problem) -> CheckResult {
    let text = format!("{}; {}", problem.what, problem.remedy);
    match problem.level {
        Level::Failing => CheckResult::fail(subject, text),
        Level::Warning => CheckResult::warn(subject, text),
    }
}

fn hooks(context: &CliContext) -> CheckResult {
    const SUBJECT: &str = "hooks";

    let (paths, environment) = (context.paths(), context.environment());
    let files = ClientSettingsFiles::new(environment, paths).read_all();
    let installed = hook_files::installed(&files, &paths.home);
    let is_active =
        |hook: &Hook| installed.iter().any(|it| it.hook == *hook && it.problem.is_none());
    let inactive: Vec<_> = Hook::ALL.into_iter().filter(|hook| !is_active(hook)).collect();
    if inactive.is_empty() {
        return CheckResult::ok(SUBJECT, "both Claude Code hooks are active");
    }
    if installed.is_empty() {
        return CheckResult::warn(
            SUBJECT,
            "not installed: run `ai-agent hooks install` if the policy needs them",
        );
    }
    let names = inactive.iter().map(|hook| hook.name()).collect::<Vec<_>>().join(" and ");
    let verb = if inactive.len() == 1 { "is" } else { "are" };
    CheckResult::fail(SUBJECT, format!("{names} {verb} not active: see `ai-agent hooks status`"))
}

/// Has the running agent deliver a test event.
pub(super) fn canary(state_dir: &Path) -> CheckResult {
    const SUBJECT: &str = "canary";

    match send_canary(state_dir) {
        Ok((id, took_ms)) => {
            CheckResult::ok(SUBJECT, format!("event {id} was acknowledged after {took_ms} ms"))
        }
        Err(error) => CheckResult::fail(
            SUBJECT,
            format!("not acknowledged within {}: {error}", Time(CANARY_TIMEOUT)),
        ),
    }
}

fn send_canary(state_dir: &Path) -> Result<(String, u64), RequestError> {
    let client = match connect(state_dir)? {
        Connection::Agent(client) => client,
        Connection::Stopped => return Err(RequestError::failed("no agent is running")),
        Connection::Unresponsive { error, .. } => {
            return Err(RequestError::failed(format!("the agent does not respond: {error}")));
        }
    };
    let within_ms = u64::try_from(CANARY_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
    let mut acknowledged = (String::new(), 0);
    client.send(&Request::Canary { within_ms }, CANARY_TIMEOUT + GRACE, &mut |response| {
        if let Response::CanaryAcknowledged { id, took_ms } = response {
            acknowledged = (id, took_ms);
        }
        Ok(())
    })?;
    Ok(acknowledged)
}
