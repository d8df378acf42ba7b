//! Problems in a status report: a pure function of the report.
//!
//! An agent is healthy if it makes progress. One that waits for a receiver that will never accept
//! anything is not healthy, even if its process is running.

use siem_protocol::agent_event::{Transport, UpdateState};

use super::{
    report::{Level, Problem, State, StatusReport},
    trust_text::trust_problem,
};
use crate::{
    cli::{terminal::duration, update::summary_text},
    control::status::{HangingPath, ReadingStatus, SinkStatus},
    pipeline::config_status::ConfigOrigin,
    text::counted,
};

/// Seconds without progress that are tolerated: one or two retries, or a slow disk.
const PATIENCE: u64 = 60;

/// Problems in a report, failures first.
pub(super) fn problems(report: &StatusReport) -> Vec<Problem> {
    let mut problems = Vec::new();
    process(report, &mut problems);
    let status = &report.status;
    if let Some(error) = &status.outbox_error {
        problems.push(failing(
            format!("cannot inspect the outbox: {error}"),
            "check its disk: it may be full, slow or failing",
        ));
    }
    for sink in &status.sinks {
        problems.extend(delivery(sink, report));
        // The reason of a held delivery says it already.
        if !sink.held {
            problems.extend(trust_problem(sink, status.device.as_ref()));
        }
    }
    problems.extend(device(report));
    if let Some(letters) = status.outbox.as_ref().map(|outbox| outbox.dead_letters)
        && letters > 0
    {
        problems.push(warning(
            format!("{} rejected for good", counted(letters, "entry was", "entries were")),
            "`ai-agent deadletter list` shows why; `retry` sends them again, `purge` deletes them",
        ));
    }
    problems.extend(status.hanging.iter().map(hanging));
    if let Some(reading) = &status.reading {
        self::reading(reading, &status.hanging, &mut problems);
    }
    configuration(report, &mut problems);
    compliance(report, &mut problems);
    problems.extend(update(report));
    problems.sort_by_key(|problem| problem.level);
    problems
}

fn process(report: &StatusReport, problems: &mut Vec<Problem>) {
    let (what, remedy) = match report.state {
        State::Running => return,
        State::Stopped if report.is_busy => (
            format!(
                "no agent is running: nothing is read or delivered; {} is using the outbox",
                report.pid.map_or("a command".to_owned(), |pid| format!("a command (PID {pid})"))
            ),
            "wait until it has finished, then start the agent: `ai-agent start` or `ai-agent run`",
        ),
        State::Stopped => (
            "no agent is running: nothing is read or delivered".to_owned(),
            "start it: `ai-agent start` if it is installed as a service, or `ai-agent run`",
        ),
        State::Silent => (
            format!(
                "{} holds the state directory and does not respond: {}",
                report.pid.map_or("a process".to_owned(), |pid| format!("process {pid}")),
                report.silence.as_deref().unwrap_or("unknown reason")
            ),
            "if it hangs, stop it and start it again",
        ),
    };
    problems.push(failing(what, remedy));
}

fn delivery(sink: &SinkStatus, report: &StatusReport) -> Option<Problem> {
    let name = &sink.name;
    if !sink.configured {
        return Some(warning(
            format!(
                "sink `{name}` is no longer configured, and keeps {} in the outbox",
                counted(sink.entries, "entry", "entries")
            ),
            &format!("configure it again, or drop them with `ai-agent outbox forget-sink {name}`"),
        ));
    }
    if report.state != State::Running {
        return None;
    }
    let retry = match sink.retry_seconds {
        Some(seconds @ 1..) => format!("next attempt in {}", duration(seconds)),
        _ => "the next attempt is in progress".to_owned(),
    };
    let stalled = is_stalled(sink, report);
    match &sink.problem {
        Some(problem) if sink.held || stalled => Some(failing(
            format!("sink `{name}` delivers nothing: {problem}"),
            &format!("fix what it reports; {retry}"),
        )),
        Some(problem) => {
            Some(warning(format!("delivery to sink `{name}` was postponed: {problem}"), &retry))
        }
        None if stalled => Some(failing(
            format!(
                "delivery to sink `{name}` is stalled without an error: {}, the oldest for {}",
                counted(sink.entries, "entry queued", "entries queued"),
                duration(sink.oldest_seconds.unwrap_or_default())
            ),
            "set `ai-agent log-level debug` and see its log; a restart loses nothing",
        )),
        None => None,
    }
}

