//! Renders a status report for people: problems first, then one line for each subject.

use std::fmt::Display;

use siem_protocol::{
    Digest,
    agent_event::{AppliedConfig, ConfigProof, LayerHash, ManagedSummary, UpdateState},
    delivery::Acknowledged,
};

use super::{
    report::{HookStatus, Level, State, StatusReport},
    trust_text::trust_text,
};
use crate::{
    agent::{handle::Phase, status_file::ConfigReport},
    cli::{
        terminal::{Colours, duration, plain, short_hash, wrap},
        update::summary_text,
    },
    compliance::SignInState,
    control::status::{AccountStatus, ComplianceStatus, OutboxSummary, ReadingStatus, SinkStatus},
    pipeline::config_status::ConfigOrigin,
    platform::{SandboxStatus, Timestamp, service::ServiceStatus},
    text::counted,
};
use config_text::Size;

/// Width of the names in front of lines.
const NAME_WIDTH: usize = 12;
/// Width of the level in front of problems.
const LEVEL_WIDTH: usize = 6;

/// Renders the report.
pub(super) fn render(
    report: &StatusReport,
    now: Timestamp,
    colours: Colours,
    width: Option<usize>,
) -> String {
    let mut page = Page { text: String::new(), colours, width };
    page.heading(report);
    page.problems(report);
    let status = &report.status;
    let service = report.service.as_ref().map(ServiceStatus::summary);
    page.line("service", service.as_deref().unwrap_or("not installed"));
    page.line("state", &report.state_dir);
    if let Some(level) = &status.agent.log_level {
        page.line("log level", level);
    }
    if let Some(landlock) = &status.agent.landlock {
        page.line("landlock", &landlock_text(landlock));
    }
    if let Some(outbox) = &status.outbox {
        page.line("outbox", &outbox_text(outbox));
    }
    for sink in &status.sinks {
        page.line("sink", &sink_text(sink, report.state));
    }
    if let Some(device) = &status.device {
        page.line("device", &device.summary());
    }
    if let Some(update) = status.update.as_ref().filter(|it| it.state != UpdateState::Off) {
        page.line("update", &summary_text(update));
    }
    if let Some(reading) = &status.reading {
        page.line("reading", &reading_text(reading));
    }
    if let Some(config) = &status.config {
        page.config(config, now);
    }
    if let Some(compliance) = &status.compliance {
        page.compliance(compliance);
    }
    page.line("hooks", &hooks_text(&report.hooks));
    page.text
}

struct Page {
    text: String,
    colours: Colours,
    width: Option<usize>,
}

impl Page {
    /// Adds lines behind a name.
    fn line(&mut self, name: &str, text: &str) {
        let width = self.width.map(|width| width.saturating_sub(NAME_WIDTH));
        let lines = text.lines().flat_map(|line| wrap(&plain(line), width));
        for (at, line) in lines.enumerate() {
            let name = if at == 0 { name } else { "" };
            self.text.push_str(&self.colours.faint(&format!("{name:<NAME_WIDTH$}")));
            self.text.push_str(&line);
            self.text.push('\n');
        }
    }

    fn heading(&mut self, report: &StatusReport) {
        let pid = report.pid.map(|pid| format!(", PID {pid}")).unwrap_or_default();
        let agent = &report.status.agent;
        let (state, details) = match report.state {
            State::Running => {
                let mut details = pid;
                if let Some(uptime) = agent.uptime_seconds {
                    details += &format!(", up {}", duration(uptime));
                }
                if let Some(memory) = agent.memory_bytes {
                    details += &format!(", {} of memory", Size(memory));
                }
                match agent.phase {
                    Phase::Running => (self.colours.green("running"), details),
                    Phase::Starting => (self.colours.yellow("starting"), details),
                    Phase::Stopping => (self.colours.yellow("stopping"), details),
                }
            }
            State::Silent => (self.colours.red("not responding"), pid),
            State::Stopped => (self.colours.red("not running"), String::new()),
        };
        let version = Some(&*agent.version).filter(|version| !version.is_empty());
        let version = version.map(|version| format!(" {version}")).unwrap_or_default();
        self.text += &format!("ai-agent{version}: {state}{details}\n\n");
    }

