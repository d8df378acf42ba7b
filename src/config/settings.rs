//! Typed and validated settings.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use metrics_endpoint::{AddressError, MetricsAddress};
use schemars::JsonSchema;
use serde::{Deserialize, de::IgnoredAny};
use siem_protocol::{
    Digest,
    managed::{Action, Compliance, OnError, OnUnknown},
    minisign::OrganisationKey,
};

use super::{
    error::ConfigError,
    inline_tests::TestTable,
    managed::ManagedAllowlist,
    merged::Merged,
    options::OptionTable,
    organisation_keys::parse_keys,
    sink::SinkSettings,
    update::{UpdateSettings, UpdateTable},
};
use crate::platform::Paths;
use config_text::{Size, Time};

/// All settings, with defaults filled in and ranges checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Settings of the agent itself.
    pub agent: AgentSettings,
    /// Size and interval of batches.
    pub shipping: ShippingSettings,
    /// Limits of the outbox.
    pub outbox: OutboxSettings,
    /// Address at which metrics are served; none if they are not.
    pub metrics_listen: Option<MetricsAddress>,
    /// Stages of the pipeline.
    pub pipeline: PipelineSettings,
    /// Policy on accounts; an absent rule restricts nothing.
    pub compliance: Compliance,
    /// True if the server's answers must be signed.
    pub require_signature: bool,
    /// Keys of the organisation, one of which must have signed a managed configuration; none if that
    /// is not required.
    pub managed_keys: Vec<OrganisationKey>,
    /// Updates of the agent by itself.
    pub update: UpdateSettings,
    /// Hash of the configuration that these settings are from.
    pub hash: Digest,
}

/// Settings of the agent itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSettings {
    /// State directory; absolute.
    pub state_dir: PathBuf,
    /// Interval between requests for the managed configuration; 60 s to a day.
    pub poll_interval: Duration,
    /// Format of the log file.
    pub log_format: LogFormat,
    /// True if a sink that sends unencrypted to another machine is an error.
    pub require_tls: bool,
}

/// Format of the log file, one line per event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Size and interval of batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShippingSettings {
    /// Maximum number of entries in a batch, 1 to 10,000.
    pub batch_size: usize,
    /// Maximum size of a batch in bytes before compression, 64 KiB to 32 MiB; a larger entry is
    /// sent alone.
    pub max_batch_bytes: u64,
    /// Maximum time that an entry waits, at most a day; zero sends at once.
    pub flush_interval: Duration,
}

impl Default for ShippingSettings {
    /// Returns the values of `config/default.toml`.
    fn default() -> Self {
        Self { batch_size: 1000, max_batch_bytes: 4 << 20, flush_interval: Duration::from_secs(5) }
    }
}

impl ShippingSettings {
    /// Returns the bytes available for entries in a batch, beside its header line. Dead letters
    /// that the header reports are not included.
    #[must_use]
    pub fn room(&self) -> u64 {
        const HEADER: u64 = 2 << 10;
        self.max_batch_bytes.saturating_sub(HEADER)
    }
}

/// Limits of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxSettings {
    /// Size in bytes at which reading stops; at least 32 MiB.
    pub max_bytes: u64,
    /// Maximum size of dead letters in bytes; at least 1 MiB.
    pub max_dead_letter_bytes: u64,
}

/// Stages that run, each kind in the order in which a record passes them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PipelineSettings {
    /// Sources.
    pub sources: Vec<StageTable>,
    /// Filters.
    pub filters: Vec<StageTable>,
    /// Enrichers.
    pub enrichers: Vec<StageTable>,
    /// Sinks.
    pub sinks: Vec<StageTable>,
}

/// Configuration of one stage.
#[derive(Clone, Debug, PartialEq)]
pub struct StageTable {
    /// Name of the instance: that of its table and in the list.
    pub name: String,
    /// Type; the name if the table does not set one.
    pub stage: String,
    /// True if the stage runs.
    pub enabled: bool,
    /// Options common to all sinks, if the stage is a sink.
    pub sink_settings: SinkSettings,
    /// Options of the stage itself.
    pub options: OptionTable,
}

impl Settings {
    /// Returns the hash of the whole configuration but its secrets, as in the headers of batches.
    #[must_use]
    pub fn config_hash(&self) -> Digest {
        self.hash
    }
}

/// Merged configuration as written in files.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tables {
    /// Keys that only the machine's file may set.
    #[serde(default, rename = "locked")]
    _locked: Vec<String>,
    agent: AgentTable,
    shipping: ShippingTable,
    outbox: OutboxTable,
    #[serde(default)]
    metrics: MetricsTable,
    managed: ManagedTable,
    #[serde(default)]
    update: UpdateTable,
    #[serde(default)]
    compliance: ComplianceTable,
    pub(super) pipeline: PipelineTable,
    /// Tests of the filters: lines, and the expected outcome of each.
    #[serde(default, rename = "test")]
    #[schemars(with = "Vec<TestTable>")]
    _tests: IgnoredAny,
    /// Sources by name.
    #[serde(default, rename = "source")]
    #[schemars(with = "AnyTables")]
    _sources: StageTables,
    /// Filters by name.
    #[serde(default, rename = "filter")]
    #[schemars(with = "AnyTables")]
    _filters: StageTables,
    /// Enrichers by name.
    #[serde(default, rename = "enricher")]
    #[schemars(with = "AnyTables")]
    _enrichers: StageTables,
    /// Sinks by name.
    #[serde(default, rename = "sink")]
    #[schemars(with = "AnyTables")]
    _sinks: StageTables,
}

