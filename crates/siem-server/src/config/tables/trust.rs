//! `[trust]`: trust in senders.

use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::statement::TrustLevel;

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
        if self.receiver_name.is_empty() {
            findings.add(
                &["trust.receiver_name"],
                "is empty, expected a name such as \"siem.example.com\"",
            );
        }
    }
}
