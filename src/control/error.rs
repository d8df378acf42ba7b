//! Error of a request.

use std::io;

use crate::text::causes;

/// Reason why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The request is wrong; nothing was tried.
    #[error("{0}")]
    Invalid(String),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
    /// A response cannot be written.
    #[error(transparent)]
    Output(#[from] io::Error),
}

impl RequestError {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// Creates a failure with all its causes.
    pub(crate) fn because(error: impl std::error::Error) -> Self {
        Self::Failed(causes(&error))
    }

    /// Returns true if the reader of the responses has disconnected, which is not a failure.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
