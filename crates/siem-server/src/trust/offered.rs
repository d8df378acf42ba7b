//! Managed configurations that the receiver ever offered, `offered.ndjson`.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use siem_protocol::{Digest, Identity, managed::Audience};

use super::journal::Fold;

/// Configurations that were offered, by hash, and the devices that they are meant for.
#[derive(Debug, Default)]
pub(super) struct OfferedConfigs(HashMap<Digest, Option<Audience>>);

/// A line of `offered.ndjson`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OfferedLine {
    /// Time of the first offer.
    pub(super) at: String,
    /// SHA-256 of the configuration's bytes.
    pub(super) hash: Digest,
    /// Devices that it is meant for; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) audience: Option<Audience>,
}

impl Fold for OfferedConfigs {
    type Line = OfferedLine;

    fn apply(&mut self, line: OfferedLine) {
        self.0.insert(line.hash, line.audience);
    }
}

impl OfferedConfigs {
    pub(super) fn contains(&self, hash: &Digest) -> bool {
        self.0.contains_key(hash)
    }

    /// Reports whether a configuration was offered to a device.
    pub(super) fn contains_for(&self, hash: &Digest, identity: &Identity) -> bool {
        self.0.get(hash).is_some_and(|audience| is_meant_for(audience.as_ref(), identity))
    }
}

/// Reports whether a device may have a configuration. The groups of a user are not known here, so
/// that they exclude no device.
pub(crate) fn is_meant_for(audience: Option<&Audience>, identity: &Identity) -> bool {
    audience.is_none_or(|audience| {
        let audience = Audience { groups: None, ..audience.clone() };
        audience.includes(identity, &[])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::identity;

    #[test]
    fn audience_decides_to_whom_a_configuration_was_offered() {
        for (audience, offered) in [
            (None, true),
            (Some(r#"{"machines":["m-1"]}"#), true),
            (Some(r#"{"machines":["m-2"]}"#), false),
            (Some(r#"{"users":["v"]}"#), false),
            (Some(r#"{"os":["windows"]}"#), false),
            (Some(r#"{"groups":["dev"]}"#), true),
        ] {
            let parsed = audience.map(|text| serde_json::from_str(text).unwrap());
            let mut configs = OfferedConfigs::default();
            let hash = Digest::of(b"config");
            configs.apply(OfferedLine { at: "t".into(), hash, audience: parsed });
            assert_eq!(configs.contains_for(&hash, &identity()), offered, "{audience:?}");
            assert!(!configs.contains_for(&Digest::ZERO, &identity()));
        }
    }
}
