//! What `status` knows, as it travels and as `--json` prints it: see `docs/status.md`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use siem_protocol::managed::Action;

use crate::{
    compliance::{PolicyFinding, account::SignInState, policy::UndecidedRule},
    config::LoadedConfig,
    logging as log_level,
    pipeline::{
        config_status::ConfigStatus,
        delivery::SinkProgress,
        ingest,
        outbox::{self, OutboxStats},
    },
    platform::{Timestamp, memory, service},
};

/// The version of [`Report`]: another when a member goes or means something else.
pub(super) const VERSION: u32 = 1;
/// So many paths with problems are shown; others are counted.
const MOST_PATHS: usize = 20;

/// All that `status` knows.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) at: String,
    pub(super) state_dir: String,
    pub(super) state: State,
    /// The process that holds the state directory.
    pub(super) pid: Option<u32>,
    /// Whether that is a command at work on the store of an agent that does not run.
    pub(super) is_busy: bool,
    /// Why it does not answer.
    pub(super) silence: Option<String>,
    /// What a person should look at.
    pub(super) problems: Vec<Problem>,
    /// What the agent says of itself; without one, what can be known without it.
    pub(super) seen: Seen,
    pub(super) hooks: Vec<Hook>,
    /// The service of this user, where one is installed.
    pub(super) service: Option<service::ServiceStatus>,
}

impl Report {
    /// What `--json` prints.
    pub(super) fn json(&self) -> Value {
        let Self { seen, .. } = self;
        json!({
            "version": VERSION,
            "at": self.at,
            "state": self.state,
            "state_dir": self.state_dir,
            "pid": self.pid,
            "problems": self.problems,
            "agent": (self.state == State::Running).then_some(&seen.agent),
            "outbox": seen.outbox,
            "outbox_error": seen.outbox_error,
            "sinks": seen.sinks,
            "reading": seen.reading,
            "config": seen.config,
            "compliance": seen.compliance,
            "hooks": self.hooks,
            "service": self.service,
        })
    }
}

/// Whether an agent runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// It runs and answers.
    Running,
    /// Somebody holds its state directory and does not answer.
    Silent,
    /// None runs.
    #[default]
    Stopped,
}

/// Something that a person should look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    pub(super) level: Level,
    /// What is wrong.
    pub(super) what: String,
    /// What to do about it.
    #[serde(rename = "do")]
    pub(super) remedy: String,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// The agent does not do what it is there for; `check --strict` fails.
    Failing,
    /// It does, and somebody should look.
    Warning,
}

/// What the agent that runs says of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Seen {
    pub(crate) agent: Agent,
    pub(crate) outbox: Option<Outbox>,
    /// Why the outbox can't be looked at.
    pub(crate) outbox_error: Option<String>,
    pub(crate) sinks: Vec<Sink>,
    pub(crate) reading: Option<Reading>,
    /// What became of configurations, as in heartbeats.
    pub(crate) config: Value,
    pub(crate) compliance: Option<Compliance>,
}

/// The agent's process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Agent {
    pub(crate) pid: u32,
    pub(crate) version: String,
    pub(crate) started_at: Option<String>,
    pub(crate) uptime_seconds: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) log_level: Option<String>,
    pub(crate) phase: Phase,
    /// How long an entry may wait for others, by the configuration.
    pub(crate) flush_interval_seconds: u64,
}

/// What the agent is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// It begins, or begins again.
    #[default]
    Starting,
    /// It reads and delivers.
    Running,
    /// It has been asked to end, and stores and delivers what it can.
    Stopping,
}

/// What waits for delivery.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Outbox {
    pub(crate) epoch: String,
    pub(crate) last_seq: u64,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) file_bytes: u64,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) oldest_seconds: Option<u64>,
    pub(crate) dead_letters: u64,
}

/// How a sink is doing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sink {
    pub(crate) name: String,
    pub(crate) destination: Option<String>,
    /// Whether it is configured; one that is not keeps its place in the outbox.
    pub(crate) configured: bool,
    pub(crate) acknowledged: u64,
    pub(crate) entries: u64,
    pub(crate) oldest_seconds: Option<u64>,
    pub(crate) delivered: u64,
    pub(crate) last_acknowledgement: Option<String>,
    pub(crate) last_acknowledgement_seconds: Option<u64>,
    pub(crate) last_error: Option<LastError>,
    /// Why nothing is delivered at present.
    pub(crate) trouble: Option<String>,
    /// Whether waiting alone may not mend that.
    pub(crate) held: bool,
    pub(crate) retry_at: Option<String>,
    pub(crate) retry_seconds: Option<u64>,
    /// Whether it waits only until it may send more.
    pub(crate) paced: bool,
}

/// What went wrong last.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LastError {
    pub(crate) reason: String,
    pub(crate) at: String,
}

/// How reading stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Reading {
    /// For how long reading has not answered; none where it does.
    pub(crate) silent_seconds: Option<u64>,
    pub(crate) files: u64,
    pub(crate) files_unread: u64,
    pub(crate) unread_bytes: u64,
    /// Whether the system hints at changes; without that, sweeps alone find them.
    pub(crate) watching: bool,
    /// How many files and directories can't be read at present.
    pub(crate) unreadable: u64,
    /// Some of them.
    pub(crate) problems: Vec<Unreadable>,
    /// Files that a stage failed on.
    pub(crate) held: u64,
    /// What there is no room in: `outbox` or `disk`.
    pub(crate) lack: Option<String>,
    /// Why nothing can be stored, and for how long.
    pub(crate) not_stored: Option<NotStored>,
}

/// Why nothing can be stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct NotStored {
    pub(crate) reason: String,
    pub(crate) seconds: u64,
}

/// What can't be read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Unreadable {
    pub(crate) path: String,
    pub(crate) error: String,
}