    fn problems(&mut self, report: &StatusReport) {
        let width = self.width.map(|width| width.saturating_sub(LEVEL_WIDTH));
        for problem in &report.problems {
            let level = match problem.level {
                Level::Failing => self.colours.red("FAIL"),
                Level::Warning => self.colours.yellow("warn"),
            };
            let what = wrap(&plain(&problem.what), width);
            let remedy = wrap(&format!("→ {}", plain(&problem.remedy)), width);
            for (at, line) in what.iter().chain(&remedy).enumerate() {
                let level = if at == 0 { &*level } else { "    " };
                self.text += &format!("{level}  {line}\n");
            }
        }
        if !report.problems.is_empty() {
            self.text.push('\n');
        }
    }

    fn config(&mut self, config: &ConfigReport, now: Timestamp) {
        let ago = |at: &str| {
            let at = humantime::parse_rfc3339(at).ok();
            at.map(|at| format!(", {} ago", duration((now - at.into()).as_secs())))
                .unwrap_or_default()
        };
        let revision = |revision: &Option<String>| match revision {
            Some(revision) => format!("revision {revision}"),
            None => "no managed revision".to_owned(),
        };
        if let Some(applied) = &config.applied {
            let (revision, hash) = (revision(&applied.revision), short_hash(applied.hash));
            let mut text = format!("{revision}, hash {hash}, applied{}", ago(&applied.at));
            text += &hashes_text(applied);
            self.line("config", &text);
        }
        if let Some(attempted) = &config.attempted {
            let what = match attempted.from {
                ConfigOrigin::Files => "files".to_owned(),
                ConfigOrigin::Server => format!("{} from server", revision(&attempted.revision)),
            };
            self.line("attempted", &format!("{what}{}", ago(&attempted.at)));
        }
        if let Some(refused) = &config.refused {
            let from = match refused.from {
                ConfigOrigin::Files => "files",
                ConfigOrigin::Server => "server",
            };
            self.line("refused", &format!("from {from}{}: {}", ago(&refused.at), refused.reason));
        }
        if let Some(managed) = &config.managed {
            self.line("managed", &managed_text(managed));
        }
        if let Some(at) = &config.signed_at {
            self.line("server", &format!("last signed answer at {at}{}", ago(at)));
        }
    }

    fn compliance(&mut self, compliance: &ComplianceStatus) {
        if compliance.policy_since.is_none() {
            return self.line("compliance", "no policy yet");
        }
        if !compliance.restricts {
            return self.line("compliance", "the policy restricts no accounts");
        }
        for account in &compliance.accounts {
            let verdict = match (account.violations.len(), account.unknown.len()) {
                (0, 0) => self.colours.green("complies"),
                (0, _) => "no known violation".to_owned(),
                _ => self.colours.red("violates the policy"),
            };
            // The coloured part must keep its escapes, so only the rest is made plain.
            let text = plain(&format!("{}: {} ", account.program, account_text(account)));
            let name = self.colours.faint(&format!("{:<NAME_WIDTH$}", "compliance"));
            self.text += &format!("{name}{text}({verdict})\n");
        }
    }
}

/// Returns a line for the sections, and one for each layer, in which machines can be compared.
fn hashes_text(applied: &AppliedConfig) -> String {
    let section = |(name, hash): (&String, &Digest)| format!("{name}={}", short_hash(*hash));
    let sections: Vec<String> = applied.sections.iter().map(section).collect();
    let mut text = String::new();
    if !sections.is_empty() {
        text += &format!("\nsections: {}", sections.join(", "));
    }
    for LayerHash { layer, file, hash } in &applied.layers {
        let file = file.as_ref().map(|file| format!(" `{file}`")).unwrap_or_default();
        text += &format!("\nlayer {layer}{file}: {}", short_hash(*hash));
    }
    text
}

