//! Managed configuration with its signature.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};
use siem_protocol::{managed::MAX_BYTES, verify_answer};

use crate::{config::Secret, platform::secure_file};

/// File in the state directory.
const FILE: &str = "managed.json";

/// Managed configuration as received. It is stored with its nonce and signature, so that the copy
/// on disk proves as much as the response did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedConfig {
    /// Body of the response.
    pub body: String,
    /// Nonce of the request.
    pub nonce: String,
    /// Signature of nonce and body.
    pub signature: String,
    /// `ETag` of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

impl SignedConfig {
    /// Returns whether the signature was made with `secret`.
    #[must_use]
    pub fn is_signed_with(&self, secret: &Secret) -> bool {
        let Self { body, nonce, signature, .. } = self;
        verify_answer(secret.expose().as_bytes(), nonce, body.as_bytes(), signature)
    }

    /// Replaces the copy in the state directory atomically.
    ///
    /// # Errors
    /// The error of the system; the previous copy is unchanged.
    pub fn save(&self, state_dir: &Path) -> io::Result<()> {
        let json = serde_json::to_vec(self).map_err(io::Error::other)?;
        secure_file::replace(&state_dir.join(FILE), &json)
    }

    /// Returns the copy in the state directory, if there is one. Its signature is not checked.
    ///
    /// # Errors
    /// The file cannot be read or parsed.
    pub fn load(state_dir: &Path) -> io::Result<Option<Self>> {
        let path = state_dir.join(FILE);
        let size = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            metadata => metadata?.len(),
        };
        // Each byte of the body may have been escaped.
        if size > 7 * MAX_BYTES as u64 {
            return Err(io::Error::other("the file is too large for a managed configuration"));
        }
        serde_json::from_slice(&fs::read(path)?).map(Some).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use siem_protocol::sign_answer;

    use super::*;

    fn answer(body: &str) -> SignedConfig {
        let nonce = "00ff".to_owned();
        let signature = sign_answer(b"secret", &nonce, body.as_bytes());
        SignedConfig { body: body.to_owned(), nonce, signature, etag: Some("\"e\"".to_owned()) }
    }

    #[test]
    fn saved_configuration_loads_with_a_valid_signature() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(SignedConfig::load(dir.path()).unwrap(), None);
        answer("{}").save(dir.path()).unwrap();
        answer("{\"version\":1}").save(dir.path()).unwrap();
        let mut loaded = SignedConfig::load(dir.path()).unwrap().unwrap();
        assert_eq!(loaded, answer("{\"version\":1}"));
        assert!(loaded.is_signed_with(&Secret::new("secret").unwrap()));
        assert!(!loaded.is_signed_with(&Secret::new("another").unwrap()));
        loaded.body.push(' ');
        assert!(!loaded.is_signed_with(&Secret::new("secret").unwrap()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no other file is left");
    }

    #[cfg(unix)]
    #[test]
    fn saved_configuration_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        answer("{}").save(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn truncated_copy_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"body\":\"").unwrap();
        SignedConfig::load(dir.path()).unwrap_err();
    }
}
