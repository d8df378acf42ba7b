//! Reasons why a path cannot be read.

use serde::{Deserialize, Serialize};

/// Reason why a path cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UnreadableReason {
    /// The agent has no permission.
    PermissionDenied,
    /// The path is longer than the operating system accepts.
    PathTooLong,
    /// The file system or its disk fails, or is not connected.
    FileSystem,
    /// A call of its file system has not returned for seconds, for this path or one below it.
    DoesNotAnswer,
    /// A symlink that leads to nothing.
    LinkBroken,
    /// A symlink to neither a regular file nor a directory.
    LinkTargetKind,
    /// A symlink to a file or directory of another user.
    LinkTargetOwner,
    /// A symlink to a directory that contains a directory of sessions.
    LinkContainsRoot,
    /// A symlink to a directory that contains the home directory.
    LinkContainsHome,
    /// Another error.
    Other,
}
