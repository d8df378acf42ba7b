//! `[trust]`: trust in senders.

use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::{note::SigningKey, statement::TrustLevel};

use super::Findings;

/// Trust in senders.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TrustTable {
    /// Lowest level of trust to accept. With it, a key of the receiver is made if there is none.
    #[schemars(with = "Option<String>")]
    pub level: Option<TrustLevel>,
    /// Name of the receiver in a key that is made.
    pub receiver_name: String,
}

impl TrustTable {
    pub(in super::super) fn check(&self, findings: &mut Findings<'_>) {
        // The rules for names are those of keys.
        if SigningKey::from_seed(&self.receiver_name, [0; 32]).is_err() {
            findings.add(
                &["trust.receiver_name"],
                "is no name, expected one such as \"siem.example.com\", without white space, control \
                 characters and `+`",
            );
        }
    }
}
