//! Members of events about accounts and hooks.

use serde::{Deserialize, Serialize};

use crate::Digest;

/// An account, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct AccountIdentity {
    /// E-mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Id of its organisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// Id of the account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}

/// Action of a policy on a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ViolationAction {
    /// It is only reported.
    None,
    /// The user is warned.
    Warn,
    /// Prompts are blocked.
    Block,
}

/// A call of a hook, and the response to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct HookReport {
    /// Time of the call, in milliseconds since 1970-01-01 UTC.
    pub at: u64,
    /// Name of the hook's event in Claude Code.
    pub hook: String,
    /// `allowed`, `warned` or `blocked`.
    pub decision: String,
    /// Time that the response took, in microseconds.
    pub latency_us: u64,
    /// The session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Path of the session's transcript.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcript_path: Option<String>,
    /// Working directory of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Trigger of the session start: `startup`, `resume`, `clear`, `compact`, `fork`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The account, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<AccountIdentity>,
    /// Rules that the account breaks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<RuleViolation>,
    /// Rules that could not be checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<UncheckedRule>,
    /// Hash of the configuration that the policy is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_hash: Option<Digest>,
    /// SHA-256 of the policy that the hook used, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_hash: Option<Digest>,
    /// Origin of that policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_source: Option<PolicySource>,
    /// Cause, if the policy that should have been used could not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_problem: Option<String>,
}

/// Origin of the policy that a hook used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PolicySource {
    /// The managed configuration, whose signature by the organisation the hook verified.
    Managed,
    /// The machine's file, which locks the policy.
    MachineLocked,
    /// The policy file that the agent wrote.
    PolicyFile,
    /// The machine's file, in place of a policy file that is missing or cannot be used.
    MachineFallback,
}

/// A rule that an account breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct RuleViolation {
    /// The rule: one of [`names::violation`](crate::names::violation).
    pub violation: String,
    /// Value found in the account.
    pub found: String,
    /// Values that the policy permits.
    pub permitted: Vec<String>,
}

/// A rule that could not be checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct UncheckedRule {
    /// The rule: one of [`names::violation`](crate::names::violation).
    pub rule: String,
    /// Cause.
    pub why: String,
}
