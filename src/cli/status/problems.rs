//! What a person should look at: a pure function of what is known.
//!
//! To be alive is to get on. An agent that waits for a receiver that will never take anything is as
//! good as none, however well its process feels.

use super::{
    report::{Level, Problem, Reading, Report, Sink, State},
    words::span,
};
use crate::text::counted;

/// How long what should be on its way may stand still: a retry or two, a slow disk.
const PATIENCE: u64 = 60;

/// What is wrong, the worst first.
pub(super) fn problems(report: &Report) -> Vec<Problem> {
    let mut problems = Vec::new();
    process(report, &mut problems);
    let seen = &report.seen;
    if let Some(error) = &seen.outbox_error {
        problems.push(failing(
            format!("the outbox cannot be looked at: {error}"),
            "look for its disk: is it full, slow or failing?",
        ));
    }
    for sink in &seen.sinks {
        problems.extend(delivery(sink, report));
    }
    if let Some(letters) = seen.outbox.as_ref().map(|outbox| outbox.dead_letters)
        && letters > 0
    {
        problems.push(warning(
            format!("{} refused for good", counted(letters, "entry was", "entries were")),
            "`ai-agent deadletter list` says why; `retry` sends them again, `purge` deletes them",
        ));
    }
    if let Some(reading) = &seen.reading {
        read(reading, &mut problems);
    }
    configuration(report, &mut problems);
    compliance(report, &mut problems);
    problems.sort_by_key(|problem| problem.level);
    problems
}

fn process(report: &Report, problems: &mut Vec<Problem>) {
    let (what, remedy) = match report.state {
        State::Running => return,
        State::Stopped if report.is_busy => (
            format!(
                "no agent runs: nothing is read or delivered; {} is at work on the outbox",
                report.pid.map_or("a command".to_owned(), |pid| format!("a command (PID {pid})"))
            ),
            "once that has ended, start the agent: `ai-agent start`, or `ai-agent run`",
        ),
        State::Stopped => (
            "no agent runs: nothing is read or delivered".to_owned(),
            "start it: `ai-agent start` where it is installed as a service, or `ai-agent run`",
        ),
        State::Silent => (
            format!(
                "{} holds the state directory and does not answer: {}",
                report.pid.map_or("a process".to_owned(), |pid| format!("the process {pid}")),
                report.silence.as_deref().unwrap_or("nobody knows why")
            ),
            "when it hangs, end it and start it again",
        ),
    };
    problems.push(failing(what, remedy));
}

fn delivery(sink: &Sink, report: &Report) -> Option<Problem> {
    let name = &sink.name;
    if !sink.configured {
        return Some(warning(
            format!(
                "sink `{name}` is not configured any more, and keeps {} in the outbox",
                counted(sink.entries, "entry", "entries")
            ),
            &format!("configure it again, or `ai-agent outbox forget-sink {name}` gives them up"),
        ));
    }
    if report.state != State::Running {
        return None;
    }
    let retry = match sink.retry_seconds {
        Some(seconds @ 1..) => format!("it is tried again in {}", span(seconds)),
        _ => "it is being tried again".to_owned(),
    };
    let stalled = is_stalled(sink, report);
    match &sink.trouble {
        Some(trouble) if sink.held || stalled => Some(failing(
            format!("sink `{name}` delivers nothing: {trouble}"),
            &format!("see what it says; {retry}"),
        )),
        Some(trouble) => {
            Some(warning(format!("delivery to sink `{name}` was postponed: {trouble}"), &retry))
        }
        None if stalled => Some(failing(
            format!(
                "delivery to sink `{name}` stands still: {}, the oldest for {}, and nothing says why",
                counted(sink.entries, "entry waits", "entries wait"),
                span(sink.oldest_seconds.unwrap_or_default())
            ),
            "its log says more with `ai-agent log-level debug`; a restart loses nothing",
        )),
        None => None,
    }
}

/// Whether what should have been delivered long ago is not, and nothing else was meanwhile.
fn is_stalled(sink: &Sink, report: &Report) -> bool {
    let agent = &report.seen.agent;
    let due = agent.flush_interval_seconds + PATIENCE;
    let has_waited = sink.oldest_seconds.is_some_and(|seconds| seconds > due);
    let since_start = agent.uptime_seconds.unwrap_or_default();
    let stands_still = sink.last_acknowledgement_seconds.unwrap_or(since_start) > PATIENCE;
    sink.entries > 0 && has_waited && stands_still && !sink.paced
}

