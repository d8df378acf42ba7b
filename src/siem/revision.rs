//! Revision of the managed configuration in force.

use std::sync::{Arc, PoisonError, RwLock};

use percent_encoding::{CONTROLS, utf8_percent_encode};
use siem_protocol::Digest;

/// Revision of the managed configuration in force. All clones see each change: a request carries
/// the revision in force when it is sent, on any connection.
#[derive(Clone, Debug, Default)]
pub struct Revision(Arc<RwLock<ManagedRevision>>);

#[derive(Debug, Default)]
struct ManagedRevision {
    name: Option<String>,
    hash: Option<Digest>,
}

impl Revision {
    /// Sets the name of the revision, and the SHA-256 of the body; `None` without a managed
    /// configuration.
    pub fn set(&self, name: Option<String>, hash: Option<Digest>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = ManagedRevision { name, hash };
    }

    /// Returns the SHA-256 of the body; `None` without a managed configuration.
    #[must_use]
    pub fn managed_hash(&self) -> Option<Digest> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).hash
    }

    /// Returns the revision; `None` without a managed configuration.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).name.clone()
    }

    /// Returns the value of the header, which may contain only printable ASCII.
    pub(super) fn header(&self) -> String {
        utf8_percent_encode(self.get().as_deref().unwrap_or("0"), CONTROLS).to_string()
    }
}
