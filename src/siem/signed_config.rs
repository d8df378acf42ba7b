//! An answer of the server, with what proves that it is the server's.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};
use siem_protocol::{managed::MAX_BYTES, verify_answer};

use crate::{config::Secret, platform::secure_file};

/// Where the answer in force is kept, in the state directory.
const FILE: &str = "managed.json";

/// A managed configuration as it came. It is kept with its nonce and its signature, so that a copy
/// on disk proves as much as the answer did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedConfig {
    /// The body.
    pub body: String,
    /// What the request asked to be signed with it.
    pub nonce: String,
    /// The signature over both.
    pub signature: String,
    /// The `ETag` that it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

impl SignedConfig {
    /// Whether the holder of `secret` signed it.
    #[must_use]
    pub fn is_signed_with(&self, secret: &Secret) -> bool {
        let Self { body, nonce, signature, .. } = self;
        verify_answer(secret.expose().as_bytes(), nonce, body.as_bytes(), signature)
    }

    /// Keeps it in the state directory, in place of the one before: whole or not at all.
    ///
    /// # Errors
    /// What the system says; the one before is still there.
    pub fn save(&self, state_dir: &Path) -> io::Result<()> {
        let json = serde_json::to_vec(self).map_err(io::Error::other)?;
        secure_file::replace(&state_dir.join(FILE), &json)
    }

    /// The one that is kept in the state directory, if there is one. Its signature is not checked.
    ///
    /// # Errors
    /// It can't be read, or it is none.
    pub fn load(state_dir: &Path) -> io::Result<Option<Self>> {
        let path = state_dir.join(FILE);
        let size = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            metadata => metadata?.len(),
        };
        // Each byte of the body may have been escaped.
        if size > 7 * MAX_BYTES as u64 {
            return Err(io::Error::other("it is too large to be one that was kept"));
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
    fn is_kept_whole_and_still_proves_who_signed_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(SignedConfig::load(dir.path()).unwrap(), None);
        answer("{}").save(dir.path()).unwrap();
        answer("{\"version\":1}").save(dir.path()).unwrap();
        let mut kept = SignedConfig::load(dir.path()).unwrap().unwrap();
        assert_eq!(kept, answer("{\"version\":1}"));
        assert!(kept.is_signed_with(&Secret::new("secret").unwrap()));
        assert!(!kept.is_signed_with(&Secret::new("another").unwrap()));
        kept.body.push(' ');
        assert!(!kept.is_signed_with(&Secret::new("secret").unwrap()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[cfg(unix)]
    #[test]
    fn is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        answer("{}").save(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_copy_that_is_torn_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"body\":\"").unwrap();
        SignedConfig::load(dir.path()).unwrap_err();
    }
}
