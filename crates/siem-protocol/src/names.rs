//! Names and constant values of the protocol.

/// Names of HTTP headers, in lower case as in HTTP/2; HTTP compares them case-insensitively.
pub mod header {
    /// Lower-case hex of HMAC-SHA256 over the body as sent.
    pub const SIGNATURE: &str = "x-siem-signature";
    /// 16 random bytes in hex that the signature of the response must cover.
    pub const NONCE: &str = "x-siem-nonce";
    /// `<epoch>-<first_seq>-<last_seq>`.
    pub const BATCH_ID: &str = "x-siem-batch-id";
    /// Stable id of the machine.
    pub const MACHINE_ID: &str = "x-siem-machine-id";
    /// Name of the machine, percent-encoded UTF-8.
    pub const HOSTNAME: &str = "x-siem-hostname";
    /// Name of the user whose sessions are read, percent-encoded UTF-8.
    pub const USER: &str = "x-siem-user";
    /// Groups of the user, each percent-encoded, separated by commas. Sent with a request for the
    /// managed configuration if the response before depended on them, as its `Vary` says.
    pub const GROUPS: &str = "x-siem-groups";
    /// `linux`, `macos` or `windows`.
    pub const OS: &str = "x-siem-os";
    /// Processor architecture, such as `x86_64` or `aarch64`.
    pub const ARCH: &str = "x-siem-arch";
    /// Semantic version of the agent.
    pub const AGENT_VERSION: &str = "x-siem-agent-version";
    /// Revision of the managed configuration in force, `0` for none.
    pub const CONFIG_VERSION: &str = "x-siem-config-version";
    /// Base64 of the text of a `.minisig` file: the organisation's signature of the managed
    /// configuration.
    pub const POLICY_SIGNATURE: &str = "x-siem-policy-signature";
}

/// Paths below the endpoint.
pub mod path {
    /// Receives batches.
    pub const INGEST: &str = "/ingest";
    /// Returns the managed configuration.
    pub const CONFIG: &str = "/config";
    /// Returns the receiver's keys.
    pub const KEYS: &str = "/keys";
    /// Receives device keys.
    pub const ENROLL: &str = "/enroll";
    /// Returns artifacts: their names follow after `/`.
    pub const UPDATE: &str = "/update";
    /// Returns the manifest of updates for a platform.
    pub const UPDATE_MANIFEST: &str = "/update/manifest.json";
}

/// Types of problems: values of `type` in the body of an error.
pub mod problem {
    /// There is no such path.
    pub const NOT_FOUND: &str = "urn:ai-agent:problem:not-found";
    /// The bearer token is missing or wrong.
    pub const TOKEN: &str = "urn:ai-agent:problem:token";
    /// The bearer token does not permit this.
    pub const SCOPE: &str = "urn:ai-agent:problem:scope";
    /// The HMAC signature is missing or wrong.
    pub const SIGNATURE: &str = "urn:ai-agent:problem:signature";
    /// Content type or encoding is not supported.
    pub const ENCODING: &str = "urn:ai-agent:problem:encoding";
    /// The batch is too large.
    pub const TOO_LARGE: &str = "urn:ai-agent:problem:too-large";
    /// The request took too long to arrive.
    pub const SLOW: &str = "urn:ai-agent:problem:slow";
    /// An entry is refused.
    pub const ENTRY: &str = "urn:ai-agent:problem:entry";
    /// The request is malformed.
    pub const MALFORMED: &str = "urn:ai-agent:problem:malformed";
    /// Other entries are held under the same numbers, or numbers are missing before these.
    pub const CONFLICT: &str = "urn:ai-agent:problem:conflict";
    /// There is no space.
    pub const FULL: &str = "urn:ai-agent:problem:full";
    /// The receiver cannot serve the request now.
    pub const UNAVAILABLE: &str = "urn:ai-agent:problem:unavailable";
    /// The sender has used up a quota.
    pub const QUOTA: &str = "urn:ai-agent:problem:quota";
    /// There is no managed configuration.
    pub const NO_CONFIG: &str = "urn:ai-agent:problem:no-config";
    /// There is no update for this platform, or no artifact of this name.
    pub const NO_UPDATE: &str = "urn:ai-agent:problem:no-update";
    /// The managed configuration is invalid.
    pub const CONFIG: &str = "urn:ai-agent:problem:config";
    /// The receiver failed.
    pub const INTERNAL: &str = "urn:ai-agent:problem:internal";
    /// The epoch belongs to a device whose seal the batch lacks.
    pub const EPOCH_OWNED: &str = "urn:ai-agent:problem:epoch-owned";
    /// The machine and user have a confirmed key, and the batch has no seal.
    pub const IMPERSONATION: &str = "urn:ai-agent:problem:impersonation";
    /// The receiver accepts enrolled devices only, and this one is not, or not approved yet.
    pub const NOT_ENROLLED: &str = "urn:ai-agent:problem:not-enrolled";
    /// The device key was revoked.
    pub const DEVICE_REVOKED: &str = "urn:ai-agent:problem:device-revoked";
    /// Two installations use the same device key.
    pub const DEVICE_CLONED: &str = "urn:ai-agent:problem:device-cloned";
    /// The seal does not belong to the batch, or its signature is wrong.
    pub const SEAL: &str = "urn:ai-agent:problem:seal";
}