fn managed_text(managed: &ManagedSummary) -> String {
    match managed.authenticated_by {
        ConfigProof::Organisation => {
            let serial = managed.serial.unwrap_or_default();
            let expires = match (&managed.expires, managed.expired) {
                (Some(at), true) => format!(", out of date since {at}"),
                (Some(at), false) => format!(", expires at {at}"),
                (None, _) => String::new(),
            };
            format!("serial {serial}, signed by the organisation{expires}")
        }
        ConfigProof::SharedSecret => {
            "managed configuration is authenticated by the shared secret only".to_owned()
        }
        ConfigProof::Nothing => "managed configuration is not authenticated".to_owned(),
    }
}

/// Describes the restriction of a process.
pub(in crate::cli) fn landlock_text(status: &SandboxStatus) -> String {
    let SandboxStatus { active, abi, reason } = status;
    let abi = abi.map(|abi| format!(" (ABI {abi})")).unwrap_or_default();
    let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let state = if *active { "active" } else { "not active" };
    format!("{state}{abi}{reason}")
}

fn outbox_text(outbox: &OutboxSummary) -> String {
    let mut text = match outbox.entries {
        0 => "empty".to_owned(),
        count => counted(count, "entry queued", "entries queued"),
    };
    if let Some(oldest) = outbox.oldest_seconds {
        text += &format!(", the oldest for {}", duration(oldest));
    }
    text += &format!("; {} stored", Size(outbox.bytes));
    if let Some(max) = outbox.max_bytes {
        text += &format!(" of at most {}", Size(max));
    }
    if outbox.dead_letters > 0 {
        text += &format!("; {}", counted(outbox.dead_letters, "dead letter", "dead letters"));
    }
    text
}

fn sink_text(sink: &SinkStatus, state: State) -> String {
    let mut text = format!("{}: ", sink.name);
    text += &match (sink.entries, sink.acknowledged) {
        (0, 0) => "nothing to deliver yet".to_owned(),
        (0, last) => format!("everything acknowledged, up to {last}"),
        (count, last) => {
            let queued = counted(count, "entry queued", "entries queued");
            format!("{queued}, acknowledged up to {last}")
        }
    };
    if !sink.configured && state == State::Running {
        text += "; no longer configured";
    }
    match sink.last_acknowledgement_seconds {
        Some(seconds) => text += &format!("; last acknowledgement {} ago", duration(seconds)),
        None if state == State::Running => text += "; no acknowledgement since the start",
        None => {}
    }
    let mut detail = |name: &str, value: &dyn Display| text += &format!("\n{name} {value}");
    if let Some(destination) = &sink.destination {
        detail("to", destination);
    }
    if let Some(means) = sink.acknowledged_means {
        detail("acknowledged means:", &acknowledged_text(means, sink.unproven));
    }
    if let Some(trust) = &sink.trust {
        detail("trust:", &trust_text(trust));
    }
    if let Some(error) = &sink.last_error {
        let reason = error.reason.replace('\n', " ");
        detail("last error at", &format_args!("{}: {reason}", error.at));
    }
    if let Some(at) = &sink.retry_at {
        detail("retry at", at);
    }
    if sink.paced {
        text += "\nwaiting for its rate limit";
    }
    text
}

fn acknowledged_text(means: Acknowledged, unproven: u64) -> String {
    let means = match means {
        Acknowledged::Verified => "on disk, chain checked",
        Acknowledged::Indexed => "indexed",
        Acknowledged::Received => "received",
        Acknowledged::Nothing => "nothing",
    };
    match unproven {
        0 => means.to_owned(),
        count => format!("{means}; {count} unproven"),
    }
}