/// Returns true if an entry is overdue, and nothing was acknowledged of late.
fn is_stalled(sink: &SinkStatus, report: &StatusReport) -> bool {
    let agent = &report.status.agent;
    let due = agent.flush_interval_seconds + PATIENCE;
    let is_overdue = sink.oldest_seconds.is_some_and(|seconds| seconds > due);
    let since_start = agent.uptime_seconds.unwrap_or_default();
    let is_still = sink.last_acknowledgement_seconds.unwrap_or(since_start) > PATIENCE;
    sink.entries > 0 && is_overdue && is_still && !sink.paced
}

/// Problem of a running agent without a key. A stopped one makes a key when it starts.
fn device(report: &StatusReport) -> Option<Problem> {
    let problem = report.status.device.as_ref()?.problem.as_ref()?;
    (report.state == State::Running).then(|| {
        failing(
            format!("this device has no key to sign with: {problem}"),
            "correct that; the agent inspects the key again by itself",
        )
    })
}

/// Release that was refused or did not work.
fn update(report: &StatusReport) -> Option<Problem> {
    let update = report.status.update.as_ref()?;
    let has_failed = matches!(update.state, UpdateState::Failed | UpdateState::RolledBack);
    has_failed.then(|| {
        warning(
            format!("release {}", summary_text(update)),
            "`ai-agent update status` shows the details; this version keeps running",
        )
    })
}

fn hanging(place: &HangingPath) -> Problem {
    let HangingPath { path, seconds } = place;
    warning(
        format!(
            "`{path}` does not answer: a call of its file system has not returned for {}",
            duration(*seconds)
        ),
        "reconnect or unmount its file system, or answer the permission dialog; the agent reads it \
         again once the call has returned",
    )
}

fn reading(reading: &ReadingStatus, hanging: &[HangingPath], problems: &mut Vec<Problem>) {
    if let Some(silent) = reading.silent_seconds {
        let what = format!("reading has not responded for {}", duration(silent));
        problems.push(match silent > PATIENCE {
            true => failing(
                what,
                "check whether a disk or a network home hangs; a restart loses nothing",
            ),
            false => warning(what, "it may be busy: check again"),
        });
    }
    if let Some(shortage) = &reading.shortage {
        let (what, remedy) = match &**shortage {
            "disk" => (
                "reading is paused: the disk of the state directory is nearly full",
                "free space there",
            ),
            _ => (
                "reading is paused: the outbox is full",
                "it resumes when sinks acknowledge entries: check that the receiver is reachable",
            ),
        };
        problems.push(failing(what.to_owned(), remedy));
    }
    if let Some(not_stored) = &reading.not_stored {
        let what = format!("cannot store what is read: {}", not_stored.reason);
        let remedy = "the agent keeps trying, and nothing is lost: repair the disk";
        problems.push(match not_stored.seconds > PATIENCE {
            true => failing(what, remedy),
            false => warning(what, remedy),
        });
    }
    // Those that do not answer are problems of their own.
    let is_hanging = |path: &str| hanging.iter().any(|place| place.path == path);
    if let Some(first) = reading.problems.iter().find(|problem| !is_hanging(&problem.path)) {
        problems.push(warning(
            format!(
                "cannot read {}, such as `{}`: {}",
                counted(reading.unreadable, "file or directory", "files or directories"),
                first.path,
                first.error
            ),
            "make them readable for the agent's user; the agent tries again",
        ));
    }
    if reading.held > 0 {
        problems.push(warning(
            format!(
                "{} skipped, since a stage failed on them",
                counted(reading.held, "file is", "files are")
            ),
            "the log names the stage; a reload or a restart tries again",
        ));
    }
}

fn configuration(report: &StatusReport, problems: &mut Vec<Problem>) {
    let Some(config) = &report.status.config else { return };
    let managed = config.managed.as_ref().filter(|managed| managed.expired);
    if let Some(expires) = managed.and_then(|managed| managed.expires.as_ref()) {
        problems.push(warning(
            format!("the managed configuration is out of date since {expires}, and stays in force"),
            "sign one with a higher `serial` and a later `expires`",
        ));
    }
    if config.transport == Some(Transport::Plain) {
        problems.push(warning(
            "entries leave this machine unencrypted".to_owned(),
            "set an `https` endpoint, or TLS for syslog; `agent.require_tls` makes it an error",
        ));
    }
    let Some(refused) = &config.refused else { return };
    let whose = match refused.from {
        ConfigOrigin::Server => "the server's configuration",
        ConfigOrigin::Files => "the configuration in files",
    };
    problems.push(warning(
        format!("{whose} was refused, the previous one stays in force: {}", refused.reason),
        "fix it, then run `ai-agent reload`",
    ));
}

