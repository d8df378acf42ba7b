//! Reasons why a release is not installed.

use std::io;

use siem_protocol::{agent_event::UpdateReason, update::ArtifactError};

use super::{
    child::ChildError, record::RollbackReason, self_test::SelfTestFailure, swap::InstallError,
};
use crate::{platform::own_program, text::causes};

/// Reason why a release is not installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdateError {
    /// The receiver cannot be reached, or does not deliver the file. The next check tries again.
    #[error("{detail}")]
    Unavailable {
        /// What happened.
        reason: UpdateReason,
        /// Explanation.
        detail: String,
    },
    /// The release is not what it claims to be.
    #[error("the release is refused: {detail}")]
    Refused {
        /// What is wrong.
        reason: UpdateReason,
        /// Explanation.
        detail: String,
    },
    /// The release cannot be installed on this machine.
    #[error("the release cannot be installed: {detail}")]
    Failed {
        /// What went wrong.
        reason: UpdateReason,
        /// Explanation.
        detail: String,
    },
}

impl UpdateError {
    /// Returns the error of a server that does not deliver.
    pub(crate) fn unavailable(reason: UpdateReason, detail: impl Into<String>) -> Self {
        Self::Unavailable { reason, detail: detail.into() }
    }

    /// Returns the error of a release that is refused.
    pub(crate) fn refused(reason: UpdateReason, detail: impl Into<String>) -> Self {
        Self::Refused { reason, detail: detail.into() }
    }

    /// Returns the error of a release that cannot be installed.
    pub(crate) fn failed(reason: UpdateReason, detail: impl Into<String>) -> Self {
        Self::Failed { reason, detail: detail.into() }
    }

    /// Returns the error about a file of the agent's own; `what` was tried.
    pub(crate) fn file(what: &str, error: &io::Error) -> Self {
        Self::failed(file_reason(error), format!("{what}: {}", causes(error)))
    }

    /// Returns the reason.
    #[must_use]
    pub(crate) fn reason(&self) -> UpdateReason {
        let (Self::Unavailable { reason, .. }
        | Self::Refused { reason, .. }
        | Self::Failed { reason, .. }) = self;
        *reason
    }

    /// Returns the explanation.
    #[must_use]
    pub(crate) fn detail(&self) -> &str {
        let (Self::Unavailable { detail, .. }
        | Self::Refused { detail, .. }
        | Self::Failed { detail, .. }) = self;
        detail
    }
}

impl From<ArtifactError> for UpdateError {
    fn from(error: ArtifactError) -> Self {
        match (error.reason(), &error) {
            (Some(reason), error) => Self::refused(reason, causes(error)),
            (None, ArtifactError::Read(error)) => Self::file("cannot read the download", error),
            (None, error) => Self::failed(UpdateReason::Install, causes(error)),
        }
    }
}

impl From<SelfTestFailure> for UpdateError {
    fn from(error: SelfTestFailure) -> Self {
        let reason = match &error {
            SelfTestFailure::Child(error) if error.is_busy() => UpdateReason::FileInUse,
            SelfTestFailure::Child(ChildError::NotStarted(_)) => UpdateReason::NotExecutable,
            _ => UpdateReason::SelfTest,
        };
        Self::failed(reason, causes(&error))
    }
}

impl From<InstallError> for UpdateError {
    fn from(error: InstallError) -> Self {
        let reason = match &error {
            InstallError::InProgress { .. } => UpdateReason::Busy,
            InstallError::NotExecutable(_) => UpdateReason::NotExecutable,
            InstallError::Io { source, .. } => file_reason(source),
            InstallError::Same
            | InstallError::Foreign(_)
            | InstallError::Changed
            | InstallError::NoSupervisor(_) => UpdateReason::Install,
        };
        Self::failed(reason, causes(&error))
    }
}

fn file_reason(error: &io::Error) -> UpdateReason {
    match error.kind() {
        _ if own_program::is_busy(error) => UpdateReason::FileInUse,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            UpdateReason::DiskFull
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            UpdateReason::ReadOnly
        }
        _ => UpdateReason::Install,
    }
}

/// Returns the reason of a rollback as events and heartbeats have it.
pub(crate) fn rollback_reason(reason: RollbackReason) -> UpdateReason {
    match reason {
        RollbackReason::NotExecutable => UpdateReason::NotExecutable,
        RollbackReason::Crashed => UpdateReason::Crashed,
        RollbackReason::NotConfirmed | RollbackReason::Unknown => UpdateReason::NoProgress,
        RollbackReason::Interrupted => UpdateReason::Install,
        RollbackReason::ByHand => UpdateReason::ByHand,
    }
}