/// Who is signed in, and what the policy says of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Compliance {
    /// Since when the policy is in force; none where none was ever known.
    pub(crate) policy_since: Option<String>,
    /// Whether it restricts who may be signed in.
    pub(crate) restricts: bool,
    /// What it does about a violation.
    pub(crate) action: Option<Action>,
    /// Whether there is anything in it for hooks to say or to ask for.
    pub(crate) needs_hooks: bool,
    pub(crate) accounts: Vec<Account>,
    /// Why that is not known.
    pub(crate) error: Option<String>,
}

/// Who is signed in to one program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) program: String,
    pub(crate) place: String,
    pub(crate) standing: SignInState,
    pub(crate) violations: Vec<PolicyFinding>,
    pub(crate) remarks: Vec<PolicyFinding>,
    pub(crate) unknown: Vec<UndecidedRule>,
}

/// A hook that a settings file names.
#[derive(Debug, Serialize)]
pub(super) struct Hook {
    pub(super) name: String,
    pub(super) path: String,
    /// Why it is not called; none where it is.
    pub(super) trouble: Option<String>,
}

impl Agent {
    /// This process.
    pub(crate) fn new(started_at: Timestamp, now: Timestamp) -> Self {
        Self {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Some(started_at.to_string()),
            uptime_seconds: Some(now.since(started_at).as_secs()),
            memory_bytes: memory::resident(),
            log_level: log_level::change(None).ok(),
            phase: Phase::Starting,
            flush_interval_seconds: 0,
        }
    }
}

impl Seen {
    /// An agent that has not begun yet.
    pub(crate) fn new(agent: Agent, loaded: &LoadedConfig, facts: &ConfigStatus) -> Self {
        let flush_interval_seconds = loaded.settings.shipping.flush_interval.as_secs();
        Self {
            agent: Agent { flush_interval_seconds, ..agent },
            config: json!(facts),
            ..Self::default()
        }
    }

    /// What waits, and for whom.
    pub(crate) fn take_outbox(
        &mut self,
        waiting: OutboxStats,
        loaded: &LoadedConfig,
        now: Timestamp,
    ) {
        let tables = &loaded.settings.pipeline.sinks;
        let age = |sealed: Option<Timestamp>| sealed.map(|at| now.since(at).as_secs());
        let oldest = waiting.sinks.iter().filter_map(|place| place.oldest).min();
        self.outbox = Some(Outbox {
            epoch: waiting.epoch,
            last_seq: waiting.last_seq,
            entries: waiting.entries,
            bytes: waiting.bytes,
            file_bytes: waiting.file_bytes,
            max_bytes: Some(loaded.settings.outbox.max_bytes),
            oldest_seconds: age(oldest),
            dead_letters: waiting.dead_letters,
        });
        let sink = |place: outbox::SinkStats| Sink {
            configured: tables.iter().any(|table| table.name == place.name),
            oldest_seconds: age(place.oldest),
            name: place.name,
            destination: place.destination,
            acknowledged: place.acknowledged,
            entries: place.entries,
            ..Sink::default()
        };
        self.sinks = waiting.sinks.into_iter().map(sink).collect();
    }

    /// How the sinks are doing.
    pub(crate) fn take_progress(&mut self, all: &[(String, SinkProgress)], now: Timestamp) {
        for (name, progress) in all {
            let at = self.sinks.iter().position(|sink| sink.name == *name);
            let at = at.unwrap_or_else(|| {
                let (name, configured) = (name.clone(), true);
                self.sinks.push(Sink { name, configured, ..Sink::default() });
                self.sinks.len() - 1
            });
            let sink = &mut self.sinks[at];
            let SinkProgress { acknowledged_at, retry_at, last_error, .. } = progress;
            sink.delivered = progress.delivered;
            sink.last_acknowledgement = acknowledged_at.map(|at| at.to_string());
            sink.last_acknowledgement_seconds = acknowledged_at.map(|at| now.since(at).as_secs());
            sink.last_error = last_error
                .as_ref()
                .map(|(reason, at)| LastError { reason: reason.clone(), at: at.to_string() });
            sink.trouble.clone_from(&progress.problem);
            sink.held = progress.is_held;
            sink.retry_at = retry_at.map(|at| at.to_string());
            sink.retry_seconds = retry_at.map(|at| at.since(now).as_secs());
            sink.paced = progress.rate_limited_until.is_some();
        }
    }
}

impl Reading {
    /// How it stands.
    pub(crate) fn new(reading: &ingest::IngestStatus, now: Timestamp) -> Self {
        let mut all = Self { watching: true, held: reading.held as u64, ..Self::default() };
        for (_, survey) in &reading.sources {
            all.files += survey.files as u64;
            all.files_unread += survey.files_unread as u64;
            all.unread_bytes += survey.bytes_unread;
            // Those without files have nothing to watch.
            all.watching &= survey.is_watching || survey.sweeps == 0;
            all.unreadable += survey.unreadable.len() as u64;
            for unreadable in &survey.unreadable {
                if all.problems.len() < MOST_PATHS {
                    all.problems.push(Unreadable {
                        path: unreadable.path.display().to_string(),
                        error: unreadable.error.clone(),
                    });
                }
            }
        }
        all.lack = reading.shortage.map(|lack| lack.as_str().to_owned());
        all.not_stored = reading.store_failure.as_ref().map(|failure| NotStored {
            reason: failure.cause.clone(),
            seconds: now.since(failure.since).as_secs(),
        });
        all
    }

    /// It does not answer.
    pub(crate) fn silent(since: Option<Duration>) -> Self {
        let silent_seconds = Some(since.unwrap_or_default().as_secs());
        Self { silent_seconds, ..Self::default() }
    }
}