/// Types of verdicts besides those of [`problem`].
pub mod verdict {
    /// Every entry of a redelivery is stored.
    pub const STORED: &str = "urn:ai-agent:verdict:stored";
}

/// Events that a receiver records about devices, in a log of its own.
pub mod receiver_event {
    /// A batch without a device's seal was refused, because entries of the epoch or of the machine
    /// and user need one.
    pub const IMPERSONATION: &str = "impersonation";
    /// An unconfirmed key sent entries for a machine and user that have a confirmed one.
    pub const SECOND_KEY: &str = "second_key";
    /// A batch of an epoch without a device did not continue what is held.
    pub const CHAIN_MISMATCH: &str = "chain_mismatch";
    /// Two installations use the same identity or the same device key.
    pub const CLONE: &str = "clone";
    /// A batch names a managed configuration that its sender was never offered.
    pub const CONFIG_UNKNOWN: &str = "config_unknown";
    /// A batch was refused, because its token or device has used up a quota.
    pub const QUOTA_EXCEEDED: &str = "quota_exceeded";
}

/// Content types of bodies.
pub mod content_type {
    /// A batch.
    pub const NDJSON: &str = "application/x-ndjson";
    /// A response.
    pub const JSON: &str = "application/json";
    /// An error as defined by RFC 9457.
    pub const PROBLEM: &str = "application/problem+json";
}

/// Values of `source`: origin of an entry.
pub mod source {
    /// Session files of Claude Code.
    pub const CLAUDE_SESSIONS: &str = "claude-sessions";
    /// Configuration of Claude Code, read for the account.
    pub const CLAUDE_CODE: &str = "claude-code";
    /// Configuration of Claude Desktop, read for the account.
    pub const CLAUDE_DESKTOP: &str = "claude-desktop";
    /// Check of the account against the organisation's policy.
    pub const COMPLIANCE: &str = "compliance";
    /// A hook of Claude Code to which the agent responded.
    pub const HOOK: &str = "hook";
    /// Log of the Linux audit daemon.
    pub const AUDITD: &str = "auditd";
    /// The agent itself.
    pub const AGENT: &str = "agent";
}

