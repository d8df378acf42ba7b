//! Figures of an agent's last heartbeat.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::Value;
use siem_protocol::agent_event::{
    ConfigOrigin, Transport, TrustState, UpdateMode, UpdateReason, UpdateState,
};

use crate::{clock, ledger::is_zero};

/// Maximum length of a text that is kept, in characters.
const MAX_TEXT: usize = 200;

/// Figures of a heartbeat. All are claims of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeat {
    /// Number of the heartbeat.
    pub seq: u64,
    /// Time of the heartbeat by the agent's clock, RFC 3339.
    pub at: String,
    /// Time at which it arrived, RFC 3339.
    pub received_at: String,
    /// Its age in seconds when it was sent, by the agent's clock.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lag_seconds: u64,
    /// Revision of the managed configuration in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The configuration that was refused last, unless its origin gave a valid one since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<ConfigRefusal>,
    /// Number of bytes that wait for delivery.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub backlog_bytes: u64,
    /// Number of bytes in files that are not read yet.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unread_bytes: u64,
    /// Number of files, directories and symlinks that cannot be read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unreadable: u64,
    /// Number of entries that sinks refused for good.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dead_lettered: u64,
    /// Transport of the least protected sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// State of the device at its receivers: the one that needs attention most, if it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<TrustState>,
    /// Level of trust of that receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_level: Option<String>,
    /// Updates of the agent; absent for one that knows none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdateFigures>,
}

impl Heartbeat {
    /// Reports whether entries leave the machine unencrypted.
    pub(super) fn is_plain(&self) -> bool {
        self.transport == Some(Transport::Plain)
    }

    /// Reports whether the agent does not trust the answers of a receiver.
    pub(super) fn is_untrusted(&self) -> bool {
        self.trust == Some(TrustState::ReceiptUntrusted)
    }

    /// Reports whether the last update was refused, failed or was rolled back, but not by a person.
    pub(super) fn is_update_failed(&self) -> bool {
        let Some(update) = &self.update else { return false };
        update.reason != Some(UpdateReason::ByHand)
            && matches!(update.state, Some(UpdateState::Failed | UpdateState::RolledBack))
    }
}

/// Updates of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateFigures {
    /// Setting of the machine; absent if it is not known to this release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<UpdateMode>,
    /// State of the last update; absent if it is not known to this release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<UpdateState>,
    /// Version that the state is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Cause of the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<UpdateReason>,
    /// Time of the last check that reached the server, by the agent's clock, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<String>,
}

/// A configuration that an agent refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigRefusal {
    /// Origin of the configuration.
    pub from: ConfigOrigin,
    /// Cause, shortened.
    pub reason: String,
    /// Time of the first refusal by the agent's clock, RFC 3339.
    pub at: String,
}

/// Heartbeat in the line of an entry.
pub(crate) struct HeartbeatText<'a> {
    pub(crate) seq: u64,
    /// Its `at`, as JSON.
    pub(crate) at: Option<&'a str>,
    /// Its `data`, as JSON.
    pub(crate) data: &'a str,
}

