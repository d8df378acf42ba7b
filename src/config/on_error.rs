//! Errors of single layers: stop at the first, or collect all.

use super::error::ConfigError;

/// What happens after an error that concerns a part of the layers.
pub(super) enum OnError<'a> {
    /// The error is returned.
    Stop,
    /// The error is stored, and the part is left out.
    Collect(&'a mut Vec<ConfigError>),
}

impl OnError<'_> {
    /// Returns the value; `None` if there is an error that was stored.
    pub(super) fn handle<T>(
        &mut self,
        result: Result<T, ConfigError>,
    ) -> Result<Option<T>, ConfigError> {
        match (self, result) {
            (_, Ok(value)) => Ok(Some(value)),
            (Self::Stop, Err(error)) => Err(error),
            (Self::Collect(errors), Err(error)) => {
                errors.push(error);
                Ok(None)
            }
        }
    }
}