fn read(reading: &Reading, problems: &mut Vec<Problem>) {
    if let Some(silent) = reading.silent_seconds {
        let what = format!("reading has not answered for {}", span(silent));
        problems.push(match silent > PATIENCE {
            true => failing(what, "is a disk or a network home hanging? A restart loses nothing"),
            false => warning(what, "it may be busy: look again"),
        });
    }
    if let Some(lack) = &reading.lack {
        let (what, remedy) = match &**lack {
            "disk" => {
                ("reading waits: the disk of the state directory is nearly full", "make room there")
            }
            _ => (
                "reading waits: the outbox is full",
                "it goes on as sinks take what is in it: is the receiver reached?",
            ),
        };
        problems.push(failing(what.to_owned(), remedy));
    }
    if let Some(not_stored) = &reading.not_stored {
        let what = format!("what is read cannot be stored: {}", not_stored.reason);
        let remedy = "it is tried again and again, and the files keep it: mend the disk";
        problems.push(match not_stored.seconds > PATIENCE {
            true => failing(what, remedy),
            false => warning(what, remedy),
        });
    }
    if let Some(first) = reading.problems.first() {
        problems.push(warning(
            format!(
                "{} cannot be read, `{}` among them: {}",
                counted(reading.unreadable, "file or directory", "files or directories"),
                first.path,
                first.error
            ),
            "make them readable for the agent's user; they are tried again",
        ));
    }
    if reading.held > 0 {
        problems.push(warning(
            format!(
                "{} left alone, since a stage failed on it",
                counted(reading.held, "file is", "files are")
            ),
            "its log names the stage; a reload or a restart tries them again",
        ));
    }
}

fn configuration(report: &Report, problems: &mut Vec<Problem>) {
    let refused = &report.seen.config["refused"];
    if let Some(reason) = refused["reason"].as_str() {
        let whose = match refused["from"].as_str() {
            Some("server") => "the server's configuration",
            _ => "the configuration in files",
        };
        problems.push(warning(
            format!("{whose} was refused, and what was in force stays: {reason}"),
            "mend it, and `ai-agent reload` takes it up at once",
        ));
    }
}

