//! The events that the agent reports, with the members of their `data`.
//!
//! An event travels as an [entry](crate::Entry) of kind `event`. An [`AgentEvent`]
//! serializes to its `event` and `data`; its `source` and `severity` follow from them. The table in
//! `docs/events.md` is made from the documentation of the variants.

mod compliance;
mod config;
mod file;
mod outbox;
mod properties;
mod receiver_trust;
mod trust;
mod unreadable;
mod update;

use std::collections::BTreeMap;

pub use compliance::{
    AccountIdentity, HookReport, PolicySource, RuleViolation, UncheckedRule, ViolationAction,
};
pub use config::{
    AppliedConfig, AttemptedConfig, ConfigOrigin, ConfigProof, ConfigSummary, LayerHash, LockedKey,
    ManagedSummary, RefusedConfig, Transport,
};
pub use file::{AlteredRange, FileAltered, FileReplaced};
pub use outbox::{
    DeadLetterId, DeadLetterTotals, EpochReason, EpochStarted, PurgeReason, Shortage,
};
pub use receiver_trust::{ReceiverTrust, TrustState, TrustSummary};
use serde::{Deserialize, Deserializer, Serialize};
pub use trust::{DeviceKeyReason, PolicyFile, PolicyTampering, UntrustedAnswer};
pub use unreadable::UnreadableReason;
pub use update::{UpdateMode, UpdateReason, UpdateState, UpdateSummary};

use crate::{Digest, totals::Totals};

