//! Managed configuration with its signature.

use std::{
    io,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use siem_protocol::{
    managed::MAX_BYTES,
    minisign::{MinisignError, OrganisationKey},
    verify_answer,
};

use crate::{
    config::Secret,
    platform::{file, secure_file},
};

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
    /// Text of the organisation's signature of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minisig: Option<String>,
}

/// Reason why a managed configuration is not one of the organisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrganisationError {
    /// It has no signature of the organisation.
    #[error("it has no signature of the organisation, which `managed.keys` requires")]
    Unsigned,
    /// Its signature is not that of the organisation.
    #[error("its signature is by none of `managed.keys`")]
    Signature(#[source] MinisignError),
}

impl SignedConfig {
    /// Returns whether the signature was made with `secret`.
    #[must_use]
    pub fn is_signed_with(&self, secret: &Secret) -> bool {
        let Self { body, nonce, signature, .. } = self;
        verify_answer(secret.expose().as_bytes(), nonce, body.as_bytes(), signature)
    }

    /// Verifies that one of `keys` signed the body.
    ///
    /// # Errors
    /// [`OrganisationError`]: nothing in the body may be used.
    pub fn verify_organisation(&self, keys: &[OrganisationKey]) -> Result<(), OrganisationError> {
        let minisig = self.minisig.as_deref().ok_or(OrganisationError::Unsigned)?;
        let mut error = MinisignError::UnknownKey;
        for key in keys {
            match key.verify(self.body.as_bytes(), minisig) {
                Ok(_) => return Ok(()),
                // Says more than that another key did not make the signature.
                Err(wrong) if wrong != MinisignError::UnknownKey => error = wrong,
                Err(_) => {}
            }
        }
        Err(OrganisationError::Signature(error))
    }

    /// Returns the content of the copy in the state directory.
    pub fn to_file(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts can be written as JSON")
    }

    /// Returns the path of the copy in a state directory.
    #[must_use]
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join(FILE)
    }

    /// Returns the copy in the state directory, if there is one. Its signature is not checked.
    ///
    /// # Errors
    /// The file cannot be read or parsed.
    pub fn load(state_dir: &Path) -> io::Result<Option<Self>> {
        let (file, stamp) = match file::open_regular(&Self::path(state_dir)) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Err(io::Error::other("not a regular file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !secure_file::has_trusted_owner(&file)? {
            return Err(io::Error::other("the file belongs to another user: delete it"));
        }
        // Each byte of the body may have been escaped.
        let most = 7 * MAX_BYTES as u64;
        if stamp.size > most {
            return Err(io::Error::other("the file is too large for a managed configuration"));
        }
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use siem_protocol::sign_answer;

    use super::*;

    fn answer(body: &str) -> SignedConfig {
        let nonce = "00ff".to_owned();
        let signature = sign_answer(b"secret", &nonce, body.as_bytes());
        let etag = Some("\"e\"".to_owned());
        SignedConfig { body: body.to_owned(), nonce, signature, etag, minisig: None }
    }

    #[test]
    fn copy_loads_with_a_valid_signature() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(SignedConfig::load(dir.path()).unwrap(), None);
        fs::write(SignedConfig::path(dir.path()), answer("{\"version\":1}").to_file()).unwrap();
        let mut loaded = SignedConfig::load(dir.path()).unwrap().unwrap();
        assert_eq!(loaded, answer("{\"version\":1}"));
        assert!(loaded.is_signed_with(&Secret::new("secret").unwrap()));
        assert!(!loaded.is_signed_with(&Secret::new("another").unwrap()));
        loaded.body.push(' ');
        assert!(!loaded.is_signed_with(&Secret::new("secret").unwrap()));
    }

    #[test]
    fn only_a_key_of_the_organisation_verifies() {
        let key = |text: &str| text.parse::<OrganisationKey>().unwrap();
        // Made with minisign 0.11, see `tests/support/policy`.
        let (ours, other) = (
            key(include_str!("../../tests/support/policy/org.pub")),
            key(include_str!("../../tests/support/policy/other.pub")),
        );
        let body = include_str!("../../tests/support/policy/serial-5.json");
        let minisig = include_str!("../../tests/support/policy/serial-5.json.minisig");
        let signed = SignedConfig { minisig: Some(minisig.to_owned()), ..answer(body) };
        assert_eq!(signed.verify_organisation(std::slice::from_ref(&ours)), Ok(()));
        assert_eq!(signed.verify_organisation(&[other.clone(), ours.clone()]), Ok(()));
        let refused = |signed: &SignedConfig, keys: &[OrganisationKey]| {
            signed.verify_organisation(keys).unwrap_err()
        };
        assert_eq!(
            refused(&signed, &[other]),
            OrganisationError::Signature(MinisignError::UnknownKey)
        );
        let edited = SignedConfig { body: body.replace("block", "warn"), ..signed.clone() };
        assert_eq!(
            refused(&edited, std::slice::from_ref(&ours)),
            OrganisationError::Signature(MinisignError::WrongSignature)
        );
        let garbled = SignedConfig { minisig: Some(String::new()), ..signed.clone() };
        assert!(matches!(
            refused(&garbled, std::slice::from_ref(&ours)),
            OrganisationError::Signature(_)
        ));
        let unsigned = SignedConfig { minisig: None, ..signed };
        assert_eq!(refused(&unsigned, &[ours]), OrganisationError::Unsigned);
    }

    #[test]
    fn truncated_copy_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"body\":\"").unwrap();
        SignedConfig::load(dir.path()).unwrap_err();
    }
}