fn reading_text(reading: &ReadingStatus) -> String {
    if reading.silent_seconds.is_some() {
        return "not responding".to_owned();
    }
    let mut text = counted(reading.files, "file", "files");
    // An incomplete last line waits for its end, and is not a backlog.
    let backlog = reading.files_unread.saturating_sub(reading.files_incomplete);
    text += &match backlog {
        0 => ", all read".to_owned(),
        count => {
            let bytes = reading.unread_bytes.saturating_sub(reading.incomplete_bytes);
            format!(", {} unread in {count} of them", Size(bytes))
        }
    };
    if reading.files_incomplete > 0 {
        let lines =
            counted(reading.files_incomplete, "unfinished last line", "unfinished last lines");
        text += &format!(", {} in {lines}", Size(reading.incomplete_bytes));
    }
    if reading.unreadable > 0 {
        text += &format!(", {} unreadable", reading.unreadable);
    }
    if reading.held > 0 {
        text += &format!(", {} skipped", reading.held);
    }
    if reading.verifying {
        text += &match reading.verified_seconds {
            Some(seconds) => format!(", verified {} ago", duration(seconds)),
            None => ", not verified as a whole yet".to_owned(),
        };
    }
    if !reading.watching {
        text += "; changes are found by sweeps only";
    }
    for unreadable in &reading.problems {
        text += &format!("\n{}: {}", unreadable.path, unreadable.error);
    }
    text
}

fn account_text(account: &AccountStatus) -> String {
    match &account.standing {
        SignInState::SignedIn(who) => {
            let name = who.email.as_ref().or(who.organization.as_ref());
            name.or(who.account.as_ref()).cloned().unwrap_or("an account".to_owned())
        }
        SignInState::Key(name) => format!("{name} in place of an account"),
        SignInState::Unknown(why) => format!("unknown account: {why}"),
    }
}

