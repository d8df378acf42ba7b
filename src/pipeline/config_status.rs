//! Status of the configuration: which one is applied, which was attempted, and why one was refused.
//!
//! These are separate facts: a refused configuration does not change the applied one, and a server
//! that has no new configuration still signs its responses.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use siem_protocol::agent_event::ConfigOrigin;
use siem_protocol::{
    Digest,
    agent_event::{
        AppliedConfig, AttemptedConfig, ConfigProof, ConfigSummary, ManagedSummary, RefusedConfig,
        Transport,
    },
};

use crate::{config::ConfigHashes, platform::Timestamp};

/// Status of the configuration, shared by the parts of the agent that change and report it.
#[derive(Clone, Debug, Default)]
pub struct SharedConfigStatus(Arc<Mutex<ConfigStatus>>);

/// Status of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigStatus {
    /// The applied configuration.
    pub applied: Option<Applied>,
    /// The last configuration that was attempted.
    pub attempted: Option<Attempted>,
    /// The last refused configuration, until an acceptable one comes from the same origin.
    pub refused: Option<Refused>,
    /// Time of the server's last signed response, in RFC 3339.
    pub signed_at: Option<Timestamp>,
    /// The managed layer of the applied configuration, if it has one.
    pub managed: Option<ManagedLayer>,
    /// Transport of the sinks of the applied configuration.
    pub transport: Option<Transport>,
}

/// Managed layer of the applied configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedLayer {
    /// SHA-256 of its body.
    pub hash: Digest,
    /// Proof of its origin.
    pub proof: ConfigProof,
    /// Its number in the sequence of the organisation.
    pub serial: Option<u64>,
    /// Time at which it was signed, in RFC 3339.
    pub issued: Option<String>,
    /// Time from which it is out of date.
    pub expires: Option<Timestamp>,
}

impl ManagedLayer {
    /// Returns the summary for heartbeats and the status.
    fn summary(self, now: Timestamp) -> ManagedSummary {
        ManagedSummary {
            hash: self.hash,
            authenticated_by: self.proof,
            serial: self.serial,
            issued: self.issued,
            expires: self.expires.map(|at| at.to_string()),
            expired: self.expires.is_some_and(|at| at <= now),
        }
    }
}

/// An applied configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Hashes of the configuration: as a whole, as in batches, and of its parts.
    pub hashes: ConfigHashes,
    /// Revision of its managed layer, if it has one.
    pub revision: Option<String>,
    /// Time at which it was applied.
    pub at: Timestamp,
}

/// An attempted configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempted {
    /// Its origin.
    pub from: ConfigOrigin,
    /// Revision of its managed layer, if it could be read.
    pub revision: Option<String>,
    /// Time of the attempt.
    pub at: Timestamp,
}

/// A refused configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its origin.
    pub from: ConfigOrigin,
    /// Reason, including the key.
    pub reason: String,
    /// Time at which it was first refused.
    pub at: Timestamp,
}

impl SharedConfigStatus {
    /// Returns the current status.
    #[must_use]
    pub fn now(&self) -> ConfigStatus {
        self.lock().clone()
    }

    /// Changes the status and returns whether it is different now.
    pub fn change(&self, change: impl FnOnce(&mut ConfigStatus)) -> bool {
        let mut status = self.lock();
        let before = status.clone();
        change(&mut status);
        *status != before
    }

    /// Returns the status for a heartbeat: with an age in place of a time, since the receiver has
    /// another clock.
    #[must_use]
    pub fn for_heartbeat(&self, now: Timestamp) -> ConfigSummary {
        let ConfigStatus { applied, attempted, refused, signed_at, managed, .. } = self.now();
        ConfigSummary {
            applied: applied.map(|Applied { hashes, revision, at }| AppliedConfig {
                hash: hashes.whole,
                revision,
                at: at.to_string(),
                sections: hashes.sections,
                layers: hashes.layers,
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
            signed_age_seconds: signed_at.map(|at| (now - at).as_secs()),
            managed: managed.map(|managed| managed.summary(now)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ConfigStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
