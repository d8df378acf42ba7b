//! What became of configurations: which one is in force, which was tried, why one was refused.
//!
//! Separate facts: one that is refused changes nothing of what is in force, and a server that says
//! nothing new still says that it is there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
pub use siem_protocol::event::ConfigOrigin;
use siem_protocol::{
    Digest,
    event::{AppliedConfig, AttemptedConfig, ConfigSummary, RefusedConfig},
};

use crate::platform::Timestamp;

/// What became of configurations, shared between who changes them and who reports.
#[derive(Clone, Debug, Default)]
pub struct SharedConfigStatus(Arc<Mutex<ConfigStatus>>);

/// What became of configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConfigStatus {
    /// The one in force.
    pub applied: Option<Applied>,
    /// The one that was tried last.
    pub attempted: Option<Attempted>,
    /// The one that was refused last, if nothing better came from there since.
    pub refused: Option<Refused>,
    /// When the server last answered with a signature, in RFC 3339.
    #[serde(serialize_with = "text", skip_serializing_if = "Option::is_none")]
    pub signed_at: Option<Timestamp>,
}

/// A configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Names what decides about records, as in batches.
    pub hash: Digest,
    /// The revision of its managed layer; none without one.
    pub revision: Option<String>,
    /// Since when.
    #[serde(serialize_with = "at")]
    pub at: Timestamp,
}

/// A configuration that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempted {
    /// Where it comes from.
    pub from: ConfigOrigin,
    /// The revision of its managed layer, as far as that could be read.
    pub revision: Option<String>,
    /// When.
    #[serde(serialize_with = "at")]
    pub at: Timestamp,
}

/// A configuration that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Where it comes from.
    pub from: ConfigOrigin,
    /// Why, with the key.
    pub reason: String,
    /// When that was first said.
    #[serde(serialize_with = "at")]
    pub at: Timestamp,
}

fn at<S: serde::Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

fn text<S: serde::Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.collect_str(at),
        None => serializer.serialize_none(),
    }
}

impl SharedConfigStatus {
    /// The facts as they are.
    #[must_use]
    pub fn now(&self) -> ConfigStatus {
        self.facts().clone()
    }

    /// Changes them; whether they are others now.
    pub fn change(&self, change: impl FnOnce(&mut ConfigStatus)) -> bool {
        let mut facts = self.facts();
        let before = facts.clone();
        change(&mut facts);
        *facts != before
    }

    /// The facts as a heartbeat tells them: with an age in place of a time, since the receiver has
    /// another clock.
    #[must_use]
    pub fn for_heartbeat(&self, now: Timestamp) -> ConfigSummary {
        let ConfigStatus { applied, attempted, refused, signed_at } = self.now();
        ConfigSummary {
            applied: applied.map(|Applied { hash, revision, at }| AppliedConfig {
                hash,
                revision,
                at: at.to_string(),
            }),
            attempted: attempted.map(|Attempted { from, revision, at }| AttemptedConfig {
                from,
                revision,
                at: at.to_string(),
            }),
            refused: refused.map(|Refused { from, reason, at }| RefusedConfig {
                from,
                reason,
                at: at.to_string(),
            }),
            signed_age_seconds: signed_at.map(|at| now.since(at).as_secs()),
        }
    }

    fn facts(&self) -> MutexGuard<'_, ConfigStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
