//! Keys of signed notes, with their text forms.

use std::{fmt, str::FromStr};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{
    NoteSigner, SignError,
    point::{WeakPoint, weakness},
};

/// Type of signature: Ed25519 over the text of the note.
const ED25519_NOTE: u8 = 0x01;
const PRIVATE: &str = "PRIVATE+KEY+";

/// Error of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not `name+hash+base64`, or for a private key `PRIVATE+KEY+name+hash+base64`.
    #[error("the key is not of the form `name+hash+base64`")]
    Form,
    /// The name is empty, or has white space, a control character or `+`.
    #[error("the name of the key is empty, or has white space, a control character or `+`")]
    Name,
    /// The type of the key is not Ed25519, or it has another length.
    #[error("the key is not an Ed25519 key")]
    Type,
    /// The hash does not belong to name and key.
    #[error("the hash in the key does not belong to its name and bytes")]
    Hash,
    /// The public key is a point of small order, for which signatures are easy to forge.
    #[error("the public key is a point of small order")]
    SmallOrder,
    /// The public key has another, canonical encoding.
    #[error("the public key is not encoded canonically")]
    NotCanonical,
}

/// A public key with its name. Text form: `name+hash+base64`, as in C2SP signed-note and Go's
/// `sumdb/note`.
///
/// Two keys are equal if name and bytes are. A point of small order and an encoding that is not
/// canonical are no keys: [`VerifierKey::new`] and [`FromStr`] reject them.
///
/// ```
/// use siem_protocol::note::VerifierKey;
/// let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
/// let key: VerifierKey = text.parse()?;
/// assert_eq!(key.name(), "PeterNeumann");
/// assert_eq!(key.to_string(), text);
/// # Ok::<(), siem_protocol::note::KeyError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VerifierKey {
    name: String,
    public: [u8; 32],
    id: [u8; 4],
}

impl VerifierKey {
    /// Creates a key from its name and its 32 bytes as encoded in RFC 8032.
    ///
    /// # Errors
    /// [`KeyError`] for a name that notes cannot carry, and for a weak key.
    pub fn new(name: &str, public: [u8; 32]) -> Result<Self, KeyError> {
        if !is_key_name(name) {
            return Err(KeyError::Name);
        }
        match weakness(&public) {
            Some(WeakPoint::SmallOrder) => return Err(KeyError::SmallOrder),
            Some(WeakPoint::NotCanonical) => return Err(KeyError::NotCanonical),
            None => {}
        }
        let id = key_id(name, &public);
        Ok(Self { name: name.to_owned(), public, id })
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the first 4 bytes of `SHA-256(name ‖ "\n" ‖ 0x01 ‖ public key)`, which a signature
    /// line repeats. They identify a key among those known; they do not authenticate it.
    #[must_use]
    pub fn id(&self) -> [u8; 4] {
        self.id
    }

    /// Returns the 32 bytes of the public key.
    #[must_use]
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Reports whether `signature` is this key's signature of `text`. An `S` that is not reduced
    /// is refused (RFC 8032, section 5.1.7).
    pub(super) fn verifies(&self, text: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.public).verify(text, signature).is_ok()
    }
}

impl FromStr for VerifierKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, hash, public) = split(text)?;
        let key = Self::new(name, *public)?;
        if hex(key.id) == hash { Ok(key) } else { Err(KeyError::Hash) }
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}+{}", self.name, hex(self.id), typed_base64(&self.public).as_str())
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierKey({self})")
    }
}

impl Serialize for VerifierKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VerifierKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(feature = "schemars")]
impl schemars::JsonSchema for VerifierKey {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "VerifierKey".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

/// A private key in memory. Text form: `PRIVATE+KEY+name+hash+base64`, as in Go's `sumdb/note`.
///
/// `Debug` shows the public key only. The seed and its text form are overwritten when dropped.
pub struct SigningKey {
    key: VerifierKey,
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// Creates a key from its name and 32 random bytes: the private key of RFC 8032.
    ///
    /// # Errors
    /// [`KeyError::Name`] for a name that notes cannot carry.
    pub fn from_seed(name: &str, seed: [u8; 32]) -> Result<Self, KeyError> {
        let seed = Zeroizing::new(seed);
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).map_err(|_| KeyError::Type)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| KeyError::Type)?;
        Ok(Self { key: VerifierKey::new(name, public)?, seed, pair })
    }

    /// Returns the text form, which is secret.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let base64 = typed_base64(&self.seed);
        let text = [PRIVATE, &self.key.name, "+", &hex(self.key.id), "+", &base64];
        Zeroizing::new(text.concat())
    }
}

impl FromStr for SigningKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, hash, seed) = split(text.strip_prefix(PRIVATE).ok_or(KeyError::Form)?)?;
        let key = Self::from_seed(name, *seed)?;
        if hex(key.key.id) == hash { Ok(key) } else { Err(KeyError::Hash) }
    }
}

impl NoteSigner for SigningKey {
    fn key(&self) -> &VerifierKey {
        &self.key
    }

    fn sign(&self, text: &[u8]) -> Result<[u8; 64], SignError> {
        let failed = || SignError::Signer {
            name: self.key.name.clone(),
            source: "the library cannot sign".into(),
        };
        let signature = self.pair.try_sign(text).map_err(|_| failed())?;
        signature.as_ref().try_into().map_err(|_| failed())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Reports whether a note can carry `name`.
pub(super) fn is_key_name(name: &str) -> bool {
    let forbidden = |c: char| c.is_whitespace() || c < ' ' || c == '+';
    !name.is_empty() && !name.contains(forbidden)
}

/// Splits `name+hash+base64` of an Ed25519 key into the name, the hash and 32 bytes.
fn split(text: &str) -> Result<(&str, &str, Zeroizing<[u8; 32]>), KeyError> {
    let mut parts = text.splitn(3, '+');
    let (Some(name), Some(hash), Some(base64)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(KeyError::Form);
    };
    let bytes = BASE64.decode(base64.as_bytes()).map(Zeroizing::new).map_err(|_| KeyError::Form)?;
    match bytes.split_first() {
        Some((&ED25519_NOTE, bytes)) => {
            let bytes = bytes.try_into().map_err(|_| KeyError::Type)?;
            Ok((name, hash, Zeroizing::new(bytes)))
        }
        _ => Err(KeyError::Type),
    }
}

/// Encodes the type and the 32 bytes of a key.
fn typed_base64(bytes: &[u8; 32]) -> Zeroizing<String> {
    let mut typed = Zeroizing::new([ED25519_NOTE; 33]);
    typed[1..].copy_from_slice(bytes);
    Zeroizing::new(BASE64.encode(&*typed))
}

fn key_id(name: &str, public: &[u8; 32]) -> [u8; 4] {
    let mut hash = Sha256::new();
    hash.update(name);
    hash.update(b"\n");
    hash.update([ED25519_NOTE]);
    hash.update(public);
    let [a, b, c, d, ..] = <[u8; 32]>::from(hash.finalize());
    [a, b, c, d]
}

fn hex(id: [u8; 4]) -> String {
    data_encoding::HEXLOWER.encode(&id)
}
