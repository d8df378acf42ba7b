//! Every name that the protocol gives to something.

/// Names of HTTP headers, in lower case as HTTP/2 wants them; HTTP compares them without case.
pub mod header {
    /// Lower-case hex of HMAC-SHA256 over the body as sent.
    pub const SIGNATURE: &str = "x-siem-signature";
    /// 16 random bytes in hex that a signed answer must cover.
    pub const NONCE: &str = "x-siem-nonce";
    /// `<epoch>-<first_seq>-<last_seq>`.
    pub const BATCH_ID: &str = "x-siem-batch-id";
    /// Stable id of the machine.
    pub const MACHINE_ID: &str = "x-siem-machine-id";
    /// Name of the machine, percent-encoded UTF-8.
    pub const HOSTNAME: &str = "x-siem-hostname";
    /// Name of the user whose sessions are read, percent-encoded UTF-8.
    pub const USER: &str = "x-siem-user";
    /// `linux`, `macos` or `windows`.
    pub const OS: &str = "x-siem-os";
    /// Processor architecture, as `x86_64` or `aarch64`.
    pub const ARCH: &str = "x-siem-arch";
    /// Semantic version of the agent.
    pub const AGENT_VERSION: &str = "x-siem-agent-version";
    /// Revision of the managed configuration in force, `0` for none.
    pub const CONFIG_VERSION: &str = "x-siem-config-version";
}

/// Paths below the endpoint.
pub mod path {
    /// Takes batches.
    pub const INGEST: &str = "/ingest";
    /// Gives the managed configuration.
    pub const CONFIG: &str = "/config";
}

/// Content types of bodies.
pub mod content_type {
    /// A batch.
    pub const NDJSON: &str = "application/x-ndjson";
    /// An answer.
    pub const JSON: &str = "application/json";
    /// An error, as RFC 9457 has it.
    pub const PROBLEM: &str = "application/problem+json";
}

/// Where an entry comes from: its `source`.
pub mod source {
    /// Session files of Claude Code.
    pub const CLAUDE_SESSIONS: &str = "claude-sessions";
    /// Configuration of Claude Code, scanned for the account.
    pub const CLAUDE_CODE: &str = "claude-code";
    /// Configuration of Claude Desktop, scanned for the account.
    pub const CLAUDE_DESKTOP: &str = "claude-desktop";
    /// The check of the account against the organisation's policy.
    pub const COMPLIANCE: &str = "compliance";
    /// A hook of Claude Code that the agent answered.
    pub const HOOK: &str = "hook";
    /// The Linux audit daemon's log.
    pub const AUDITD: &str = "auditd";
    /// The agent itself.
    pub const AGENT: &str = "agent";
}

/// What the agent reports: the `event` of an entry of kind `event`.
pub mod event {
    /// The agent began to run.
    pub const AGENT_STARTED: &str = "agent_started";
    /// The agent was stopped in order.
    pub const AGENT_STOPPED: &str = "agent_stopped";
    /// Outbox depth, cumulative byte accounting, files known, lag.
    pub const HEARTBEAT: &str = "heartbeat";
    /// A new outbox began to count from 1.
    pub const EPOCH_STARTED: &str = "epoch_started";
    /// Another configuration is in force: a managed one, or one with a change of this machine.
    pub const CONFIG_APPLIED: &str = "config_applied";
    /// A configuration was refused whole.
    pub const CONFIG_REFUSED: &str = "config_refused";
    /// A layer tried to set a value that the machine's file locks.
    pub const CONFIG_LOCKED: &str = "config_locked";
    /// The account does not meet the policy.
    pub const COMPLIANCE_VIOLATION: &str = "compliance_violation";
    /// The account meets the policy again.
    pub const COMPLIANCE_RESTORED: &str = "compliance_restored";
    /// A hook blocked or warned.
    pub const HOOK_ANSWERED: &str = "hook_answered";
    /// A session runs without a transcript.
    pub const SESSION_UNLOGGED: &str = "session_unlogged";
    /// Sessions run, and no hook reports them.
    pub const HOOKS_SILENT: &str = "hooks_silent";
    /// Reports of hooks were dropped.
    pub const HOOK_REPORTS_DROPPED: &str = "hook_reports_dropped";
    /// A hook named a transcript below a root not known before.
    pub const ROOT_LEARNT: &str = "root_learnt";
    /// A sink is no longer configured and keeps its place in the outbox, or was forgotten.
    pub const SINK_REMOVED: &str = "sink_removed";
    /// A made-up entry that checks the way to the SIEM.
    pub const CANARY: &str = "canary";
    /// A file holds other bytes than those read before.
    pub const FILE_REWRITTEN: &str = "file_rewritten";
    /// The last lines of a file were cut off.
    pub const FILE_TRIMMED: &str = "file_trimmed";
    /// A file went with bytes that were not read.
    pub const FILE_DELETED_UNREAD: &str = "file_deleted_unread";
    /// Two paths lead to one file: its lines come from both.
    pub const FILE_LINKED: &str = "file_linked";
    /// A uuid stands in one file twice, with other bytes.
    pub const UUID_REUSED: &str = "uuid_reused";
    /// A record sent in parts will never be completed.
    pub const RECORD_ABANDONED: &str = "record_abandoned";
    /// A stage failed; the file that it failed on is held.
    pub const STAGE_FAILED: &str = "stage_failed";
    /// A receiver refused one entry for good.
    pub const ENTRY_DEAD_LETTERED: &str = "entry_dead_lettered";
    /// Dead letters were deleted.
    pub const DEAD_LETTERS_PURGED: &str = "dead_letters_purged";
    /// The outbox holds as much as it may; reading waits.
    pub const OUTBOX_FULL: &str = "outbox_full";
    /// The outbox has room again.
    pub const OUTBOX_RECOVERED: &str = "outbox_recovered";
    /// A damaged outbox was moved aside.
    pub const OUTBOX_QUARANTINED: &str = "outbox_quarantined";
    /// A new version of the agent was installed.
    pub const UPDATE_INSTALLED: &str = "update_installed";
    /// A new version of the agent was refused.
    pub const UPDATE_REFUSED: &str = "update_refused";
}

/// How much an event matters: its `severity`.
pub mod severity {
    /// For the record.
    pub const INFO: &str = "info";
    /// Worth a look.
    pub const WARNING: &str = "warning";
    /// Sent at once, with all that lies before it.
    pub const HIGH: &str = "high";
}

/// What a violation is about: the `violation` in the data of `compliance_violation`.
pub mod violation {
    /// The e-mail's domain is not permitted.
    pub const EMAIL_DOMAIN: &str = "email_domain";
    /// The organisation is not permitted.
    pub const ORG_ID: &str = "org_id";
    /// A key or a cloud provider stands in place of an account.
    pub const NO_ACCOUNT: &str = "no_account";
}

/// What a policy does about a violation: its `action`.
pub mod action {
    /// Tells the user.
    pub const WARN: &str = "warn";
    /// Blocks each prompt.
    pub const BLOCK: &str = "block";
}
