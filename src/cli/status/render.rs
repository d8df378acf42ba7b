//! What `status` shows to people: problems first, then line by line what is known.

use serde_json::Value;

use super::{
    report::{Account, Compliance, Hook, Level, Outbox, Phase, Reading, Report, Seen, Sink, State},
    words::span,
};
use crate::{
    compliance::SignInState,
    platform::{Timestamp, service},
    text::counted,
    units::Size,
};

/// How wide the names before lines are.
const NAMES: usize = 12;

/// Colours, where there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colours {
    Shown,
    None,
}

impl Colours {
    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Shown => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::None => text.to_owned(),
        }
    }

    fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn odd(self, text: &str) -> String {
        self.paint("33", text)
    }

    fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// Everything, as people read it.
pub(super) fn render(report: &Report, now: Timestamp, colours: Colours) -> String {
    let mut page = Page { text: String::new(), colours };
    page.head(report);
    page.problems(report);
    let Seen { agent, outbox, sinks, reading, config, compliance, .. } = &report.seen;
    let service = report.service.as_ref().map(service::ServiceStatus::summary);
    page.line("service", service.as_deref().unwrap_or("not installed"));
    page.line("state", &report.state_dir);
    if let Some(level) = &agent.log_level {
        page.line("logs at", level);
    }
    if let Some(outbox) = outbox {
        page.outbox(outbox);
    }
    for sink in sinks {
        page.sink(sink, report.state);
    }
    if let Some(reading) = reading {
        page.reading(reading);
    }
    page.config(config, now);
    if let Some(compliance) = compliance {
        page.compliance(compliance);
    }
    page.hooks(&report.hooks);
    page.text
}

struct Page {
    text: String,
    colours: Colours,
}

impl Page {
    /// A line with its name before it; what follows stands below it.
    fn line(&mut self, name: &str, what: &str) {
        for (at, line) in what.lines().enumerate() {
            let name = if at == 0 { name } else { "" };
            let padded = format!("{name:<NAMES$}");
            self.text.push_str(&self.colours.faint(&padded));
            self.text.push_str(&plain(line));
            self.text.push('\n');
        }
    }

    fn head(&mut self, report: &Report) {
        let pid = report.pid.map(|pid| format!(", PID {pid}")).unwrap_or_default();
        let agent = &report.seen.agent;
        let (word, rest) = match report.state {
            State::Running => {
                let mut rest = pid;
                if let Some(up) = agent.uptime_seconds {
                    rest += &format!(", up {}", span(up));
                }
                if let Some(memory) = agent.memory_bytes {
                    rest += &format!(", {} of memory", Size(memory));
                }
                match agent.phase {
                    Phase::Running => (self.colours.good("running"), rest),
                    Phase::Starting => (self.colours.odd("starting"), rest),
                    Phase::Stopping => (self.colours.odd("stopping"), rest),
                }
            }
            State::Silent => (self.colours.bad("does not answer"), pid),
            State::Stopped => (self.colours.bad("not running"), String::new()),
        };
        let version = Some(&*agent.version).filter(|version| !version.is_empty());
        let version = version.map(|version| format!(" {version}")).unwrap_or_default();
        self.text += &format!("ai-agent{version}: {word}{rest}\n\n");
    }

    fn problems(&mut self, report: &Report) {
        for problem in &report.problems {
            let mark = match problem.level {
                Level::Failing => self.colours.bad("FAILING"),
                Level::Warning => self.colours.odd("WARNING"),
            };
            self.text += &format!("{mark}  {}\n", plain(&problem.what));
            self.text +=
                &format!("         {} {}\n", self.colours.faint("→"), plain(&problem.remedy));
        }
        if !report.problems.is_empty() {
            self.text.push('\n');
        }
    }

    fn outbox(&mut self, outbox: &Outbox) {
        let mut text = match outbox.entries {
            0 => "empty".to_owned(),
            count => counted(count, "entry waits", "entries wait"),
        };
        if let Some(oldest) = outbox.oldest_seconds {
            text += &format!(", the oldest for {}", span(oldest));
        }
        text += &format!("; {} of entries", Size(outbox.bytes));
        if let Some(most) = outbox.max_bytes {
            text += &format!(" of at most {}", Size(most));
        }
        if outbox.dead_letters > 0 {
            text += &format!("; {}", counted(outbox.dead_letters, "dead letter", "dead letters"));
        }
        self.line("outbox", &text);
    }

