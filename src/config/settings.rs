//! What a configuration says, typed and checked.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use siem_protocol::{
    Digest,
    managed::{Action, Compliance, OnError},
};

use super::{
    ConfigError, OptionTable, SinkSettings, inline_tests::TestTable, managed::ManagedAllowlist,
    merged::Merged,
};
use crate::{
    compliance::policy,
    platform::Paths,
    units::{Size, Time},
};

/// All that is configured. Everything is decided: defaults are filled in, ranges are checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The agent itself.
    pub agent: AgentSettings,
    /// When batches are sent.
    pub shipping: ShippingSettings,
    /// How much waits on this machine.
    pub outbox: OutboxSettings,
    /// The way of a record.
    pub pipeline: PipelineSettings,
    /// Who may be signed in; what is absent restricts nothing.
    pub compliance: Compliance,
    /// Whether only signed answers of the server count.
    pub require_signature: bool,
}

/// The agent itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSettings {
    /// Where it keeps its state; absolute.
    pub state_dir: PathBuf,
    /// How often it asks the server and reports; 60 s to a day.
    pub poll_interval: Duration,
    /// How its log file is written.
    pub log_format: LogFormat,
}

/// How the log file is written, one line for each fact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object in a line.
    Json,
}

/// When batches are sent, and how large they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShippingSettings {
    /// How many entries make a batch, 1 to 10,000.
    pub batch_size: usize,
    /// How many bytes make a batch, before compression, 64 KiB to 32 MiB; a larger entry travels
    /// alone.
    pub max_batch_bytes: u64,
    /// How long an entry may wait; zero sends at once, a day is the most.
    pub flush_interval: Duration,
}

impl Default for ShippingSettings {
    /// What `config/default.toml` says.
    fn default() -> Self {
        Self { batch_size: 1000, max_batch_bytes: 4 << 20, flush_interval: Duration::from_secs(5) }
    }
}

impl ShippingSettings {
    /// What is left for entries in a batch's bytes, beside its header line. Dead letters that the
    /// header names come on top.
    #[must_use]
    pub fn room(&self) -> u64 {
        const HEADER: u64 = 2 << 10;
        self.max_batch_bytes.saturating_sub(HEADER)
    }
}

/// How much waits on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxSettings {
    /// The size in bytes at which reading stops; at least 32 MiB.
    pub max_bytes: u64,
    /// How many bytes of dead letters are kept besides; at least 1 MiB.
    pub max_dead_letter_bytes: u64,
}

/// The stages that run, each kind in the order in which a record meets them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PipelineSettings {
    /// What reads.
    pub sources: Vec<StageTable>,
    /// What decides.
    pub filters: Vec<StageTable>,
    /// What adds facts.
    pub enrichers: Vec<StageTable>,
    /// What delivers.
    pub sinks: Vec<StageTable>,
}

/// One stage as it is configured.
#[derive(Clone, Debug, PartialEq)]
pub struct StageTable {
    /// The name of this instance: what its table and the order list call it.
    pub name: String,
    /// Its type: what the registry calls it. The name, where the table does not say.
    pub stage: String,
    /// Whether it runs.
    pub enabled: bool,
    /// How it is fed, if it is a sink.
    pub sink_settings: SinkSettings,
    /// What its table says besides.
    pub options: OptionTable,
}

impl Settings {
    /// Names what decides about records: names, types and options of the filters and enrichers
    /// that run, in their order. The same whatever the order of keys, and whatever the secrets.
    #[must_use]
    pub fn config_hash(&self) -> Digest {
        #[derive(Serialize)]
        struct Stage<'a> {
            name: &'a str,
            options: figment::value::Value,
            r#type: &'a str,
        }
        let stages = |tables: &'static str, stages: &[StageTable]| {
            let stages = stages.iter().map(|table| Stage {
                name: &table.name,
                options: table.options.masked(),
                r#type: &table.stage,
            });
            let json = serde_json::to_string(&stages.collect::<Vec<_>>());
            format!("\"{tables}\":{}", json.expect("maps have texts as keys"))
        };
        let enrichers = stages("enrichers", &self.pipeline.enrichers);
        let filters = stages("filters", &self.pipeline.filters);
        Digest::of(format!("{{{enrichers},{filters}}}").as_bytes())
    }
}

/// A configuration as files write it, all layers merged.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tables {
    /// Keys that only the machine's file may set.
    #[serde(default, rename = "locked")]
    _locked: Vec<String>,
    agent: AgentTable,
    shipping: ShippingTable,
    outbox: OutboxTable,
    managed: ManagedTable,
    #[serde(default)]
    compliance: ComplianceTable,
    pub(super) pipeline: PipelineTable,
    /// LineIndex, and what must become of them.
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

/// Tables of stages are read from the merged values, which know where each comes from.
type StageTables = BTreeMap<String, IgnoredAny>;
/// What the schema says of them; each stage has a schema of its own options.
type AnyTables = BTreeMap<String, BTreeMap<String, serde_json::Value>>;