fn compliance(report: &StatusReport, problems: &mut Vec<Problem>) {
    let Some(compliance) = &report.status.compliance else { return };
    if let Some(error) = &compliance.error {
        problems.push(warning(
            format!("the policy cannot be read: {error}"),
            "the agent writes it again when it starts",
        ));
    }
    for account in &compliance.accounts {
        for finding in &account.violations {
            problems.push(warning(
                format!(
                    "{} violates the policy: {} is {}",
                    account.program, finding.rule, finding.found
                ),
                &match finding.permitted.as_slice() {
                    [] => "sign in with an account of your organisation".to_owned(),
                    permitted => format!("permitted: {}", permitted.join(", ")),
                },
            ));
        }
    }
    let is_active = report.hooks.iter().any(|hook| hook.problem.is_none());
    if compliance.needs_hooks && !is_active {
        problems.push(warning(
            "Claude Code hooks are not active: users will not see the policy message".to_owned(),
            "`ai-agent hooks status` shows why, `ai-agent hooks install` adds them",
        ));
    }
}

fn failing(what: String, remedy: &str) -> Problem {
    Problem { level: Level::Failing, what, remedy: remedy.to_owned() }
}

fn warning(what: String, remedy: &str) -> Problem {
    Problem { level: Level::Warning, what, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use siem_protocol::{
        Digest,
        agent_event::{ConfigProof, ManagedSummary, RefusedConfig},
    };

    use super::*;
    use crate::{
        agent::status_file::ConfigReport,
        control::status::{
            AgentStatus, OutboxSummary, ProcessStatus, StoreFailure, UnreadablePath,
        },
    };

    fn running(sink: SinkStatus) -> StatusReport {
        let agent = ProcessStatus {
            uptime_seconds: Some(7200),
            flush_interval_seconds: 300,
            ..ProcessStatus::default()
        };
        let sink = SinkStatus { name: "siem".into(), configured: true, ..sink };
        let status = AgentStatus { agent, sinks: vec![sink], ..AgentStatus::default() };
        StatusReport { state: State::Running, status, ..StatusReport::default() }
    }

    fn waiting(oldest_seconds: u64) -> SinkStatus {
        SinkStatus { entries: 7, oldest_seconds: Some(oldest_seconds), ..SinkStatus::default() }
    }

    fn levels(report: &StatusReport) -> Vec<Level> {
        problems(report).into_iter().map(|problem| problem.level).collect()
    }

    /// Regression: an agent counted as healthy because its process was running.
    #[test]
    fn stalled_delivery_fails_and_scheduled_delivery_does_not() {
        let table: [(&str, SinkStatus, &[Level]); 8] = [
            ("nothing is queued", SinkStatus::default(), &[]),
            ("waits to fill a batch", waiting(299), &[]),
            ("is due just now", waiting(360), &[]),
            ("is stalled", waiting(361), &[Level::Failing]),
            (
                "makes progress with a backlog",
                SinkStatus { last_acknowledgement_seconds: Some(60), ..waiting(90_000) },
                &[],
            ),
            (
                "made progress long ago",
                SinkStatus { last_acknowledgement_seconds: Some(61), ..waiting(90_000) },
                &[Level::Failing],
            ),
            ("is limited by its rate", SinkStatus { paced: true, ..waiting(90_000) }, &[]),
            (
                "was postponed a moment ago",
                SinkStatus { problem: Some("503".into()), ..waiting(5) },
                &[Level::Warning],
            ),
        ];
        for (what, sink, expected) in table {
            assert_eq!(levels(&running(sink)), expected, "{what}");
        }
        // An agent that has just started has time to deliver.
        let mut young = running(waiting(90_000));
        young.status.agent.uptime_seconds = Some(60);
        assert_eq!(levels(&young), []);
    }

    #[test]
    fn a_held_sink_fails_at_once_with_its_reason() {
        let held = SinkStatus {
            problem: Some("401: is the token right?".into()),
            held: true,
            ..waiting(1)
        };
        let found = problems(&running(SinkStatus { retry_seconds: Some(90), ..held }));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].level, Level::Failing);
        assert_eq!(found[0].what, "sink `siem` delivers nothing: 401: is the token right?");
        assert_eq!(found[0].remedy, "fix what it reports; next attempt in 1 min 30 s");
    }

    #[test]
    fn stalled_reading_fails() {
        let with = |reading: ReadingStatus| {
            let mut report = running(SinkStatus::default());
            report.status.reading = Some(reading);
            levels(&report)
        };
        let silent =
            |seconds| ReadingStatus { silent_seconds: Some(seconds), ..ReadingStatus::default() };
        let shortage =
            |what: &str| ReadingStatus { shortage: Some(what.into()), ..ReadingStatus::default() };
        let not_stored = |seconds| ReadingStatus {
            not_stored: Some(StoreFailure { reason: "no".into(), seconds }),
            ..ReadingStatus::default()
        };
        assert_eq!(with(ReadingStatus::default()), []);
        assert_eq!(with(silent(60)), [Level::Warning]);
        assert_eq!(with(silent(61)), [Level::Failing]);
        assert_eq!(with(shortage("disk")), [Level::Failing]);
        assert_eq!(with(shortage("outbox")), [Level::Failing]);
        assert_eq!(with(not_stored(60)), [Level::Warning]);
        assert_eq!(with(not_stored(61)), [Level::Failing]);
        let unreadable = UnreadablePath { path: "/p".into(), error: "no".into() };
        let problems = vec![unreadable];
        assert_eq!(
            with(ReadingStatus { unreadable: 1, problems, ..ReadingStatus::default() }),
            [Level::Warning]
        );
        assert_eq!(with(ReadingStatus { held: 1, ..ReadingStatus::default() }), [Level::Warning]);
    }

    #[test]
    fn expired_config_and_plain_transport_are_warnings() {
        let mut report = running(SinkStatus::default());
        let managed = |expired| ManagedSummary {
            hash: Digest::ZERO,
            authenticated_by: ConfigProof::Organisation,
            serial: Some(7),
            issued: None,
            expires: Some("2026-01-01T00:00:00Z".into()),
            expired,
        };
        for (expired, transport, expected) in [
            (false, Transport::Tls, 0),
            (false, Transport::Local, 0),
            (true, Transport::Tls, 1),
            (false, Transport::Plain, 1),
            (true, Transport::Plain, 2),
        ] {
            let (managed, transport) = (Some(managed(expired)), Some(transport));
            report.status.config =
                Some(ConfigReport { managed, transport, ..ConfigReport::default() });
            assert_eq!(levels(&report), vec![Level::Warning; expected]);
        }
    }

    #[test]
    fn failures_come_first_and_each_problem_has_a_remedy() {
        let mut report = running(SinkStatus { configured: false, ..waiting(5) });
        report.status.sinks[0].configured = false;
        report.status.outbox = Some(OutboxSummary { dead_letters: 2, ..OutboxSummary::default() });
        let (from, reason) = (ConfigOrigin::Server, "`filters` is wrong".to_owned());
        let refused = Some(RefusedConfig { from, reason, at: String::new() });
        report.status.config = Some(ConfigReport { refused, ..ConfigReport::default() });
        report.status.outbox_error = Some("no".into());
        let found = problems(&report);
        let levels: Vec<Level> = found.iter().map(|problem| problem.level).collect();
        assert_eq!(levels, [Level::Failing, Level::Warning, Level::Warning, Level::Warning]);
        assert!(found.iter().all(|problem| !problem.remedy.is_empty()));
        let all = found.iter().map(|problem| &*problem.what).collect::<Vec<_>>().join("\n");
        for words in ["2 entries were rejected for good", "`filters` is wrong", "keeps 7 entries"] {
            assert!(all.contains(words), "{words}: {all}");
        }
        let stopped = StatusReport::default();
        assert_eq!(problems(&stopped)[0].level, Level::Failing);
        let busy = StatusReport { is_busy: true, pid: Some(7), ..stopped };
        assert!(problems(&busy)[0].what.contains("a command (PID 7)"));
    }
}