/// Tables of stages are read from the merged values, which keep their origin.
type StageTables = BTreeMap<String, IgnoredAny>;
/// Type used for these tables in the schema; each stage has a schema of its own options.
type AnyTables = BTreeMap<String, BTreeMap<String, serde_json::Value>>;

/// Settings of the agent itself.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AgentTable {
    /// State directory: an absolute path, or one that starts with `~/`.
    state_dir: Option<PathBuf>,
    /// Interval between requests for the managed configuration; 60 s to a day.
    poll_interval: Time,
    /// Format of the log file.
    log_format: LogFormat,
    /// Refuse sinks that send unencrypted to another machine.
    require_tls: bool,
}

/// Size and interval of batches.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ShippingTable {
    /// Maximum number of entries in a batch, 1 to 10,000.
    batch_size: u64,
    /// Maximum size of a batch before compression; 64 KiB to 32 MiB.
    max_batch_bytes: Size,
    /// Maximum time that an entry waits, at most a day; zero sends at once.
    flush_interval: Time,
}

/// Limits of the outbox.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OutboxTable {
    /// Size at which reading stops; at least 32 MiB.
    max_bytes: Size,
    /// Size at which the oldest dead letters are deleted; at least 1 MiB.
    max_dead_letter_bytes: Size,
}

/// Metrics for Prometheus.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct MetricsTable {
    /// Loopback address with a port, or `unix:` and the absolute path of a socket; nothing is served
    /// without it.
    listen: Option<String>,
}

/// Settings that the server may change.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ManagedTable {
    /// Tables of stages that the server may set: `filter.*`, `enricher.labels`.
    allow: Vec<String>,
    /// Accept only signed answers of the server.
    require_signature: bool,
    /// Public keys of minisign, one of which must have signed a managed configuration.
    #[serde(default)]
    keys: Vec<String>,
}

/// Accounts that may be used, and the action on a violation.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ComplianceTable {
    /// Permitted domains of e-mail addresses; `*.company.com` matches subdomains.
    permitted_email_domains: Option<Vec<String>>,
    /// Permitted organisation ids.
    permitted_org_ids: Option<Vec<String>>,
    /// Message shown when a session starts.
    banner: Option<String>,
    /// Action on a violation: "warn" or "block".
    action: Option<Action>,
    /// Message shown on a violation.
    violation_message: Option<String>,
    /// Treat a key or cloud provider used instead of an account as a violation.
    require_account: Option<bool>,
    /// Response of a hook if the check itself fails: "allow" or "block".
    on_error: Option<OnError>,
    /// Response of a hook if the account cannot be determined and a rule depends on it: "allow", "warn"
    /// or "block".
    on_unknown: Option<OnUnknown>,
    /// Seconds within which the session file of a session must appear; 1 to 604800.
    transcript_within_seconds: Option<u64>,
}

/// Order of the stages, by name: at most 256 stages in all lists.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PipelineTable {
    /// Sources.
    #[schemars(length(max = 256))]
    pub(super) sources: Vec<String>,
    /// Filters.
    #[schemars(length(max = 256))]
    pub(super) filters: Vec<String>,
    /// Enrichers.
    #[schemars(length(max = 256))]
    pub(super) enrichers: Vec<String>,
    /// Sinks.
    #[schemars(length(max = 256))]
    pub(super) sinks: Vec<String>,
}

impl Tables {
    pub(super) fn settings(
        &self,
        pipeline: PipelineSettings,
        paths: &Paths,
        merged: &Merged,
    ) -> Result<Settings, ConfigError> {
        self.managed.check(merged)?;
        let managed_keys = parse_keys("managed.keys", &self.managed.keys, merged)?;
        Ok(Settings {
            managed_keys,
            hash: Digest::ZERO,
            agent: self.agent.settings(paths, merged)?,
            shipping: self.shipping.settings(merged)?,
            outbox: self.outbox.settings(merged)?,
            metrics_listen: self.metrics.address(paths, merged)?,
            compliance: self.compliance.settings(merged)?,
            require_signature: self.managed.require_signature,
            update: self.update.settings(merged)?,
            pipeline,
        })
    }
}

