//! Members of events and heartbeats about updates of the agent.

use serde::{Deserialize, Serialize};

/// Updates of the agent, in a heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct UpdateSummary {
    /// Setting of the machine.
    pub mode: UpdateMode,
    /// State of the last update.
    pub state: UpdateState,
    /// Version that the state is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Time of the last check that reached the server (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<String>,
    /// Cause of the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<UpdateReason>,
}

/// Reaction of the agent to a newer version: the setting `update.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum UpdateMode {
    /// It does not look for one.
    #[default]
    Off,
    /// It reports the version.
    Notify,
    /// It installs the version.
    Install,
}

impl UpdateMode {
    /// Returns the name of the variant.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Notify => "notify",
            Self::Install => "install",
        }
    }
}

/// State of an update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// Updates are off.
    #[default]
    Off,
    /// There is no newer version, or it was not looked for yet.
    Current,
    /// A newer version is there, and the agent does not install it.
    Available,
    /// A newer version is there, and its roll-out does not include this machine yet.
    Waiting,
    /// A newer version is downloaded and verified.
    Downloading,
    /// A new version was installed, and has not proved yet that it makes progress.
    Unconfirmed,
    /// A newer version was refused or could not be installed.
    Failed,
    /// A newer version was installed and did not make progress; the previous one runs again.
    RolledBack,
}

impl UpdateState {
    /// Returns the name of the variant, as in a heartbeat.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Current => "current",
            Self::Available => "available",
            Self::Waiting => "waiting",
            Self::Downloading => "downloading",
            Self::Unconfirmed => "unconfirmed",
            Self::Failed => "failed",
            Self::RolledBack => "rolled_back",
        }
    }
}

/// Reason why a version is not installed, failed or was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum UpdateReason {
    /// The setting `update.mode` is `notify`.
    Notify,
    /// The program belongs to the machine, not to the user.
    MachineWide,
    /// The roll-out is halted.
    Halted,
    /// The roll-out does not include the machine yet.
    NotYet,
    /// The roll-out is for other groups.
    OtherGroup,
    /// The version was rolled back on this machine before.
    RolledBackBefore,
    /// The manifest is malformed.
    Manifest,
    /// The release has no signature.
    Unsigned,
    /// The signature was made by an unknown key.
    UnknownKey,
    /// The signature is malformed or wrong.
    WrongSignature,
    /// The signature is for another version or platform.
    OtherArtifact,
    /// The artifact has another size than the manifest says.
    WrongSize,
    /// The artifact has another SHA-256 than the manifest says.
    WrongHash,
    /// The server failed to deliver the artifact.
    Download,
    /// The server was too slow.
    TooSlow,
    /// The disk is full.
    DiskFull,
    /// A file or directory cannot be written.
    ReadOnly,
    /// Another program holds a file.
    FileInUse,
    /// Another process installs an update.
    Busy,
    /// The new program did not pass its self-test.
    SelfTest,
    /// The new program cannot be executed.
    NotExecutable,
    /// The files could not be exchanged.
    Install,
    /// The new program ended before it made progress, several times.
    Crashed,
    /// The new program did not make progress in time.
    NoProgress,
    /// A person requested the previous version.
    ByHand,
}

impl UpdateReason {
    /// Returns the name of the variant, as in an event.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::MachineWide => "machine_wide",
            Self::Halted => "halted",
            Self::NotYet => "not_yet",
            Self::OtherGroup => "other_group",
            Self::RolledBackBefore => "rolled_back_before",
            Self::Manifest => "manifest",
            Self::Unsigned => "unsigned",
            Self::UnknownKey => "unknown_key",
            Self::WrongSignature => "wrong_signature",
            Self::OtherArtifact => "other_artifact",
            Self::WrongSize => "wrong_size",
            Self::WrongHash => "wrong_hash",
            Self::Download => "download",
            Self::TooSlow => "too_slow",
            Self::DiskFull => "disk_full",
            Self::ReadOnly => "read_only",
            Self::FileInUse => "file_in_use",
            Self::Busy => "busy",
            Self::SelfTest => "self_test",
            Self::NotExecutable => "not_executable",
            Self::Install => "install",
            Self::Crashed => "crashed",
            Self::NoProgress => "no_progress",
            Self::ByHand => "by_hand",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_wire() {
        let name = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        for reason in [
            UpdateReason::MachineWide,
            UpdateReason::RolledBackBefore,
            UpdateReason::WrongHash,
            UpdateReason::ByHand,
            UpdateReason::NoProgress,
            UpdateReason::SelfTest,
        ] {
            assert_eq!(name(&serde_json::to_value(reason).unwrap()), reason.as_str());
        }
        for state in [UpdateState::RolledBack, UpdateState::Off, UpdateState::Unconfirmed] {
            assert_eq!(name(&serde_json::to_value(state).unwrap()), state.as_str());
        }
    }
}
