//! Which managed configuration is in force.

use std::sync::{Arc, PoisonError, RwLock};

use percent_encoding::{CONTROLS, utf8_percent_encode};

/// The revision of the managed configuration in force. Who has a copy sees each change: a request
/// says what is in force when it is sent, by whatever connection.
#[derive(Clone, Debug, Default)]
pub struct Revision(Arc<RwLock<Option<String>>>);

impl Revision {
    /// Another is in force now; none without a managed configuration.
    pub fn set(&self, revision: Option<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = revision;
    }

    /// The revision; none without a managed configuration.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As a header has it, which carries printable ASCII only.
    pub(super) fn header(&self) -> String {
        utf8_percent_encode(self.get().as_deref().unwrap_or("0"), CONTROLS).to_string()
    }
}
