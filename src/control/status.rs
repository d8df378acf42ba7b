//! Status of the agent, as sent to `ai-agent status` and, for the most part, printed by `--json`. The
//! members are listed in `docs/status.md`.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use siem_protocol::{
    agent_event::{ReceiverTrust, UpdateSummary},
    delivery::Acknowledged,
    managed::Action,
};

use super::device_status::DeviceStatus;
use crate::{
    agent::{handle::Phase, status_file::ConfigReport},
    compliance::{PolicyFinding, SignInState, policy::UndecidedRule},
    config::LoadedConfig,
    pipeline::{
        delivery::SinkProgress,
        ingest::IngestStatus,
        outbox::{OutboxStats, SinkStats},
    },
    platform::{SandboxStatus, Timestamp, bounded::BoundedCalls},
};

/// Number of unreadable paths that are listed; all are counted.
const MAX_PATHS: usize = 20;

/// Status of the agent; if none is running, only the parts that are available without it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AgentStatus {
    pub(crate) agent: ProcessStatus,
    pub(crate) outbox: Option<OutboxSummary>,
    /// Reason why the outbox cannot be inspected.
    pub(crate) outbox_error: Option<String>,
    pub(crate) sinks: Vec<SinkStatus>,
    pub(crate) reading: Option<ReadingStatus>,
    /// Configurations in force, tried and refused last, as in heartbeats.
    pub(crate) config: Option<ConfigReport>,
    pub(crate) compliance: Option<ComplianceStatus>,
    /// Key of the device; `None` if it is not known.
    pub(crate) device: Option<DeviceStatus>,
    /// Updates of the agent; `None` if their settings are not known.
    pub(crate) update: Option<UpdateSummary>,
    /// Paths whose file system does not answer.
    pub(crate) hanging: Vec<HangingPath>,
}

/// A directory or file whose file system does not answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HangingPath {
    pub(crate) path: String,
    /// Time for which a call has not returned.
    pub(crate) seconds: u64,
}

impl HangingPath {
    /// All paths whose file system does not answer.
    pub(super) fn all(calls: &BoundedCalls) -> Vec<Self> {
        let place = |(path, time): (PathBuf, Duration)| Self {
            path: path.display().to_string(),
            seconds: time.as_secs(),
        };
        calls.silent().into_iter().map(place).collect()
    }
}

/// The agent's process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ProcessStatus {
    pub(crate) pid: u32,
    pub(crate) version: String,
    pub(crate) started_at: Option<String>,
    pub(crate) uptime_seconds: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) log_level: Option<String>,
    pub(crate) phase: Phase,
    /// Restriction of writes and programs; `None` on systems without.
    pub(crate) landlock: Option<SandboxStatus>,
    /// Longest time that the configuration lets an entry wait for others.
    pub(crate) flush_interval_seconds: u64,
}

/// Entries that are queued for delivery.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct OutboxSummary {
    pub(crate) epoch: String,
    pub(crate) last_seq: u64,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) file_bytes: u64,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) oldest_seconds: Option<u64>,
    pub(crate) dead_letters: u64,
}

/// Status of a sink.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SinkStatus {
    pub(crate) name: String,
    pub(crate) destination: Option<String>,
    /// True if it is configured; one that is not keeps its position in the outbox.
    pub(crate) configured: bool,
    pub(crate) acknowledged: u64,
    pub(crate) entries: u64,
    pub(crate) oldest_seconds: Option<u64>,
    pub(crate) delivered: u64,
    /// Number of entries since the start that count as delivered without proof.
    pub(crate) unproven: u64,
    /// Meaning of an acknowledgement; `None` without an agent.
    pub(crate) acknowledged_means: Option<Acknowledged>,
    pub(crate) last_acknowledgement: Option<String>,
    pub(crate) last_acknowledgement_seconds: Option<u64>,
    pub(crate) last_error: Option<LastError>,
    /// Reason why nothing is delivered at present.
    #[serde(rename = "trouble")]
    pub(crate) problem: Option<String>,
    /// True if a person may have to act, since waiting alone may not help.
    pub(crate) held: bool,
    pub(crate) retry_at: Option<String>,
    pub(crate) retry_seconds: Option<u64>,
    /// True if it waits only for its rate limit.
    pub(crate) paced: bool,
    /// State of the device at the receiver; `None` if the sink does not sign, or until the receiver
    /// has answered.
    pub(crate) trust: Option<ReceiverTrust>,
}