fn compliance(report: &Report, problems: &mut Vec<Problem>) {
    let Some(compliance) = &report.seen.compliance else { return };
    if let Some(error) = &compliance.error {
        problems.push(warning(
            format!("the policy cannot be read: {error}"),
            "the agent writes it anew when it starts",
        ));
    }
    for account in &compliance.accounts {
        for finding in &account.violations {
            problems.push(warning(
                format!(
                    "{} breaks the policy: {} is {}",
                    account.program, finding.rule, finding.found
                ),
                &match finding.permitted.as_slice() {
                    [] => "sign in with an account of your organisation".to_owned(),
                    permitted => format!("permitted is {}", permitted.join(", ")),
                },
            ));
        }
    }
    let is_called = report.hooks.iter().any(|hook| hook.trouble.is_none());
    if compliance.needs_hooks && !is_called {
        problems.push(warning(
            "Claude Code does not call ai-agent: nobody sees the policy's words".to_owned(),
            "`ai-agent hooks status` says why, `ai-agent hooks install` adds them",
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
    use serde_json::json;

    use super::{
        super::report::{Agent, NotStored, Outbox, Seen, Unreadable},
        *,
    };

    fn running(sink: Sink) -> Report {
        let agent =
            Agent { uptime_seconds: Some(7200), flush_interval_seconds: 300, ..Agent::default() };
        let sink = Sink { name: "siem".into(), configured: true, ..sink };
        let seen = Seen { agent, sinks: vec![sink], ..Seen::default() };
        Report { state: State::Running, seen, ..Report::default() }
    }

    fn waiting(oldest_seconds: u64) -> Sink {
        Sink { entries: 7, oldest_seconds: Some(oldest_seconds), ..Sink::default() }
    }

    fn levels(report: &Report) -> Vec<Level> {
        problems(report).into_iter().map(|problem| problem.level).collect()
    }

    /// A process that is there was taken for an agent that works.
    #[test]
    fn delivery_that_stands_still_fails_and_one_that_waits_its_time_does_not() {
        let table: [(&str, Sink, &[Level]); 8] = [
            ("nothing waits", Sink::default(), &[]),
            ("waits to fill a batch", waiting(299), &[]),
            ("is due just now", waiting(360), &[]),
            ("stands still", waiting(361), &[Level::Failing]),
            (
                "gets on with a backlog",
                Sink { last_acknowledgement_seconds: Some(60), ..waiting(90_000) },
                &[],
            ),
            (
                "got on long ago",
                Sink { last_acknowledgement_seconds: Some(61), ..waiting(90_000) },
                &[Level::Failing],
            ),
            ("may send no more yet", Sink { paced: true, ..waiting(90_000) }, &[]),
            (
                "was postponed a moment ago",
                Sink { trouble: Some("503".into()), ..waiting(5) },
                &[Level::Warning],
            ),
        ];
        for (what, sink, expected) in table {
            assert_eq!(levels(&running(sink)), expected, "{what}");
        }
        // One that has just begun is given its time.
        let mut young = running(waiting(90_000));
        young.seen.agent.uptime_seconds = Some(60);
        assert_eq!(levels(&young), []);
    }

    #[test]
    fn what_waiting_does_not_mend_fails_at_once_and_says_so() {
        let held =
            Sink { trouble: Some("401: is the token right?".into()), held: true, ..waiting(1) };
        let found = problems(&running(Sink { retry_seconds: Some(90), ..held }));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].level, Level::Failing);
        assert_eq!(found[0].what, "sink `siem` delivers nothing: 401: is the token right?");
        assert_eq!(found[0].remedy, "see what it says; it is tried again in 1 min 30 s");
    }

    #[test]
    fn reading_that_does_not_get_on_fails() {
        let with = |reading: Reading| {
            let mut report = running(Sink::default());
            report.seen.reading = Some(reading);
            levels(&report)
        };
        let silent = |seconds| Reading { silent_seconds: Some(seconds), ..Reading::default() };
        let lack = |lack: &str| Reading { lack: Some(lack.into()), ..Reading::default() };
        let not_stored = |seconds| Reading {
            not_stored: Some(NotStored { reason: "no".into(), seconds }),
            ..Reading::default()
        };
        assert_eq!(with(Reading::default()), []);
        assert_eq!(with(silent(60)), [Level::Warning]);
        assert_eq!(with(silent(61)), [Level::Failing]);
        assert_eq!(with(lack("disk")), [Level::Failing]);
        assert_eq!(with(lack("outbox")), [Level::Failing]);
        assert_eq!(with(not_stored(60)), [Level::Warning]);
        assert_eq!(with(not_stored(61)), [Level::Failing]);
        let unreadable = Unreadable { path: "/p".into(), error: "no".into() };
        let problems = vec![unreadable];
        assert_eq!(
            with(Reading { unreadable: 1, problems, ..Reading::default() }),
            [Level::Warning]
        );
        assert_eq!(with(Reading { held: 1, ..Reading::default() }), [Level::Warning]);
    }

    #[test]
    fn the_worst_comes_first_and_each_says_what_to_do() {
        let mut report = running(Sink { configured: false, ..waiting(5) });
        report.seen.sinks[0].configured = false;
        report.seen.outbox = Some(Outbox { dead_letters: 2, ..Outbox::default() });
        report.seen.config =
            json!({ "refused": { "from": "server", "reason": "`filters` is wrong" } });
        report.seen.outbox_error = Some("no".into());
        let found = problems(&report);
        let levels: Vec<Level> = found.iter().map(|problem| problem.level).collect();
        assert_eq!(levels, [Level::Failing, Level::Warning, Level::Warning, Level::Warning]);
        assert!(found.iter().all(|problem| !problem.remedy.is_empty()));
        let all = found.iter().map(|problem| &*problem.what).collect::<Vec<_>>().join("\n");
        for words in ["2 entries were refused for good", "`filters` is wrong", "keeps 7 entries"] {
            assert!(all.contains(words), "{words}: {all}");
        }
        let stopped = Report::default();
        assert_eq!(problems(&stopped)[0].level, Level::Failing);
        let busy = Report { is_busy: true, pid: Some(7), ..stopped };
        assert!(problems(&busy)[0].what.contains("a command (PID 7)"));
    }
}