/// An event that the agent reports.
///
/// A receiver reads one with the `event` and `data` of an entry. An event that this version of the
/// crate does not know is an error, and so is `data` that lacks a member.
///
/// ```
/// use siem_protocol::agent_event::AgentEvent;
/// let event = AgentEvent::Canary { id: "7".into() };
/// let json = r#"{"event":"canary","data":{"id":"7"}}"#;
/// assert_eq!(serde_json::to_string(&event)?, json);
/// assert_eq!(serde_json::from_str::<AgentEvent>(json)?, event);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AgentEvent {
    /// The agent started.
    AgentStarted {
        /// Version of the agent.
        version: String,
        /// Epoch of the outbox that it uses.
        epoch: String,
    },
    /// The agent stopped in an orderly way.
    AgentStopped {},
    /// Sent at each poll (every 5 minutes) and when the agent stops.
    Heartbeat(Box<Heartbeat>),
    /// Sequence numbers start at 1 again.
    EpochStarted(Box<EpochStarted>),
    /// Another configuration is in force.
    ConfigApplied {
        /// Hash of the configuration, as in the headers of batches.
        hash: Digest,
        /// Revision of its managed part; `null` without one.
        revision: Option<String>,
        /// Hash of the configuration before, unless this is the first since the start.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        previous_hash: Option<Digest>,
        /// Revision of the managed part before, unless this is the first since the start.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
        #[cfg_attr(feature = "schemars", schemars(with = "Option<String>"))]
        previous_revision: Option<Option<String>>,
    },
    /// A configuration was refused; the one in force stays.
    ConfigRefused {
        /// Origin of the configuration.
        from: ConfigOrigin,
        /// Cause, with the key.
        reason: String,
        /// SHA-256 of the body, if the server sent it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hash: Option<Digest>,
    },
    /// A layer tried to set a key that the machine's file locks.
    ConfigLocked {
        /// The keys.
        attempts: Vec<LockedKey>,
    },
    /// An account does not meet the policy.
    ComplianceViolation {
        /// The rule: one of [`names::violation`](crate::names::violation).
        violation: String,
        /// Program that the account is signed in to.
        program: String,
        /// File that names the account.
        file: String,
        /// The account, if one is signed in.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        who: Option<AccountIdentity>,
        /// Value found in the account.
        found: String,
        /// Values that the policy permits.
        permitted: Vec<String>,
        /// Action of the policy.
        action: ViolationAction,
    },
    /// An account meets the policy again.
    ComplianceRestored {
        /// The rule: one of [`names::violation`](crate::names::violation).
        violation: String,
        /// Program that the account is signed in to.
        program: String,
        /// File that names the account.
        file: String,
        /// The account, if one is signed in.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        who: Option<AccountIdentity>,
        /// Value found in the account when the violation was reported.
        found_before: String,
    },
    /// An account cannot be determined, so that rules of the policy cannot be checked. Sent once a
    /// day while that lasts.
    AccountUnknown {
        /// Program whose account it is.
        program: String,
        /// File that names the account.
        file: String,
        /// The rules, with the causes.
        unknown: Vec<UncheckedRule>,
        /// Action of the policy.
        action: ViolationAction,
    },
    /// A hook warned the user, blocked a prompt, or had to answer by another policy than the one
    /// that the agent wrote.
    HookAnswered(Box<HookReport>),
    /// Sessions grow, but Claude Code calls no hook.
    HooksSilent {
        /// Time of the last call (RFC 3339), `null` if there was none.
        last_call: Option<String>,
        /// Time at which a session last grew (RFC 3339).
        sessions_grew: String,
        /// True if the settings of Claude Code name the hooks.
        named_in_settings: bool,
        /// True if the policy needs hooks.
        wanted_by_policy: bool,
    },
    /// Reports of hooks were dropped, because too many were waiting.
    HookReportsDropped {
        /// Number of reports since the last event.
        count: u64,
        /// Number of reports in total.
        total: u64,
    },
    /// Reports of hooks cannot be read, and are skipped.
    HookReportsUnreadable {
        /// Number of reports that cannot be read now.
        count: u64,
        /// The system's error for the first of them.
        error: String,
    },
    /// A hook announced a session, and no line with its id was read in time.
    SessionUnlogged {
        /// The session.
        session_id: Option<String>,
        /// Path of the transcript.
        transcript_path: String,
        /// Time of the hook's call (RFC 3339).
        since: String,
        /// Time that the transcript had to appear.
        within_seconds: u64,
        /// True if the user sent a prompt.
        prompted: bool,
        /// Cause.
        reason: String,
    },
    /// A hook named a transcript in a directory that was not read before; it is read from now on.
    RootLearnt {
        /// The directory.
        root: String,
        /// The session.
        session_id: Option<String>,
    },
    /// A file holds other bytes than those read before.
    FileRewritten(Box<FileReplaced>),
    /// The last lines of a file were cut off.
    FileTrimmed(Box<FileReplaced>),
    /// Bytes of a file were altered after they were read. The lines in which they are follow, with
    /// the member `altered`.
    FileAltered(Box<FileAltered>),
    /// A file was deleted or rewritten before all of its bytes were read.
    FileDeletedUnread {
        /// Path of the file.
        path: String,
        /// Generation of the file.
        generation: String,
        /// Offset of the first byte that was not read.
        from: u64,
        /// Size of the file.
        to: u64,
        /// Number of bytes between the two.
        bytes: u64,
    },
    /// Two paths lead to the same file: its lines arrive from both.
    FileLinked {
        /// The path found now.
        path: String,
        /// The path known before.
        other_path: String,
        /// Size of the file.
        size: u64,
    },
    /// A file, a directory or a symlink below the directories of sessions cannot be read, or the file
    /// system of one of them, of an account or of settings does not answer. Sent once; heartbeats
    /// count those below the directories of sessions. It is tried again.
    PathUnreadable {
        /// Path, shortened in the middle if it is long.
        path: String,
        /// Cause.
        reason: UnreadableReason,
        /// Error of the operating system, or why a symlink is not followed.
        error: String,
    },
    /// A line that was sent in parts will never be complete.
    RecordAbandoned {
        /// Path of the file.
        path: String,
        /// Generation of the file.
        generation: String,
        /// Offset of the line.
        offset: u64,
        /// Number of parts that were sent.
        parts: u32,
        /// Number of bytes in the parts.
        bytes: u64,
    },
    /// Two records of a file have the same uuid, but other bytes.
    UuidReused {
        /// Path of the file.
        path: String,
        /// Generation of the file.
        generation: String,
        /// Offset of the second record.
        offset: u64,
        /// The uuid.
        uuid: String,
    },
    /// A stage failed, either on a file, which is then held back, or as a whole.
    StageFailed {
        /// Path of the file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// Generation of the file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<String>,
        /// Type of the stage.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage: Option<String>,
        /// Cause.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        problem: Option<String>,
    },
    /// A receiver refused an entry for good.
    EntryDeadLettered {
        /// The sink.
        sink: String,
        /// Number of the entry.
        seq: u64,
        /// HTTP status of the response.
        status: u16,
    },
    /// A receiver refused entries of a batch for good, and does not say which. The batch is not sent
    /// again, since that would duplicate the others.
    EntriesRefusedUnidentified {
        /// The sink.
        sink: String,
        /// Number of the first entry of the batch.
        first_seq: u64,
        /// Number of the last entry of the batch.
        last_seq: u64,
        /// Number of entries in the batch.
        entries: u64,
        /// Number of refused entries.
        refused: u64,
    },
    /// Dead letters were deleted.
    DeadLettersPurged {
        /// Cause.
        reason: PurgeReason,
        /// Number of dead letters.
        count: u64,
        /// The dead letters: of those purged for space the first 100.
        letters: Vec<DeadLetterId>,
        /// Number of bytes in them, when they were purged for space.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
        /// All dead letters purged for space so far.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<DeadLetterTotals>,
    },
    /// There is no space for more entries; reading waits.
    OutboxFull {
        /// Kind of shortage.
        lack: Shortage,
        /// Number of bytes in the outbox.
        outbox_bytes: u64,
        /// Free space on the disk, `null` if unknown.
        disk_free: Option<u64>,
    },
    /// There is space for entries again; reading continues.
    OutboxRecovered {
        /// Number of bytes in the outbox.
        outbox_bytes: u64,
        /// Free space on the disk, `null` if unknown.
        disk_free: Option<u64>,
    },
    /// A damaged outbox was moved aside, and a new one was created.
    OutboxQuarantined {
        /// Damage that was found.
        reason: String,
        /// Path of the damaged outbox.
        moved_to: String,
        /// Number of dead letters recovered from it.
        dead_letters_kept: u64,
        /// Number of dead letters that could not be read, `null` if unknown.
        dead_letters_lost: Option<u64>,
    },
    /// A sink with undelivered entries is no longer configured, or was removed by a command.
    SinkRemoved {
        /// The sink.
        sink: String,
        /// Last number that it acknowledged.
        acknowledged: u64,
        /// Number of entries that it has not acknowledged.
        undelivered: u64,
        /// True if a command removed it.
        forgotten: bool,
    },
    /// A device key was created.
    DeviceKeyCreated {
        /// The public key, `name+hash+base64`.
        key: String,
        /// Cause.
        reason: DeviceKeyReason,
        /// The key before, `null` if there was none or it is not known.
        previous: Option<String>,
    },
    /// A file of the policy was deleted or changed by another program; it was restored.
    PolicyTampered {
        /// Path of the file.
        path: String,
        /// The file.
        file: PolicyFile,
        /// What happened to it.
        tampering: PolicyTampering,
        /// SHA-256 of the content that the agent wrote.
        expected_sha256: Digest,
        /// SHA-256 of the content found, `null` if there was none to read.
        found_sha256: Option<Digest>,
        /// True if the agent's content is in place again.
        restored: bool,
    },
    /// A response that asks the agent to give something up has no valid signature by the receiver's
    /// key; the entries are held.
    ReceiptUntrusted {
        /// The sink.
        sink: String,
        /// HTTP status of the response.
        status: u16,
        /// What is wrong.
        problem: UntrustedAnswer,
        /// Epoch of the batch, `null` if the request was not a batch.
        epoch: Option<String>,
        /// Last number of the batch, `null` if the request was not a batch.
        last_seq: Option<u64>,
    },
    /// A newer version of the agent is meant for this machine, and waits for a person or another tool
    /// to install it. Sent once for each version.
    UpdateAvailable {
        /// Version that is installed.
        from: String,
        /// Version that is available.
        to: String,
        /// Reason why the agent does not install it.
        reason: UpdateReason,
    },
    /// A new version of the agent was installed, and makes progress.
    UpdateInstalled {
        /// Version before.
        from: String,
        /// Version that runs now.
        to: String,
    },
    /// A new version of the agent could not be installed, or it was installed and did not make
    /// progress, so that the previous one runs again.
    UpdateFailed {
        /// Version that runs.
        from: String,
        /// Version that was to be installed.
        to: String,
        /// Cause.
        reason: UpdateReason,
        /// The error, or the last lines of the log of the version that failed.
        detail: String,
    },
    /// The manifest of updates or an artifact was refused: it is not what the organisation signed.
    UpdateRefused {
        /// Version that runs.
        from: String,
        /// Version that was refused, `null` if the manifest cannot be read.
        to: Option<String>,
        /// Cause.
        reason: UpdateReason,
        /// The error.
        detail: String,
    },
    /// A test event of `ai-agent doctor --canary`.
    Canary {
        /// Random id of the test.
        id: String,
    },
}

/// State of the agent and totals of the epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Heartbeat {
    /// Epoch that the totals belong to. If it is not the epoch of the batch, the entries were
    /// renumbered after a conflict, and these totals do not describe the new epoch.
    pub epoch: String,
    /// Outcome of every byte, up to the number before the heartbeat's own.
    pub totals: Totals,
    /// Entries that were refused for good, by sink.
    pub dead_lettered: BTreeMap<String, DeadLetterTotals>,
    /// Number of bytes that wait for delivery.
    pub outbox_bytes: u64,
    /// Number of files known.
    pub files: u64,
    /// Number of bytes not read yet, incomplete last lines included.
    pub unread_bytes: u64,
    /// Number of files, directories and symlinks that cannot be read.
    pub unreadable: u64,
    /// Time at which all files were last verified (RFC 3339); absent before the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_at: Option<String>,
    /// Configuration in force, and those tried and refused last.
    pub config: ConfigSummary,
    /// Key of the device, and its state at the receivers.
    #[serde(default)]
    pub trust: TrustSummary,
    /// Transport of the sinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// Updates of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdateSummary>,
}

/// Deserializes a member that is present, `null` included.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests;