/// The agent itself.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AgentTable {
    /// Where it keeps its state: an absolute path, or one that begins with `~/`.
    state_dir: Option<PathBuf>,
    /// How often it asks the server and reports; 60 s to a day.
    poll_interval: Time,
    /// How the log file is written.
    log_format: LogFormat,
}

/// When batches are sent.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ShippingTable {
    /// How many entries make a batch, 1 to 10,000.
    batch_size: u64,
    /// How many bytes make a batch, before compression; 64 KiB to 32 MiB.
    max_batch_bytes: Size,
    /// How long an entry may wait; zero sends at once, a day is the most.
    flush_interval: Time,
}

/// How much waits on this machine.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OutboxTable {
    /// The size at which reading stops; at least 32 MiB.
    max_bytes: Size,
    /// The size at which the oldest dead letters are deleted; at least 1 MiB.
    max_dead_letter_bytes: Size,
}

/// What the server may change.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ManagedTable {
    /// Tables of stages that the server may set: `filter.*`, `enricher.labels`.
    allow: Vec<String>,
    /// Whether only signed answers of the server count.
    require_signature: bool,
}

/// Who may be signed in, and what happens otherwise.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ComplianceTable {
    /// Domains of e-mail addresses; `*.company.com` covers subdomains.
    permitted_email_domains: Option<Vec<String>>,
    /// Ids of organisations.
    permitted_org_ids: Option<Vec<String>>,
    /// ConfigValue when a session begins.
    banner: Option<String>,
    /// What is done about a violation: "warn" or "block".
    action: Option<Action>,
    /// ConfigValue at a violation.
    violation_message: Option<String>,
    /// Whether a key or cloud provider in location of an account is a violation.
    require_account: Option<bool>,
    /// What a hook answers when the check itself fails: "allow" or "block".
    on_error: Option<OnError>,
    /// How soon a session's transcript must appear.
    transcript_within_seconds: Option<u64>,
}

/// The order of stages, by name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PipelineTable {
    /// What reads.
    pub(super) sources: Vec<String>,
    /// What decides.
    pub(super) filters: Vec<String>,
    /// What adds facts.
    pub(super) enrichers: Vec<String>,
    /// What delivers.
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
        Ok(Settings {
            agent: self.agent.settings(paths, merged)?,
            shipping: self.shipping.settings(merged)?,
            outbox: self.outbox.settings(merged)?,
            compliance: self.compliance.settings(merged)?,
            require_signature: self.managed.require_signature,
            pipeline,
        })
    }
}

impl ManagedTable {
    fn check(&self, merged: &Merged) -> Result<(), ConfigError> {
        let wrong = self.allow.iter().position(|text| !ManagedAllowlist::is_pattern(text));
        let Some(index) = wrong else { return Ok(()) };
        let problem = format!(
            "is {:?}, must be tables of filters or enrichers, as `filter.*` or `enricher.labels`",
            self.allow[index]
        );
        Err(merged.value_error(&format!("managed.allow.{index}"), problem))
    }
}

impl ComplianceTable {
    fn settings(&self, merged: &Merged) -> Result<Compliance, ConfigError> {
        let table = self.clone();
        for (index, domain) in table.permitted_email_domains.iter().flatten().enumerate() {
            if !policy::is_domain(domain) {
                let key = format!("compliance.permitted_email_domains.{index}");
                let problem = format!(
                    "is {domain:?}, must be the part of an address after the `@`, as \
                     `company.com`, or `*.company.com` for its subdomains"
                );
                return Err(merged.value_error(&key, problem));
            }
        }
        for (index, id) in table.permitted_org_ids.iter().flatten().enumerate() {
            if id.trim().is_empty() {
                let key = format!("compliance.permitted_org_ids.{index}");
                return Err(merged.value_error(&key, "is empty, must be the id of an organisation"));
            }
        }
        Ok(Compliance {
            permitted_email_domains: table.permitted_email_domains,
            permitted_org_ids: table.permitted_org_ids,
            banner: table.banner,
            action: table.action,
            violation_message: table.violation_message,
            require_account: table.require_account,
            on_error: table.on_error,
            transcript_within_seconds: table.transcript_within_seconds,
        })
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
            let problem = format!("is `{dir}`, must be an absolute path or begin with `~/`");
            return Err(merged.value_error("agent.state_dir", problem));
        }
        let interval = self.poll_interval;
        if interval < Time::seconds(60) || interval > DAY {
            let bound = if interval > DAY { "most 86400s" } else { "least 60s" };
            let problem = format!("is {interval}, must be at {bound}");
            return Err(merged.value_error("agent.poll_interval", problem));
        }
        Ok(AgentSettings { state_dir, poll_interval: interval.0, log_format: self.log_format })
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