/// Values of `event` in entries of kind `event`; [`AgentEvent`](crate::AgentEvent) has their data.
pub mod event {
    /// The agent started.
    pub const AGENT_STARTED: &str = "agent_started";
    /// The agent stopped in an orderly way.
    pub const AGENT_STOPPED: &str = "agent_stopped";
    /// State of the agent and totals of the epoch.
    pub const HEARTBEAT: &str = "heartbeat";
    /// Sequence numbers start at 1 again.
    pub const EPOCH_STARTED: &str = "epoch_started";
    /// Another configuration is in force.
    pub const CONFIG_APPLIED: &str = "config_applied";
    /// A configuration was refused; the one in force stays.
    pub const CONFIG_REFUSED: &str = "config_refused";
    /// A layer tried to set a key that the machine's file locks.
    pub const CONFIG_LOCKED: &str = "config_locked";
    /// An account does not meet the policy.
    pub const COMPLIANCE_VIOLATION: &str = "compliance_violation";
    /// An account meets the policy again.
    pub const COMPLIANCE_RESTORED: &str = "compliance_restored";
    /// An account cannot be determined.
    pub const ACCOUNT_UNKNOWN: &str = "account_unknown";
    /// A hook warned the user, blocked a prompt, or answered by a fallback policy.
    pub const HOOK_ANSWERED: &str = "hook_answered";
    /// A hook announced a session, and no line with its id was read in time.
    pub const SESSION_UNLOGGED: &str = "session_unlogged";
    /// Sessions grow, but Claude Code calls no hook.
    pub const HOOKS_SILENT: &str = "hooks_silent";
    /// Reports of hooks were dropped.
    pub const HOOK_REPORTS_DROPPED: &str = "hook_reports_dropped";
    /// Reports of hooks cannot be read.
    pub const HOOK_REPORTS_UNREADABLE: &str = "hook_reports_unreadable";
    /// A hook named a transcript in a directory that was not read before.
    pub const ROOT_LEARNT: &str = "root_learnt";
    /// A sink with undelivered entries is no longer configured, or was removed by a command.
    pub const SINK_REMOVED: &str = "sink_removed";
    /// A test event for the delivery to the SIEM.
    pub const CANARY: &str = "canary";
    /// A file holds other bytes than those read before.
    pub const FILE_REWRITTEN: &str = "file_rewritten";
    /// The last lines of a file were cut off.
    pub const FILE_TRIMMED: &str = "file_trimmed";
    /// Bytes of a file were altered after they were read.
    pub const FILE_ALTERED: &str = "file_altered";
    /// A file was deleted or rewritten before all of its bytes were read.
    pub const FILE_DELETED_UNREAD: &str = "file_deleted_unread";
    /// Two paths lead to the same file: its lines arrive from both.
    pub const FILE_LINKED: &str = "file_linked";
    /// A file, a directory or a symlink below the directories of sessions cannot be read.
    pub const PATH_UNREADABLE: &str = "path_unreadable";
    /// Two records of a file have the same uuid, but other bytes.
    pub const UUID_REUSED: &str = "uuid_reused";
    /// A line that was sent in parts will never be complete.
    pub const RECORD_ABANDONED: &str = "record_abandoned";
    /// A stage failed, either on a file, which is then held back, or as a whole.
    pub const STAGE_FAILED: &str = "stage_failed";
    /// A receiver refused an entry for good.
    pub const ENTRY_DEAD_LETTERED: &str = "entry_dead_lettered";
    /// A receiver refused entries for good, and does not say which.
    pub const ENTRIES_REFUSED_UNIDENTIFIED: &str = "entries_refused_unidentified";
    /// Dead letters were deleted.
    pub const DEAD_LETTERS_PURGED: &str = "dead_letters_purged";
    /// There is no space for more entries; reading waits.
    pub const OUTBOX_FULL: &str = "outbox_full";
    /// There is space for entries again; reading continues.
    pub const OUTBOX_RECOVERED: &str = "outbox_recovered";
    /// A damaged outbox was moved aside.
    pub const OUTBOX_QUARANTINED: &str = "outbox_quarantined";
    /// A device key was created.
    pub const DEVICE_KEY_CREATED: &str = "device_key_created";
    /// A file of the policy was deleted or changed by another program, and restored.
    pub const POLICY_TAMPERED: &str = "policy_tampered";
    /// A response that asks the agent to give something up has no valid signature.
    pub const RECEIPT_UNTRUSTED: &str = "receipt_untrusted";
    /// A newer version of the agent was found that is not installed automatically.
    pub const UPDATE_AVAILABLE: &str = "update_available";
    /// A new version of the agent was installed and works.
    pub const UPDATE_INSTALLED: &str = "update_installed";
    /// A new version of the agent could not be installed, or was rolled back.
    pub const UPDATE_FAILED: &str = "update_failed";
    /// A new version of the agent was refused.
    pub const UPDATE_REFUSED: &str = "update_refused";
}

/// Values of `severity`: importance of an event.
pub mod severity {
    /// For information.
    pub const INFO: &str = "info";
    /// Needs attention.
    pub const WARNING: &str = "warning";
    /// Sent at once, with all entries before it.
    pub const HIGH: &str = "high";
}

/// Values of `violation` in the data of `compliance_violation`: the rule that is broken.
pub mod violation {
    /// The e-mail's domain is not permitted.
    pub const EMAIL_DOMAIN: &str = "email_domain";
    /// The organisation is not permitted.
    pub const ORG_ID: &str = "org_id";
    /// An API key or a cloud provider is used in place of an account.
    pub const NO_ACCOUNT: &str = "no_account";
}

/// Values of `action` in a policy: the reaction to a violation.
pub mod action {
    /// Warn the user.
    pub const WARN: &str = "warn";
    /// Block each prompt.
    pub const BLOCK: &str = "block";
}
