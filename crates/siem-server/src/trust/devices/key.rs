//! Public key of a device.

use std::{fmt, str::FromStr};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use siem_protocol::note::{KeyError, VerifierKey};

/// Name of every device key in notes. The identity is the public key.
pub const DEVICE_KEY_NAME: &str = "ai-agent-device";

/// Public key of a device: its identity. Text form: 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceKey([u8; 32]);

impl DeviceKey {
    /// Wraps the 32 bytes of a public key.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes of the public key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the first 16 digits of its text.
    #[must_use]
    pub fn short(&self) -> String {
        let (first, _) = self.0.split_at(8);
        HEXLOWER.encode(first)
    }

    /// Returns the key that verifies notes of the device.
    ///
    /// # Errors
    /// [`KeyError`] for a weak key, which cannot be enrolled.
    pub fn verifier(&self) -> Result<VerifierKey, KeyError> {
        VerifierKey::new(DEVICE_KEY_NAME, self.0)
    }
}

impl From<&VerifierKey> for DeviceKey {
    fn from(key: &VerifierKey) -> Self {
        Self(*key.public())
    }
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceKey({self})")
    }
}

/// Text that is not the key of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key of a device is not 64 hexadecimal digits")]
pub struct InvalidDeviceKey;

impl FromStr for DeviceKey {
    type Err = InvalidDeviceKey;

    fn from_str(text: &str) -> Result<Self, InvalidDeviceKey> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| InvalidDeviceKey)?;
        bytes.try_into().map(Self).map_err(|_| InvalidDeviceKey)
    }
}

impl Serialize for DeviceKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl schemars::JsonSchema for DeviceKey {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DeviceKey".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9a-f]{64}$" })
    }
}