impl ManagedTable {
    fn check(&self, merged: &Merged) -> Result<(), ConfigError> {
        let wrong = self.allow.iter().position(|text| !ManagedAllowlist::is_pattern(text));
        let Some(index) = wrong else { return Ok(()) };
        let problem = format!(
            "is {:?}, must be a table of a filter or enricher, such as `filter.*` or `enricher.labels`",
            self.allow[index]
        );
        Err(merged.value_error(&format!("managed.allow.{index}"), problem))
    }
}

impl ComplianceTable {
    fn settings(&self, merged: &Merged) -> Result<Compliance, ConfigError> {
        let compliance = Compliance {
            permitted_email_domains: self.permitted_email_domains.clone(),
            permitted_org_ids: self.permitted_org_ids.clone(),
            banner: self.banner.clone(),
            action: self.action,
            violation_message: self.violation_message.clone(),
            require_account: self.require_account,
            on_error: self.on_error,
            on_unknown: self.on_unknown,
            transcript_within_seconds: self.transcript_within_seconds,
        };
        match compliance.wrong_values().into_iter().next() {
            Some(wrong) => Err(merged.value_error(&wrong.key, wrong.problem)),
            None => Ok(compliance),
        }
    }
}

const DAY: Time = Time::seconds(86_400);

impl AgentTable {
    fn settings(&self, paths: &Paths, merged: &Merged) -> Result<AgentSettings, ConfigError> {
        let state_dir = match &self.state_dir {
            None => paths.default_state_dir.clone(),
            Some(dir) => paths.expand(dir),
        };
        if !state_dir.is_absolute() {
            let dir = state_dir.display();
            let problem = format!("is `{dir}`, must be an absolute path or start with `~/`");
            return Err(merged.value_error("agent.state_dir", problem));
        }
        let interval = self.poll_interval;
        if interval < Time::seconds(60) || interval > DAY {
            let bound = if interval > DAY { "most 86400s" } else { "least 60s" };
            let problem = format!("is {interval}, must be at {bound}");
            return Err(merged.value_error("agent.poll_interval", problem));
        }
        Ok(AgentSettings {
            state_dir,
            poll_interval: interval.0,
            log_format: self.log_format,
            require_tls: self.require_tls,
        })
    }
}

impl ShippingTable {
    fn settings(&self, merged: &Merged) -> Result<ShippingSettings, ConfigError> {
        let size = self.batch_size;
        let batch_size = usize::try_from(size).ok().filter(|size| (1..=10_000).contains(size));
        let Some(batch_size) = batch_size else {
            let problem = format!("is {size}, must be from 1 to 10000");
            return Err(merged.value_error("shipping.batch_size", problem));
        };
        let bytes = self.max_batch_bytes;
        if !(64 << 10..=32 << 20).contains(&bytes.0) {
            let problem = format!("is {bytes}, must be from 64 KiB to 32 MiB");
            return Err(merged.value_error("shipping.max_batch_bytes", problem));
        }
        let interval = self.flush_interval;
        if interval > DAY {
            let problem = format!("is {interval}, must be at most 86400s");
            return Err(merged.value_error("shipping.flush_interval", problem));
        }
        Ok(ShippingSettings { batch_size, max_batch_bytes: bytes.0, flush_interval: interval.0 })
    }
}

impl OutboxTable {
    fn settings(&self, merged: &Merged) -> Result<OutboxSettings, ConfigError> {
        let bytes = self.max_bytes;
        if bytes < Size::mebibytes(32) {
            let problem = format!("is {bytes}, must be at least 32 MiB");
            return Err(merged.value_error("outbox.max_bytes", problem));
        }
        let dead = self.max_dead_letter_bytes;
        if dead < Size::mebibytes(1) {
            let problem = format!("is {dead}, must be at least 1 MiB");
            return Err(merged.value_error("outbox.max_dead_letter_bytes", problem));
        }
        Ok(OutboxSettings { max_bytes: bytes.0, max_dead_letter_bytes: dead.0 })
    }
}

impl MetricsTable {
    fn address(
        &self,
        paths: &Paths,
        merged: &Merged,
    ) -> Result<Option<MetricsAddress>, ConfigError> {
        let Some(text) = &self.listen else { return Ok(None) };
        let wrong = |problem: String| {
            merged.value_error("metrics.listen", format!("is {text:?}, {problem}"))
        };
        let address: MetricsAddress =
            text.parse().map_err(|error: AddressError| wrong(error.to_string()))?;
        if let MetricsAddress::Unix(socket) = &address
            && exposes_home(socket, &paths.home)
        {
            let problem = "must be in a directory of its own, without `..`, such as one in the \
                           runtime directory: the agent may write to all of it";
            return Err(wrong(problem.to_owned()));
        }
        Ok(Some(address))
    }
}

/// Returns whether the directory of a socket, to which the agent may write, is or contains the home
/// directory, or may do so.
fn exposes_home(socket: &Path, home: &Path) -> bool {
    let has_parent_dirs = socket.components().any(|part| part == Component::ParentDir);
    let is_above = |dir: &Path| dir.parent().is_none() || home.starts_with(dir);
    has_parent_dirs || socket.parent().is_none_or(is_above)
}