    fn sink(&mut self, sink: &Sink, state: State) {
        let mut text = format!("{}: ", sink.name);
        text += &match (sink.entries, sink.acknowledged) {
            (0, 0) => "nothing to deliver yet".to_owned(),
            (0, last) => format!("everything acknowledged, up to {last}"),
            (count, last) => format!(
                "{}, acknowledged up to {last}",
                counted(count, "entry waits", "entries wait")
            ),
        };
        if !sink.configured && state == State::Running {
            text += "; not configured any more";
        }
        match sink.last_acknowledgement_seconds {
            Some(seconds) => text += &format!("; last acknowledgement {} ago", span(seconds)),
            None if state == State::Running => text += "; no acknowledgement since the start",
            None => {}
        }
        if let Some(destination) = &sink.destination {
            text += &format!("\n  to {destination}");
        }
        if let Some(error) = &sink.last_error {
            text += &format!("\n  last error at {}: {}", error.at, error.reason.replace('\n', " "));
        }
        if let Some(at) = &sink.retry_at {
            text += &format!("\n  retry at {at}");
        }
        if sink.paced {
            text += "\n  waits until it may send more";
        }
        self.line("sink", &text);
    }

    fn reading(&mut self, reading: &Reading) {
        if reading.silent_seconds.is_some() {
            return self.line("reading", "does not answer");
        }
        let mut text = counted(reading.files, "file", "files");
        text += &match reading.files_unread {
            0 => ", all read".to_owned(),
            count => format!(", {} unread in {count} of them", Size(reading.unread_bytes)),
        };
        if reading.unreadable > 0 {
            text += &format!(", {} unreadable", reading.unreadable);
        }
        if reading.held > 0 {
            text += &format!(", {} left alone", reading.held);
        }
        if !reading.watching {
            text += "; changes are found by sweeps alone";
        }
        for unreadable in &reading.problems {
            text += &format!("\n  {}: {}", unreadable.path, unreadable.error);
        }
        self.line("reading", &text);
    }

    fn config(&mut self, config: &Value, now: Timestamp) {
        let ago = |fact: &Value| {
            let at = fact.as_str().and_then(|at| humantime::parse_rfc3339(at).ok());
            at.map(|at| format!(", {} ago", span(now.since(at.into()).as_secs())))
                .unwrap_or_default()
        };
        let text = |fact: &Value| fact.as_str().unwrap_or_default().to_owned();
        let revision = |fact: &Value| match fact["revision"].as_str() {
            Some(revision) => format!("revision {revision}"),
            None => "no managed revision".to_owned(),
        };
        let applied = &config["applied"];
        if applied.is_object() {
            let hash: String = text(&applied["hash"]).chars().take(12).collect();
            self.line(
                "config",
                &format!("{}, hash {hash}, applied{}", revision(applied), ago(&applied["at"])),
            );
        }
        let attempted = &config["attempted"];
        if attempted.is_object() {
            let what = match attempted["from"].as_str() {
                Some("files") => "what is in files".to_owned(),
                _ => format!("{} from server", revision(attempted)),
            };
            self.line("attempted", &format!("{what}{}", ago(&attempted["at"])));
        }
        let refused = &config["refused"];
        if refused.is_object() {
            let (from, why) = (text(&refused["from"]), text(&refused["reason"]));
            self.line("refused", &format!("from {from}{}: {why}", ago(&refused["at"])));
        }
        if config["signed_at"].is_string() {
            let at = &config["signed_at"];
            self.line("server", &format!("last signed answer at {}{}", text(at), ago(at)));
        }
    }

    fn compliance(&mut self, compliance: &Compliance) {
        if compliance.policy_since.is_none() {
            return self.line("compliance", "no policy is known yet");
        }
        if !compliance.restricts {
            return self.line("compliance", "the policy restricts nobody");
        }
        for account in &compliance.accounts {
            let Account { program, standing, violations, unknown, .. } = account;
            let who = match standing {
                SignInState::SignedIn(who) => {
                    let name = who.email.as_ref().or(who.organization.as_ref());
                    name.or(who.account.as_ref()).cloned().unwrap_or("an account".to_owned())
                }
                SignInState::Key(name) => format!("{name} in place of an account"),
                SignInState::Unknown(why) => format!("nobody known: {why}"),
            };
            let verdict = match (violations.len(), unknown.len()) {
                (0, 0) => self.colours.good("complies"),
                (0, _) => "nothing is known that breaks the policy".to_owned(),
                _ => self.colours.bad("breaks the policy"),
            };
            // Painted words stay as they are: the rest is made plain here.
            let text = format!("{program}: {} ", plain(&who));
            let padded = format!("{:<NAMES$}", "compliance");
            self.text += &format!("{}{text}({verdict})\n", self.colours.faint(&padded));
        }
    }

    fn hooks(&mut self, hooks: &[Hook]) {
        if hooks.is_empty() {
            return self.line("hooks", "none installed");
        }
        let lines: Vec<String> = hooks
            .iter()
            .map(|hook| match &hook.trouble {
                None => format!("{} is called", hook.name),
                Some(why) => format!("{} in `{}` {why}", hook.name, hook.path),
            })
            .collect();
        self.line("hooks", &lines.join("\n"));
    }
}

