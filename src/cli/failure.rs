//! Failure of a command, which determines its exit code.

use std::{error::Error, io};

use crate::{
    agent::{AgentError, SetupError},
    control::RequestError,
    text::causes,
};

/// Failure of a command.
#[derive(Debug)]
pub(super) enum Failure {
    /// The arguments, the environment or the configuration are wrong: nothing was tried. Exit code 2.
    Usage(Box<dyn Error>),
    /// It was tried and failed. Exit code 1.
    Failed(Box<dyn Error>),
}

impl Failure {
    pub(super) fn usage(error: impl Into<Box<dyn Error>>) -> Self {
        Self::Usage(error.into())
    }

    pub(super) fn failed(error: impl Into<Box<dyn Error>>) -> Self {
        Self::Failed(error.into())
    }

    /// Returns the same failure with exit code 1, for commands that check the configuration.
    pub(super) fn into_failed(self) -> Self {
        let (Self::Usage(error) | Self::Failed(error)) = self;
        Self::Failed(error)
    }

    /// Formats the error with its causes.
    pub(super) fn message(&self) -> String {
        let (Self::Usage(error) | Self::Failed(error)) = self;
        causes(&**error)
    }

    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(_) => 1,
        }
    }

    /// Returns true if the reader of the output has closed it, which ends a command without an error.
    pub(super) fn is_broken_pipe(&self) -> bool {
        let (Self::Usage(error) | Self::Failed(error)) = self;
        let is_broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
        error.downcast_ref::<io::Error>().is_some_and(is_broken)
            || error.downcast_ref::<RequestError>().is_some_and(RequestError::is_broken_pipe)
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Invalid(_) => Self::usage(error),
            RequestError::Failed(_) | RequestError::Output(_) => Self::failed(error),
        }
    }
}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        Self::usage(error)
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Setup(error) => error.into(),
            error => Self::failed(error),
        }
    }
}