impl HeartbeatText<'_> {
    /// Reads the figures. A member of an unknown form counts as absent, so that agents of later
    /// releases are shown too. Returns `None` if the data names no epoch.
    pub(crate) fn figures(&self, sent_at: &str, received_at: &str) -> Option<Heartbeat> {
        let data: Data = serde_json::from_str(self.data).ok()?;
        data.epoch.as_ref()?;
        let at = self.at.and_then(siem_protocol::json::string).unwrap_or_default();
        let lag = lag(&at, sent_at).unwrap_or_default();
        let config = data.config.unwrap_or_default();
        let receivers = data.trust.and_then(|trust| trust.receivers).unwrap_or_default();
        let receiver =
            receivers.into_iter().min_by_key(|receiver| receiver.state.map_or(u8::MAX, urgency));
        let (trust, trust_level) =
            receiver.map(|receiver| (receiver.state, receiver.level)).unwrap_or_default();
        let letters = data.dead_lettered.unwrap_or_default();
        Some(Heartbeat {
            seq: self.seq,
            at: shortened(&at),
            received_at: received_at.to_owned(),
            lag_seconds: lag.as_secs(),
            revision: config.applied.and_then(|it| it.revision).map(|text| shortened(&text)),
            refused: config.refused.map(|refused| ConfigRefusal {
                from: refused.from,
                reason: shortened(&refused.reason),
                at: shortened(&refused.at),
            }),
            backlog_bytes: data.outbox_bytes.unwrap_or_default(),
            unread_bytes: data.unread_bytes.unwrap_or_default(),
            unreadable: data.unreadable.unwrap_or_default(),
            dead_lettered: letters.values().fold(0, |sum, it| sum.saturating_add(it.entries)),
            transport: data.transport,
            trust,
            trust_level: trust_level.map(|text| shortened(&text)),
            update: data.update.map(Update::figures),
        })
    }
}

/// Returns how much later one time is than another; zero if it is earlier.
fn lag(at: &str, sent_at: &str) -> Option<Duration> {
    let (at, sent) = (clock::parse(at)?, clock::parse(sent_at)?);
    Some(sent.duration_since(at).unwrap_or_default())
}

/// Order in which states need attention.
fn urgency(state: TrustState) -> u8 {
    match state {
        TrustState::ReceiptUntrusted => 0,
        TrustState::Revoked => 1,
        TrustState::NotEnrolled => 2,
        TrustState::Pending => 3,
        TrustState::Unconfirmed => 4,
        TrustState::Shared => 5,
        TrustState::Confirmed => 6,
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// `data` of a heartbeat, with all members optional.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    #[serde(deserialize_with = "known")]
    epoch: Option<String>,
    #[serde(deserialize_with = "known")]
    dead_lettered: Option<std::collections::BTreeMap<String, Letters>>,
    #[serde(deserialize_with = "known")]
    outbox_bytes: Option<u64>,
    #[serde(deserialize_with = "known")]
    unread_bytes: Option<u64>,
    #[serde(deserialize_with = "known")]
    unreadable: Option<u64>,
    #[serde(deserialize_with = "known")]
    transport: Option<Transport>,
    #[serde(deserialize_with = "known")]
    config: Option<Config>,
    #[serde(deserialize_with = "known")]
    trust: Option<Trust>,
    #[serde(deserialize_with = "known")]
    update: Option<Update>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Update {
    #[serde(deserialize_with = "known")]
    mode: Option<UpdateMode>,
    #[serde(deserialize_with = "known")]
    state: Option<UpdateState>,
    #[serde(deserialize_with = "known")]
    version: Option<String>,
    #[serde(deserialize_with = "known")]
    reason: Option<UpdateReason>,
    #[serde(deserialize_with = "known")]
    checked_at: Option<String>,
}

impl Update {
    fn figures(self) -> UpdateFigures {
        UpdateFigures {
            mode: self.mode,
            state: self.state,
            version: self.version.map(|text| shortened(&text)),
            reason: self.reason,
            checked_at: self.checked_at.map(|text| shortened(&text)),
        }
    }
}

#[derive(Default, Deserialize)]
struct Letters {
    entries: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    #[serde(deserialize_with = "known")]
    applied: Option<Applied>,
    #[serde(deserialize_with = "known")]
    refused: Option<Refused>,
}

#[derive(Default, Deserialize)]
struct Applied {
    revision: Option<String>,
}

#[derive(Deserialize)]
struct Refused {
    from: ConfigOrigin,
    reason: String,
    at: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Trust {
    #[serde(deserialize_with = "known")]
    receivers: Option<Vec<Receiver>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Receiver {
    #[serde(deserialize_with = "known")]
    state: Option<TrustState>,
    #[serde(deserialize_with = "known")]
    level: Option<String>,
}

/// Reads a value of the expected form; any other counts as absent.
fn known<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(from)?).ok())
}
