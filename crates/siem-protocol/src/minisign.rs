//! Signatures of the organisation, made with [minisign](https://jedisct1.github.io/minisign/).
//!
//! They are detached: a body, and the text of a `.minisig` file. Only the form that hashes the body
//! first (`ED`, the default since minisign 0.10) is accepted. The older one is refused: it adds
//! nothing here, and one form leaves less to choose for a forger.

use std::{
    fmt,
    io::{self, Read},
    str::FromStr,
};

use data_encoding::BASE64;
use minisign_verify::{Error, PublicKey, Signature};

use crate::note::weakness;

/// Maximum size of the text of a signature, in bytes.
pub const MAX_SIGNATURE_BYTES: usize = 4 << 10;

/// Size of the buffer for a body that is read.
const READ_BYTES: usize = 64 << 10;

const UNTRUSTED: &str = "untrusted comment:";

/// A public key of the organisation. Its text form is the base64 line of a `.pub` file; [`FromStr`]
/// also takes the whole file.
#[derive(Clone, PartialEq, Eq)]
pub struct OrganisationKey {
    base64: String,
    key: PublicKey,
}

impl OrganisationKey {
    /// Verifies a detached signature of `body`.
    ///
    /// # Errors
    /// [`MinisignError`]: nothing of the signature may be used.
    ///
    /// ```
    /// use siem_protocol::minisign::OrganisationKey;
    /// let key: OrganisationKey =
    ///     "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3".parse()?;
    /// let minisig = "untrusted comment: signature from minisign secret key\n\
    ///     RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/\
    ///     z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n\
    ///     trusted comment: timestamp:1556193335\tfile:test\n\
    ///     y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==\n";
    /// let verified = key.verify(b"test", minisig)?;
    /// assert_eq!(verified.trusted_comment(), "timestamp:1556193335\tfile:test");
    /// assert!(key.verify(b"Test", minisig).is_err());
    /// # Ok::<(), siem_protocol::minisign::MinisignError>(())
    /// ```
    pub fn verify(&self, body: &[u8], minisig: &str) -> Result<Minisigned, MinisignError> {
        let signature = decode(minisig)?;
        self.key.verify(body, &signature, false)?;
        Ok(Minisigned { trusted_comment: signature.trusted_comment().to_owned() })
    }

    /// Verifies a detached signature of all that `body` still has to read, without holding it in memory.
    ///
    /// # Errors
    /// [`ReadError`]: nothing of the signature may be used. `body` was read to its end, or until it
    /// failed, only with [`ReadError::Io`] and [`MinisignError::WrongSignature`].
    pub fn verify_reader(
        &self,
        body: &mut impl Read,
        minisig: &str,
    ) -> Result<Minisigned, ReadError> {
        let signature = decode(minisig)?;
        let mut verifier = self.key.verify_stream(&signature).map_err(MinisignError::from)?;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => verifier.update(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ReadError::Io(error)),
            }
        }
        verifier.finalize().map_err(MinisignError::from)?;
        Ok(Minisigned { trusted_comment: signature.trusted_comment().to_owned() })
    }
}

fn decode(minisig: &str) -> Result<Signature, MinisignError> {
    if minisig.len() > MAX_SIGNATURE_BYTES || minisig.lines().count() != 4 {
        return Err(MinisignError::Signature);
    }
    Ok(Signature::decode(minisig)?)
}

impl FromStr for OrganisationKey {
    type Err = MinisignError;

    fn from_str(text: &str) -> Result<Self, MinisignError> {
        let mut lines = text.trim_end().lines();
        let first = lines.next().unwrap_or_default();
        let base64 =
            if first.starts_with(UNTRUSTED) { lines.next().unwrap_or_default() } else { first };
        let bytes = BASE64.decode(base64.as_bytes()).map_err(|_| MinisignError::Key)?;
        // Algorithm (2 bytes), id (8 bytes), Ed25519 key.
        let public = bytes.get(10..).and_then(|key| key.try_into().ok());
        let public = public.ok_or(MinisignError::Key)?;
        if lines.next().is_some() {
            return Err(MinisignError::Key);
        }
        if weakness(public).is_some() {
            return Err(MinisignError::WeakKey);
        }
        let key = PublicKey::from_base64(base64).map_err(|_| MinisignError::Key)?;
        Ok(Self { base64: base64.to_owned(), key })
    }
}

impl fmt::Display for OrganisationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base64)
    }
}

impl fmt::Debug for OrganisationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrganisationKey({self})")
    }
}

/// Result of a verification: the only way to the trusted comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minisigned {
    trusted_comment: String,
}

impl Minisigned {
    /// Returns the comment that the signature covers.
    #[must_use]
    pub fn trusted_comment(&self) -> &str {
        &self.trusted_comment
    }
}

/// Error of a key or signature of minisign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MinisignError {
    /// The public key is malformed.
    #[error("the minisign public key is malformed")]
    Key,
    /// The public key is a point of small order, or not encoded canonically.
    #[error("the minisign public key is weak")]
    WeakKey,
    /// The text is not the four lines of a signature.
    #[error("the minisign signature is malformed")]
    Signature,
    /// The signature was made without hashing the body first, by an old minisign or with `-l`.
    #[error("the minisign signature has the legacy form: sign with minisign 0.10 or later")]
    Legacy,
    /// Another key made the signature.
    #[error("the minisign signature was made by an unknown key")]
    UnknownKey,
    /// The signature does not belong to the body, the trusted comment or the key.
    #[error("the minisign signature is wrong")]
    WrongSignature,
}

/// Error of the verification of a body that is read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The signature or the key.
    #[error(transparent)]
    Minisign(#[from] MinisignError),
    /// The body cannot be read.
    #[error("cannot read the signed file")]
    Io(#[source] io::Error),
}

impl From<Error> for MinisignError {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidSignature => Self::WrongSignature,
            Error::UnexpectedKeyId => Self::UnknownKey,
            Error::UnexpectedAlgorithm | Error::UnsupportedLegacyMode => Self::Legacy,
            Error::InvalidEncoding | Error::UnsupportedAlgorithm | Error::IoError(_) => {
                Self::Signature
            }
        }
    }
}