fn hooks_text(hooks: &[HookStatus]) -> String {
    if hooks.is_empty() {
        return "none installed".to_owned();
    }
    let lines: Vec<String> = hooks
        .iter()
        .map(|hook| match &hook.problem {
            None => format!("{} is active", hook.name),
            Some(why) => format!("{} in `{}` {why}", hook.name, hook.path),
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use siem_protocol::agent_event::{AttemptedConfig, RefusedConfig};

    use super::*;
    use crate::{
        cli::status::report::Problem,
        compliance::account::SignedInAccount,
        control::status::{AgentStatus, LastError, ProcessStatus},
    };

    fn report() -> StatusReport {
        let agent = ProcessStatus {
            version: "1.2.3".into(),
            uptime_seconds: Some(3661),
            memory_bytes: Some(14 << 20),
            log_level: Some("info".into()),
            landlock: Some(SandboxStatus { active: true, abi: Some(7), reason: None }),
            phase: Phase::Running,
            ..ProcessStatus::default()
        };
        let outbox = OutboxSummary {
            entries: 12,
            bytes: 4096,
            max_bytes: Some(1 << 30),
            oldest_seconds: Some(90),
            dead_letters: 1,
            ..OutboxSummary::default()
        };
        let sink = SinkStatus {
            name: "siem".into(),
            destination: Some("https://siem.example.com/".into()),
            configured: true,
            acknowledged: 40,
            entries: 12,
            unproven: 3,
            acknowledged_means: Some(Acknowledged::Indexed),
            last_acknowledgement_seconds: Some(7),
            last_error: Some(LastError { reason: "503\n\x1b[2Jbusy".into(), at: "then".into() }),
            retry_at: Some("soon".into()),
            ..SinkStatus::default()
        };
        let reading = ReadingStatus {
            files: 3,
            files_unread: 2,
            unread_bytes: 2058,
            files_incomplete: 1,
            incomplete_bytes: 10,
            ..ReadingStatus::default()
        };
        let who =
            SignedInAccount { email: Some("a@example.com".into()), ..SignedInAccount::default() };
        let account = AccountStatus {
            program: "claude-code".into(),
            place: "/home/a/.claude.json".into(),
            standing: SignInState::SignedIn(who),
            violations: Vec::new(),
            remarks: Vec::new(),
            unknown: Vec::new(),
        };
        let compliance = ComplianceStatus {
            policy_since: Some("then".into()),
            restricts: true,
            accounts: vec![account],
            ..ComplianceStatus::default()
        };
        let hash = Digest::of(b"config");
        let revision = |name: &str| Some(name.to_owned());
        let from = ConfigOrigin::Server;
        let config = ConfigReport {
            applied: Some(AppliedConfig {
                hash,
                revision: revision("r7"),
                at: "1970-01-01T00:00:00Z".into(),
                sections: ["agent", "sink"].map(|it| (it.to_owned(), hash)).into(),
                layers: vec![
                    LayerHash { layer: "defaults".into(), file: None, hash: Digest::ZERO },
                    LayerHash { layer: "user".into(), file: Some("/home/a/c.toml".into()), hash },
                ],
            }),
            attempted: Some(AttemptedConfig {
                from,
                revision: revision("r8"),
                at: "1970-01-01T00:00:30Z".into(),
            }),
            refused: Some(RefusedConfig {
                from,
                reason: "`filters` is wrong".into(),
                at: "?".into(),
            }),
            signed_at: None,
            ..ConfigReport::default()
        };
        let status = AgentStatus {
            agent,
            outbox: Some(outbox),
            sinks: vec![sink],
            reading: Some(reading),
            config: Some(config),
            compliance: Some(compliance),
            ..AgentStatus::default()
        };
        let problems = vec![Problem {
            level: Level::Failing,
            what: "it burns".into(),
            remedy: "put it out".into(),
        }];
        let (state_dir, pid) = ("/state".into(), Some(7));
        StatusReport {
            state: State::Running,
            state_dir,
            pid,
            problems,
            status,
            ..StatusReport::default()
        }
    }

    #[test]
    fn problems_come_first_and_lines_are_in_columns() {
        let page = render(&report(), Timestamp(60_000), Colours::None, None);
        let expected = "\
ai-agent 1.2.3: running, PID 7, up 1 h 1 min, 14.0 MiB of memory

FAIL  it burns
      → put it out

service     not installed
state       /state
log level   info
landlock    active (ABI 7)
outbox      12 entries queued, the oldest for 1 min 30 s; 4.0 KiB stored of at most 1.0 GiB; 1 dead letter
sink        siem: 12 entries queued, acknowledged up to 40; last acknowledgement 7 s ago
            to https://siem.example.com/
            acknowledged means: indexed; 3 unproven
            last error at then: 503  [2Jbusy
            retry at soon
reading     3 files, 2.0 KiB unread in 1 of them, 10 B in 1 unfinished last line; changes are found by sweeps only
config      revision r7, hash b79606fb3afe, applied, 1 min ago
            sections: agent=b79606fb3afe, sink=b79606fb3afe
            layer defaults: 000000000000
            layer user `/home/a/c.toml`: b79606fb3afe
attempted   revision r8 from server, 30 s ago
refused     from server: `filters` is wrong
compliance  claude-code: a@example.com (complies)
hooks       none installed
";
        assert_eq!(page, expected);
    }

    #[test]
    fn heading_shows_the_phase() {
        for (phase, words) in [(Phase::Starting, "starting"), (Phase::Stopping, "stopping")] {
            let mut report = report();
            report.status.agent.phase = phase;
            let page = render(&report, Timestamp(0), Colours::None, None);
            assert!(page.starts_with(&format!("ai-agent 1.2.3: {words}, PID 7, ")), "{page}");
        }
    }

    /// Regression: a file name or a receiver's response could forge a status.
    #[test]
    fn only_colours_use_escape_sequences() {
        let escapes =
            |colours| render(&report(), Timestamp(0), colours, None).matches('\x1b').count();
        assert_eq!(escapes(Colours::None), 0);
        let page = render(&report(), Timestamp(0), Colours::Shown, None);
        assert_eq!(escapes(Colours::Shown), page.matches("\x1b[0m").count() * 2);
        assert!(page.contains("\x1b[32mrunning\x1b[0m") && page.contains("\x1b[1;31mFAIL"));
    }
}
