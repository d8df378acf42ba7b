//! Texts about updates.

use siem_protocol::agent_event::{UpdateMode, UpdateReason, UpdateState, UpdateSummary};

/// Returns the state of updates as one line.
pub(in crate::cli) fn summary_text(summary: &UpdateSummary) -> String {
    let UpdateSummary { mode, state, version, reason, .. } = summary;
    let release = version.as_deref().unwrap_or("a release");
    let what = match state {
        UpdateState::Off => return "off".to_owned(),
        UpdateState::Current => "no newer release".to_owned(),
        UpdateState::Available => format!("{release} is available"),
        UpdateState::Waiting => format!("{release} is not for this machine"),
        UpdateState::Downloading => format!("{release} is being installed"),
        UpdateState::Unconfirmed => format!("{release} is in place, and not confirmed yet"),
        UpdateState::Failed => format!("{release} was not installed"),
        UpdateState::RolledBack => format!("{release} was rolled back"),
    };
    let reason = reason.map(|reason| format!(": {}", reason_text(reason))).unwrap_or_default();
    let mode = match mode {
        // A command has installed it.
        UpdateMode::Off => String::new(),
        mode => format!(" (mode `{}`)", mode.as_str()),
    };
    format!("{what}{reason}{mode}")
}

/// Returns a reason as a part of a sentence.
pub(in crate::cli) fn reason_text(reason: UpdateReason) -> &'static str {
    match reason {
        UpdateReason::Notify => "`ai-agent update install` installs it",
        UpdateReason::MachineWide => {
            "the program belongs to the machine, whose administrator updates it, or every user can write it"
        }
        UpdateReason::Halted => "its roll-out is halted",
        UpdateReason::NotYet => "its roll-out has not reached this machine yet",
        UpdateReason::OtherGroup => "its roll-out is for other groups of users",
        UpdateReason::RolledBackBefore => "it was rolled back here before",
        UpdateReason::Manifest => "the list of releases is malformed",
        UpdateReason::Unsigned => "it is not signed",
        UpdateReason::UnknownKey => "it is signed by none of `update.keys`",
        UpdateReason::WrongSignature => "its signature is wrong",
        UpdateReason::OtherArtifact => "its signature is for another version or platform",
        UpdateReason::WrongSize => "its file has another size than announced",
        UpdateReason::WrongHash => "its file has another SHA-256 than announced",
        UpdateReason::Download => "the receiver did not deliver it",
        UpdateReason::TooSlow => "the receiver was too slow",
        UpdateReason::DiskFull => "the disk is full",
        UpdateReason::ReadOnly => "a file or directory cannot be written",
        UpdateReason::FileInUse => "another program holds a file",
        UpdateReason::Busy => "another process installs an update",
        UpdateReason::SelfTest => "it did not pass its self-test",
        UpdateReason::NotExecutable => "it cannot be executed",
        UpdateReason::Install => "its file could not be put into place",
        UpdateReason::Crashed => "it ended several times before it made progress",
        UpdateReason::NoProgress => "it did not make progress in time",
        UpdateReason::ByHand => "`ai-agent update rollback` was run",
    }
}
