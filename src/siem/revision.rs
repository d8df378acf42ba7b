//! Revision of the managed configuration in force.

use std::sync::{Arc, PoisonError, RwLock};

use percent_encoding::{CONTROLS, utf8_percent_encode};

/// Revision of the managed configuration in force. All clones see each change: a request carries
/// the revision in force when it is sent, on any connection.
#[derive(Clone, Debug, Default)]
pub struct Revision(Arc<RwLock<Option<String>>>);

impl Revision {
    /// Sets the revision; `None` without a managed configuration.
    pub fn set(&self, revision: Option<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = revision;
    }

    /// Returns the revision; `None` without a managed configuration.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the value of the header, which may contain only printable ASCII.
    pub(super) fn header(&self) -> String {
        utf8_percent_encode(self.get().as_deref().unwrap_or("0"), CONTROLS).to_string()
    }
}
