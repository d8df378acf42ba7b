//! Status of the device's key and of its state at receivers.

use std::path::Path;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use siem_protocol::{
    agent_event::{DeviceKeyReason, ReceiverTrust},
    note::NoteSigner as _,
};

use crate::{
    platform::identify,
    siem::{
        Device, TrustStates,
        device::{KeyFile, KeyFileError, StoredKeys},
        stored_trust,
    },
    text::causes,
};

/// Version of the object that `device show --json` prints.
const VERSION: u32 = 1;

/// Key of the device, and its state at receivers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct DeviceStatus {
    /// Version of this object.
    pub(crate) version: u32,
    /// Public key, `name+hash+base64`; `None` if there is none in force.
    pub(crate) key: Option<String>,
    /// Public key in lower-case hex, by which a receiver lists the device.
    pub(crate) id: Option<String>,
    /// Machine that the key is for.
    pub(crate) machine_id: String,
    /// Time at which the key was made.
    pub(crate) created_at: Option<String>,
    /// Cause of the key.
    pub(crate) reason: Option<DeviceKeyReason>,
    /// Public key before a rotation, until the receivers have confirmed the key in force.
    pub(crate) previous_key: Option<String>,
    /// Random name of the agent's run; `None` without an agent.
    pub(crate) instance: Option<String>,
    /// Reason why there is no key in force, with the remedy.
    pub(crate) problem: Option<String>,
    /// State of the device at the receivers that have answered.
    pub(crate) receivers: Vec<ReceiverTrust>,
}

impl DeviceStatus {
    /// Status in a running agent; `None` in a dry run.
    pub(super) fn of_agent(device: &Device, trust: &TrustStates) -> Option<Self> {
        let machine_id = device.file()?.machine_id().to_owned();
        let mut status = Self {
            machine_id,
            instance: Some(device.instance().to_owned()),
            receivers: trust.all(),
            ..Self::default()
        };
        status.set(device.stored_keys().map_err(|unavailable| unavailable.reason));
        Some(status)
    }

    /// Status that a stopped agent has left in its state directory.
    pub(crate) fn stored(state_dir: &Path) -> Self {
        // Where nothing is stored, to determine the machine's id might store one.
        let identity = state_dir.is_dir().then(|| identify(Some(state_dir)).identity);
        let file = identity.as_ref().map_or_else(
            || KeyFile::new(state_dir, ""),
            |identity| KeyFile::of(state_dir, identity),
        );
        let keys = file.load();
        let keys = keys.map_err(|error| match error {
            KeyFileError::Unusable(_) => format!("{error}: the agent makes one when it starts"),
            error => causes(&error),
        });
        let receivers = stored_trust(state_dir);
        let machine_id = file.machine_id().to_owned();
        let mut status = Self { machine_id, receivers, ..Self::default() };
        status.set(keys);
        status
    }

    /// Describes the key in one line.
    pub(crate) fn summary(&self) -> String {
        let mut text = match (&self.id, &self.problem) {
            (Some(id), _) => format!("key {}", id.get(..12).unwrap_or(id)),
            (None, Some(problem)) => problem.clone(),
            (None, None) => "no key".to_owned(),
        };
        if let Some(at) = &self.created_at {
            text += &format!(", made at {at}");
        }
        if self.previous_key.is_some() {
            text += "; rotation not confirmed by every receiver yet";
        }
        text
    }

    fn set(&mut self, keys: Result<StoredKeys, String>) {
        self.version = VERSION;
        match keys {
            Ok(keys) => {
                self.key = Some(keys.public());
                self.id = Some(HEXLOWER.encode(keys.current.key().public()));
                self.created_at = Some(keys.created_at.to_string());
                self.reason = Some(keys.reason);
                self.previous_key = keys.previous_public();
            }
            Err(problem) => self.problem = Some(problem),
        }
    }
}
