//! Failure of a command, which determines its exit code.

use std::{error::Error, io, process::ExitCode};

use siem_server::trust::RegistryError;

use crate::output;

/// Failure of a command.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The arguments are wrong: nothing was tried. Exit code 2.
    Usage(Box<dyn Error>),
    /// It was tried and failed. Exit code 1.
    Failed(Box<dyn Error>),
}

impl Failure {
    pub(crate) fn usage(error: impl Into<Box<dyn Error>>) -> Self {
        Self::Usage(error.into())
    }

    pub(crate) fn failed(error: impl Into<Box<dyn Error>>) -> Self {
        Self::Failed(error.into())
    }

    /// Prints the error with its causes, and returns the exit code. A reader that closed the output
    /// ends a command without an error.
    pub(crate) fn report(self) -> ExitCode {
        let (code, error) = match self {
            Self::Usage(error) => (2, error),
            Self::Failed(error) => (1, error),
        };
        let closed = error.downcast_ref::<io::Error>();
        if closed.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        let mut text = format!("error: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(&format!("\n  caused by: {error}"));
            cause = error.source();
        }
        output::note(&output::plain_lines(&text));
        ExitCode::from(code)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::failed(error)
    }
}
