//! Members of heartbeats about the device's key and the trust between device and receivers.

use serde::{Deserialize, Serialize};

/// Key of the device, and its state at each receiver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct TrustSummary {
    /// Public key of the device, `null` if it has none.
    pub device_key: Option<String>,
    /// Reason why the device cannot sign, `null` if it can.
    pub device_problem: Option<String>,
    /// State at the receivers that have answered.
    pub receivers: Vec<ReceiverTrust>,
}

/// State of this device at the receiver of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct ReceiverTrust {
    /// URL of the receiver.
    pub endpoint: String,
    /// State of the device.
    pub state: TrustState,
    /// Lowest level of trust that the receiver accepts, `null` if it is not known.
    #[serde(default)]
    pub level: Option<String>,
    /// Name of the receiver, `null` if none of its keys is pinned.
    #[serde(default)]
    pub receiver: Option<String>,
    /// Pinned public keys of the receiver.
    #[serde(default)]
    pub receiver_keys: Vec<String>,
    /// Public key of the device that the receiver has enrolled, `null` if there is none.
    #[serde(default)]
    pub device_key: Option<String>,
    /// Cause of the state with the remedy, `null` if nothing needs to be done.
    #[serde(default)]
    pub problem: Option<String>,
}

/// State of a device at a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TrustState {
    /// The receiver has no key: the shared token and secret alone protect batches.
    Shared,
    /// The receiver stores the entries, and shows them apart until the key is confirmed.
    Unconfirmed,
    /// The receiver holds delivery until an operator approves the key.
    Pending,
    /// The receiver refuses the device, because its key is not enrolled.
    NotEnrolled,
    /// The key is confirmed for this machine and user.
    Confirmed,
    /// The receiver has revoked the key.
    Revoked,
    /// The receiver's answers lack a valid signature, so the agent keeps its entries.
    ReceiptUntrusted,
}

impl TrustState {
    /// Returns the name of the variant, as in a heartbeat.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Unconfirmed => "unconfirmed",
            Self::Pending => "pending",
            Self::NotEnrolled => "not_enrolled",
            Self::Confirmed => "confirmed",
            Self::Revoked => "revoked",
            Self::ReceiptUntrusted => "receipt_untrusted",
        }
    }
}
