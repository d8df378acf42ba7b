//! Lines of `devices.ndjson`.

use serde::{Deserialize, Serialize};
use siem_protocol::statement::{Confirmation, Enroll};

use super::DeviceKey;

/// A line of `devices.ndjson`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(in crate::trust) enum DeviceLine {
    /// A key was presented for the first time.
    Enroll(Enrolled),
    /// A key is confirmed for its machine and user.
    Confirm { at: String, key: DeviceKey, by: Confirmation },
    /// A key and all keys of its lineage are refused from now on.
    Revoke { at: String, key: DeviceKey },
    /// Two agents have a key: two instances use it alternately, or it is used although the key that
    /// replaced it is in use.
    Clone {
        at: String,
        key: DeviceKey,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instances: Option<[String; 2]>,
    },
    /// Batches without a key are accepted from a machine again, or no longer.
    AllowShared { at: String, machine: String, allowed: bool },
}

impl DeviceLine {
    /// Reports whether the line itself confirms a key.
    pub(in crate::trust) fn is_confirmation(&self) -> bool {
        match self {
            Self::Enroll(enrolled) => enrolled.confirmed_by.is_some(),
            Self::Confirm { .. } => true,
            _ => false,
        }
    }
}

/// Claims of an enrollment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::trust) struct Enrolled {
    pub(in crate::trust) at: String,
    pub(in crate::trust) key: DeviceKey,
    pub(in crate::trust) machine: String,
    pub(in crate::trust) user: String,
    pub(in crate::trust) host: String,
    pub(in crate::trust) os: String,
    pub(in crate::trust) arch: String,
    pub(in crate::trust) version: String,
    /// The key before a rotation; none if the enrollment does not continue a lineage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::trust) previous: Option<DeviceKey>,
    /// Confirmation by the enrollment itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::trust) confirmed_by: Option<Confirmation>,
    /// A key that is forgotten with its lineage, since there are too many unconfirmed ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::trust) evicts: Option<DeviceKey>,
}

impl Enrolled {
    pub(super) fn new(enroll: &Enroll, confirmed_by: Option<Confirmation>, at: String) -> Self {
        Self {
            at,
            key: DeviceKey::from(&enroll.key),
            machine: enroll.machine.clone(),
            user: enroll.user.clone(),
            host: enroll.host.clone(),
            os: enroll.os.clone(),
            arch: enroll.arch.clone(),
            version: enroll.version.clone(),
            previous: enroll.previous.as_ref().map(DeviceKey::from),
            confirmed_by,
            evicts: None,
        }
    }
}