/// The last error of a sink.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LastError {
    pub(crate) reason: String,
    pub(crate) at: String,
}

/// Status of reading.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ReadingStatus {
    /// Time since reading last responded; `None` when it responds.
    pub(crate) silent_seconds: Option<u64>,
    pub(crate) files: u64,
    pub(crate) files_unread: u64,
    pub(crate) unread_bytes: u64,
    /// Those of the unread files that lack only the end of their last line, and its bytes so far.
    pub(crate) files_incomplete: u64,
    pub(crate) incomplete_bytes: u64,
    /// True if the system notifies of changes; otherwise sweeps alone find them.
    pub(crate) watching: bool,
    /// Number of files and directories that cannot be read at present.
    pub(crate) unreadable: u64,
    /// Some of them.
    pub(crate) problems: Vec<UnreadablePath>,
    /// Files that a stage failed on.
    pub(crate) held: u64,
    /// True if files are compared with what was read from them.
    pub(crate) verifying: bool,
    /// Time at which all files were last compared, and the time since then.
    pub(crate) verified_at: Option<String>,
    pub(crate) verified_seconds: Option<u64>,
    /// Resource that is exhausted: `outbox` or `disk`.
    #[serde(rename = "lack")]
    pub(crate) shortage: Option<String>,
    /// Reason why nothing can be stored, and since when.
    pub(crate) not_stored: Option<StoreFailure>,
}

/// Reason why nothing can be stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct StoreFailure {
    pub(crate) reason: String,
    pub(crate) seconds: u64,
}

/// A file or directory that cannot be read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct UnreadablePath {
    pub(crate) path: String,
    pub(crate) error: String,
}

/// Signed-in accounts, and how they compare with the policy.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ComplianceStatus {
    /// Time since which the policy is in force; `None` when there was never one.
    pub(crate) policy_since: Option<String>,
    /// True if it restricts accounts.
    pub(crate) restricts: bool,
    /// Action on a violation.
    pub(crate) action: Option<Action>,
    /// True if hooks have a message to show, or a policy to enforce.
    pub(crate) needs_hooks: bool,
    pub(crate) accounts: Vec<AccountStatus>,
    /// Reason why the policy is not known.
    pub(crate) error: Option<String>,
}

/// The account that is signed in to one program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AccountStatus {
    pub(crate) program: String,
    pub(crate) place: String,
    pub(crate) standing: SignInState,
    pub(crate) violations: Vec<PolicyFinding>,
    pub(crate) remarks: Vec<PolicyFinding>,
    pub(crate) unknown: Vec<UndecidedRule>,
}

impl AgentStatus {
    /// Sets the outbox and the positions of its sinks.
    pub(crate) fn set_outbox(&mut self, stats: OutboxStats, loaded: &LoadedConfig, now: Timestamp) {
        let configured = &loaded.settings.pipeline.sinks;
        let age = |sealed: Option<Timestamp>| sealed.map(|at| (now - at).as_secs());
        let oldest = stats.sinks.iter().filter_map(|sink| sink.oldest).min();
        self.outbox = Some(OutboxSummary {
            epoch: stats.epoch,
            last_seq: stats.last_seq,
            entries: stats.entries,
            bytes: stats.bytes,
            file_bytes: stats.file_bytes,
            max_bytes: Some(loaded.settings.outbox.max_bytes),
            oldest_seconds: age(oldest),
            dead_letters: stats.dead_letters,
        });
        let sink = |sink: SinkStats| SinkStatus {
            configured: configured.iter().any(|table| table.name == sink.name),
            oldest_seconds: age(sink.oldest),
            name: sink.name,
            destination: sink.destination,
            acknowledged: sink.acknowledged,
            entries: sink.entries,
            ..SinkStatus::default()
        };
        self.sinks = stats.sinks.into_iter().map(sink).collect();
    }

