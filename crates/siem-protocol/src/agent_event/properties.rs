//! Name, severity, source and data of an event.

use serde_json::Value;

use super::{AgentEvent, DeviceKeyReason, EpochReason, ViolationAction};
use crate::names::{event, severity, source};

impl AgentEvent {
    /// Returns the event's name: one of [`names::event`](event).
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::AgentStarted { .. } => event::AGENT_STARTED,
            Self::AgentStopped {} => event::AGENT_STOPPED,
            Self::Heartbeat(_) => event::HEARTBEAT,
            Self::EpochStarted(_) => event::EPOCH_STARTED,
            Self::ConfigApplied { .. } => event::CONFIG_APPLIED,
            Self::ConfigRefused { .. } => event::CONFIG_REFUSED,
            Self::ConfigLocked { .. } => event::CONFIG_LOCKED,
            Self::ComplianceViolation { .. } => event::COMPLIANCE_VIOLATION,
            Self::ComplianceRestored { .. } => event::COMPLIANCE_RESTORED,
            Self::AccountUnknown { .. } => event::ACCOUNT_UNKNOWN,
            Self::HookAnswered(_) => event::HOOK_ANSWERED,
            Self::HooksSilent { .. } => event::HOOKS_SILENT,
            Self::HookReportsDropped { .. } => event::HOOK_REPORTS_DROPPED,
            Self::HookReportsUnreadable { .. } => event::HOOK_REPORTS_UNREADABLE,
            Self::SessionUnlogged { .. } => event::SESSION_UNLOGGED,
            Self::RootLearnt { .. } => event::ROOT_LEARNT,
            Self::FileRewritten(_) => event::FILE_REWRITTEN,
            Self::FileTrimmed(_) => event::FILE_TRIMMED,
            Self::FileAltered(_) => event::FILE_ALTERED,
            Self::FileDeletedUnread { .. } => event::FILE_DELETED_UNREAD,
            Self::FileLinked { .. } => event::FILE_LINKED,
            Self::PathUnreadable { .. } => event::PATH_UNREADABLE,
            Self::RecordAbandoned { .. } => event::RECORD_ABANDONED,
            Self::UuidReused { .. } => event::UUID_REUSED,
            Self::StageFailed { .. } => event::STAGE_FAILED,
            Self::EntryDeadLettered { .. } => event::ENTRY_DEAD_LETTERED,
            Self::EntriesRefusedUnidentified { .. } => event::ENTRIES_REFUSED_UNIDENTIFIED,
            Self::DeadLettersPurged { .. } => event::DEAD_LETTERS_PURGED,
            Self::OutboxFull { .. } => event::OUTBOX_FULL,
            Self::OutboxRecovered { .. } => event::OUTBOX_RECOVERED,
            Self::OutboxQuarantined { .. } => event::OUTBOX_QUARANTINED,
            Self::SinkRemoved { .. } => event::SINK_REMOVED,
            Self::DeviceKeyCreated { .. } => event::DEVICE_KEY_CREATED,
            Self::PolicyTampered { .. } => event::POLICY_TAMPERED,
            Self::ReceiptUntrusted { .. } => event::RECEIPT_UNTRUSTED,
            Self::UpdateAvailable { .. } => event::UPDATE_AVAILABLE,
            Self::UpdateInstalled { .. } => event::UPDATE_INSTALLED,
            Self::UpdateFailed { .. } => event::UPDATE_FAILED,
            Self::UpdateRefused { .. } => event::UPDATE_REFUSED,
            Self::Canary { .. } => event::CANARY,
        }
    }

    /// Returns how much the event matters: one of [`names::severity`](severity).
    #[must_use]
    pub fn severity(&self) -> &'static str {
        match self {
            Self::AgentStarted { .. }
            | Self::AgentStopped {}
            | Self::Heartbeat(_)
            | Self::ConfigApplied { .. }
            | Self::ComplianceRestored { .. }
            | Self::RootLearnt { .. }
            | Self::OutboxRecovered { .. }
            | Self::DeviceKeyCreated {
                reason: DeviceKeyReason::First | DeviceKeyReason::Rotated,
                ..
            }
            | Self::UpdateAvailable { .. }
            | Self::UpdateInstalled { .. }
            | Self::Canary { .. } => severity::INFO,
            Self::EpochStarted(started) if started.reason != EpochReason::Conflict => {
                severity::INFO
            }
            // Without a prompt the session may have nothing to write.
            Self::SessionUnlogged { prompted: false, .. } => severity::INFO,
            Self::ComplianceViolation { action, .. } | Self::AccountUnknown { action, .. }
                if *action != ViolationAction::None =>
            {
                severity::HIGH
            }
            Self::PolicyTampered { .. }
            | Self::ReceiptUntrusted { .. }
            | Self::UpdateRefused { .. } => severity::HIGH,
            _ => severity::WARNING,
        }
    }

    /// Returns the part of the agent that reports the event, unless a source does: one of
    /// [`names::source`](source).
    #[must_use]
    pub fn source(&self) -> &'static str {
        match self {
            Self::ComplianceViolation { .. }
            | Self::ComplianceRestored { .. }
            | Self::AccountUnknown { .. } => source::COMPLIANCE,
            Self::UuidReused { .. } => source::CLAUDE_SESSIONS,
            _ => source::AGENT,
        }
    }

    /// Returns the event's `data`: a JSON object.
    #[must_use]
    pub fn data(&self) -> Value {
        let mut event = serde_json::to_value(self).expect("its maps have strings as keys");
        event["data"].take()
    }
}