/// A receiver's words and names of files must not move the cursor.
fn plain(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { ' ' } else { it }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cli::status::report::{Agent, LastError, Problem},
        compliance::account::SignedInAccount,
    };

    fn report() -> Report {
        let agent = Agent {
            version: "1.2.3".into(),
            uptime_seconds: Some(3661),
            memory_bytes: Some(14 << 20),
            log_level: Some("info".into()),
            phase: Phase::Running,
            ..Agent::default()
        };
        let outbox = Outbox {
            entries: 12,
            bytes: 4096,
            max_bytes: Some(1 << 30),
            oldest_seconds: Some(90),
            dead_letters: 1,
            ..Outbox::default()
        };
        let sink = Sink {
            name: "siem".into(),
            destination: Some("https://siem.example.com/".into()),
            configured: true,
            acknowledged: 40,
            entries: 12,
            last_acknowledgement_seconds: Some(7),
            last_error: Some(LastError { reason: "503\n\x1b[2Jbusy".into(), at: "then".into() }),
            retry_at: Some("soon".into()),
            ..Sink::default()
        };
        let reading = Reading { files: 3, files_unread: 1, unread_bytes: 10, ..Reading::default() };
        let who =
            SignedInAccount { email: Some("a@example.com".into()), ..SignedInAccount::default() };
        let account = Account {
            program: "claude-code".into(),
            place: "/home/a/.claude.json".into(),
            standing: SignInState::SignedIn(who),
            violations: Vec::new(),
            remarks: Vec::new(),
            unknown: Vec::new(),
        };
        let compliance = Compliance {
            policy_since: Some("then".into()),
            restricts: true,
            accounts: vec![account],
            ..Compliance::default()
        };
        let config = json!({
            "applied": { "hash": "0123456789abcdef", "revision": "r7", "at": "1970-01-01T00:00:00Z" },
            "attempted": { "from": "server", "revision": "r8", "at": "1970-01-01T00:00:30Z" },
            "refused": { "from": "server", "reason": "`filters` is wrong", "at": "?" },
        });
        let seen = Seen {
            agent,
            outbox: Some(outbox),
            sinks: vec![sink],
            reading: Some(reading),
            config,
            compliance: Some(compliance),
            ..Seen::default()
        };
        let problems = vec![Problem {
            level: Level::Failing,
            what: "it burns".into(),
            remedy: "put it out".into(),
        }];
        let (state_dir, pid) = ("/state".into(), Some(7));
        Report { state: State::Running, state_dir, pid, problems, seen, ..Report::default() }
    }

    #[test]
    fn a_page_has_problems_first_and_its_lines_in_columns() {
        let page = render(&report(), Timestamp(60_000), Colours::None);
        let expected = "\
ai-agent 1.2.3: running, PID 7, up 1 h 1 min, 14.0 MiB of memory

FAILING  it burns
         → put it out

service     not installed
state       /state
logs at     info
outbox      12 entries wait, the oldest for 1 min 30 s; 4.0 KiB of entries of at most 1.0 GiB; 1 dead letter
sink        siem: 12 entries wait, acknowledged up to 40; last acknowledgement 7 s ago
              to https://siem.example.com/
              last error at then: 503  [2Jbusy
              retry at soon
reading     3 files, 10 B unread in 1 of them; changes are found by sweeps alone
config      revision r7, hash 0123456789ab, applied, 1 min ago
attempted   revision r8 from server, 30 s ago
refused     from server: `filters` is wrong
compliance  claude-code: a@example.com (complies)
hooks       none installed
";
        assert_eq!(page, expected);
    }

    #[test]
    fn what_it_is_at_stands_first() {
        for (phase, words) in [(Phase::Starting, "starting"), (Phase::Stopping, "stopping")] {
            let mut report = report();
            report.seen.agent.phase = phase;
            let page = render(&report, Timestamp(0), Colours::None);
            assert!(page.starts_with(&format!("ai-agent 1.2.3: {words}, PID 7, ")), "{page}");
        }
    }

    /// A file's name or a receiver's words could have painted a status of their own.
    #[test]
    fn nothing_but_colours_moves_the_cursor() {
        let escapes = |colours| render(&report(), Timestamp(0), colours).matches('\x1b').count();
        assert_eq!(escapes(Colours::None), 0);
        let page = render(&report(), Timestamp(0), Colours::Shown);
        assert_eq!(escapes(Colours::Shown), page.matches("\x1b[0m").count() * 2);
        assert!(page.contains("\x1b[32mrunning\x1b[0m") && page.contains("\x1b[1;31mFAILING"));
    }
}
