//! Members of events about device keys, the policy's files and signed responses.

use serde::{Deserialize, Serialize};

/// Cause of a new device key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeviceKeyReason {
    /// First start of an agent that has device keys.
    First,
    /// The key was deleted.
    Missing,
    /// The key could not be read.
    Damaged,
    /// The key names another machine: the state directory was copied.
    OtherMachine,
    /// The key names another user: the user was renamed, or the state directory was copied.
    OtherUser,
    /// The receiver reported that two installations use the key.
    Cloned,
    /// The command `ai-agent device rotate` replaced it.
    Rotated,
}

/// File that the agent writes for hooks and for its next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PolicyFile {
    /// Policy that hooks read.
    Policy,
    /// Managed configuration.
    Managed,
    /// File that tells hooks where the state directory is.
    Pointer,
}

/// Change of a file by another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PolicyTampering {
    /// The file is missing.
    Deleted,
    /// The file has another content.
    Edited,
    /// The file was replaced by a link or by something else that is not a regular file.
    Replaced,
    /// The file belongs to another user.
    OtherOwner,
    /// The file cannot be read.
    Unreadable,
}

/// What is wrong with a response that must be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum UntrustedAnswer {
    /// It has no statement.
    Unsigned,
    /// The statement is malformed.
    Malformed,
    /// No pinned key signed the statement.
    WrongKey,
    /// The signature is wrong.
    WrongSignature,
    /// The statement is about another receiver, machine, epoch, chain or request.
    OtherSubject,
}