    /// Assigns the state of the device at receivers to the sinks that deliver to them.
    pub(crate) fn assign_trust(&mut self) {
        let receivers = self.device.iter().flat_map(|device| &device.receivers);
        for trust in receivers {
            let is_there =
                |sink: &&mut SinkStatus| sink.destination.as_ref() == Some(&trust.endpoint);
            for sink in self.sinks.iter_mut().filter(is_there) {
                sink.trust = Some(trust.clone());
            }
        }
    }

    /// Adds the progress of the running sinks.
    pub(super) fn add_progress(&mut self, all: &[(String, SinkProgress)], now: Timestamp) {
        for (name, progress) in all {
            match self.sinks.iter_mut().find(|sink| sink.name == *name) {
                Some(sink) => sink.add_progress(progress, now),
                None => {
                    let (name, configured) = (name.clone(), true);
                    let mut sink = SinkStatus { name, configured, ..SinkStatus::default() };
                    sink.add_progress(progress, now);
                    self.sinks.push(sink);
                }
            }
        }
    }
}

impl SinkStatus {
    fn add_progress(&mut self, progress: &SinkProgress, now: Timestamp) {
        let SinkProgress { acknowledged_at, retry_at, last_error, .. } = progress;
        self.delivered = progress.delivered;
        self.unproven = progress.unproven;
        self.acknowledged_means = progress.acknowledged_means;
        self.last_acknowledgement = acknowledged_at.map(|at| at.to_string());
        self.last_acknowledgement_seconds = acknowledged_at.map(|at| (now - at).as_secs());
        self.last_error = last_error
            .as_ref()
            .map(|(reason, at)| LastError { reason: reason.clone(), at: at.to_string() });
        self.problem.clone_from(&progress.problem);
        self.held = progress.is_held;
        self.retry_at = retry_at.map(|at| at.to_string());
        self.retry_seconds = retry_at.map(|at| (at - now).as_secs());
        self.paced = progress.rate_limited_until.is_some();
    }
}

impl ReadingStatus {
    /// Status of reading that responds.
    pub(super) fn new(status: &IngestStatus, now: Timestamp) -> Self {
        let mut all = Self { watching: true, held: status.held as u64, ..Self::default() };
        let verifying = status.sources.iter().filter(|(_, survey)| survey.is_verifying);
        let verified: Vec<_> = verifying.map(|(_, survey)| survey.verified_at).collect();
        all.verifying = !verified.is_empty();
        // The oldest of them; none if a source has not verified its files yet.
        let verified = verified.into_iter().min().flatten();
        all.verified_at = verified.map(|at| at.to_string());
        all.verified_seconds = verified.map(|at| (now - at).as_secs());
        for (_, survey) in &status.sources {
            all.files += survey.files as u64;
            all.files_unread += survey.files_unread as u64;
            all.unread_bytes = all.unread_bytes.saturating_add(survey.bytes_unread);
            all.files_incomplete += survey.files_incomplete as u64;
            all.incomplete_bytes = all.incomplete_bytes.saturating_add(survey.bytes_incomplete);
            // A source without files has nothing to watch.
            all.watching &= survey.is_watching || survey.sweeps == 0;
            all.unreadable += survey.unreadable.len() as u64;
            let room = MAX_PATHS.saturating_sub(all.problems.len());
            let listed = survey.unreadable.iter().take(room);
            all.problems.extend(listed.map(|(path, error)| UnreadablePath {
                path: path.display().to_string(),
                error: error.clone(),
            }));
        }
        all.shortage = status.shortage.map(|shortage| shortage.as_str().to_owned());
        all.not_stored = status.store_failure.as_ref().map(|failure| StoreFailure {
            reason: failure.cause.clone(),
            seconds: (now - failure.since).as_secs(),
        });
        all
    }

    /// Status of reading that does not respond.
    pub(super) fn silent(since: Option<Duration>) -> Self {
        let silent_seconds = Some(since.unwrap_or_default().as_secs());
        Self { silent_seconds, ..Self::default() }
    }
}
