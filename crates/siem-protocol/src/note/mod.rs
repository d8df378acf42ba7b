//! Signed notes: a text with signatures that stay with it, as defined by
//! [C2SP signed-note](https://c2sp.org/signed-note).
//!
//! ```text
//! the text,
//! of one or more lines
//!
//! — name base64(key id ‖ signature)
//! ```
//!
//! [`sign`] makes one, [`Note::parse`] reads its form, and only [`Note::verify`] returns a text that
//! may be acted on. Signatures are Ed25519 over the text with its last newline. The
//! [statements](crate::statement) are notes.

mod key;
mod point;

use data_encoding::BASE64;
pub use key::{KeyError, SigningKey, VerifierKey};
pub(crate) use point::weakness;

/// Maximum size of a note, in bytes.
pub const MAX_NOTE_BYTES: usize = 64 << 10;
/// Maximum number of signatures of a note.
pub const MAX_SIGNATURES: usize = 16;

/// Start of a signature line: an em dash (U+2014) and a space.
const SIGNATURE_PREFIX: &str = "— ";

/// Holder of a private key. [`SigningKey`] holds it in memory; an implementation may leave it in a
/// TPM or another process.
pub trait NoteSigner: Send + Sync {
    /// Returns the public key.
    fn key(&self) -> &VerifierKey;

    /// Signs `text` with Ed25519.
    ///
    /// # Errors
    /// [`SignError::Signer`] if the holder of the key cannot sign now.
    fn sign(&self, text: &[u8]) -> Result<[u8; 64], SignError>;
}

/// Error of signing a note.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// No note can have this text or so many signatures.
    #[error("the note cannot be signed")]
    Note(#[from] NoteError),
    /// The holder of a key could not sign.
    #[error("cannot sign with the key `{name}`")]
    Signer {
        /// Name of the key.
        name: String,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Error of a note.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The note has more than [`MAX_NOTE_BYTES`].
    #[error("the note is larger than {} KiB", MAX_NOTE_BYTES >> 10)]
    TooLarge,
    /// The note has a control character other than a newline.
    #[error("the note has a control character")]
    ControlCharacter,
    /// The text does not end with a newline.
    #[error("the text of the note does not end with a newline")]
    Unterminated,
    /// No empty line and signatures follow the text.
    #[error("the note has no signature")]
    NoSignature,
    /// The line after the text with this index, from 0, is not a signature.
    #[error("signature line {0} of the note is malformed")]
    SignatureLine(usize),
    /// The note has more than [`MAX_SIGNATURES`].
    #[error("the note has more than {MAX_SIGNATURES} signatures")]
    TooManySignatures,
    /// None of the signatures is by a known key.
    #[error("the note is not signed by a known key")]
    UnknownKey,
    /// A known key did not make the signature that bears its name and id.
    #[error("the signature by `{name}` is wrong")]
    WrongSignature {
        /// Name of the key.
        name: String,
    },
}

/// Signs `text`, which must end with a newline, with each of `signers`, in this order.
///
/// # Errors
/// [`SignError::Note`] if [`Note::parse`] would refuse the result.
///
/// ```
/// use siem_protocol::note::{self, Note, NoteSigner, SigningKey};
/// let key = SigningKey::from_seed("example.com/device", [7; 32])?;
/// let note = note::sign("all is well\n", &[&key])?;
/// let note = Note::parse(&note)?;
/// assert_eq!(note.verify(&[key.key().clone()])?.text(), "all is well\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn sign(text: &str, signers: &[&dyn NoteSigner]) -> Result<String, SignError> {
    check_text(text)?;
    if signers.is_empty() {
        return Err(NoteError::NoSignature.into());
    }
    if signers.len() > MAX_SIGNATURES {
        return Err(NoteError::TooManySignatures.into());
    }
    let mut note = format!("{text}\n");
    for signer in signers {
        let key = signer.key();
        let mut bytes = [0; 68];
        bytes[..4].copy_from_slice(&key.id());
        bytes[4..].copy_from_slice(&signer.sign(text.as_bytes())?);
        note.push_str(SIGNATURE_PREFIX);
        note.push_str(key.name());
        note.push(' ');
        BASE64.encode_append(&bytes, &mut note);
        note.push('\n');
    }
    if note.len() > MAX_NOTE_BYTES { Err(NoteError::TooLarge.into()) } else { Ok(note) }
}

/// A note whose form is right and whose signatures are not verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

/// A signature of a note, not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteSignature {
    name: String,
    key_id: [u8; 4],
    signature: Vec<u8>,
}

impl NoteSignature {
    /// Returns the name of the key that claims to have made the signature.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the id of the key that claims to have made the signature.
    #[must_use]
    pub fn key_id(&self) -> [u8; 4] {
        self.key_id
    }

    fn claims(&self, key: &VerifierKey) -> bool {
        self.key_id == key.id() && self.name == key.name()
    }

    fn parse(line: &str) -> Option<Self> {
        let (name, base64) = line.strip_prefix(SIGNATURE_PREFIX)?.split_once(' ')?;
        let bytes = BASE64.decode(base64.as_bytes()).ok()?;
        let (key_id, signature) = bytes.split_first_chunk()?;
        let valid = key::is_key_name(name) && !signature.is_empty();
        valid.then(|| Self {
            name: name.to_owned(),
            key_id: *key_id,
            signature: signature.to_vec(),
        })
    }
}

impl Note {
    /// Parses the form of a note.
    ///
    /// # Errors
    /// [`NoteError`], except for [`NoteError::UnknownKey`] and [`NoteError::WrongSignature`].
    pub fn parse(note: &str) -> Result<Self, NoteError> {
        if note.len() > MAX_NOTE_BYTES {
            return Err(NoteError::TooLarge);
        }
        // The text may have empty lines: the last one separates it from the signatures.
        let end = note.rfind("\n\n").ok_or(NoteError::NoSignature)?;
        let (text, lines) = (&note[..=end], &note[end + 2..]);
        check_text(text)?;
        let lines = lines.strip_suffix('\n').ok_or(NoteError::NoSignature)?;
        if lines.split('\n').nth(MAX_SIGNATURES).is_some() {
            return Err(NoteError::TooManySignatures);
        }
        let parse =
            |(index, line)| NoteSignature::parse(line).ok_or(NoteError::SignatureLine(index));
        let signatures = lines.split('\n').enumerate().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), signatures })
    }

    /// Returns the signatures, of which none is verified: to look a key up by name and id.
    #[must_use]
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }

    /// Returns the text, which no signature vouches for yet: to find the keys that it names.
    #[must_use]
    pub fn unverified_text(&self) -> &str {
        &self.text
    }

    /// Verifies the note with the keys that the caller trusts, and returns the text with those that
    /// signed it. Signatures by other keys are ignored.
    ///
    /// # Errors
    /// [`NoteError::UnknownKey`] if none of `keys` signed the note, and
    /// [`NoteError::WrongSignature`] if any signature that bears the name and the id of one of
    /// `keys` is wrong, even if others are right.
    pub fn verify<'a>(&'a self, keys: &'a [VerifierKey]) -> Result<VerifiedNote<'a>, NoteError> {
        let mut signers = Vec::new();
        for signature in &self.signatures {
            let mut claimed = keys.iter().filter(|key| signature.claims(key)).peekable();
            if claimed.peek().is_none() {
                continue;
            }
            let signer = claimed
                .find(|key| key.verifies(self.text.as_bytes(), &signature.signature))
                .ok_or_else(|| NoteError::WrongSignature { name: signature.name.clone() })?;
            if !signers.contains(&signer) {
                signers.push(signer);
            }
        }
        if signers.is_empty() {
            return Err(NoteError::UnknownKey);
        }
        Ok(VerifiedNote { text: &self.text, signers })
    }
}

/// Text of a note that known keys signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedNote<'a> {
    text: &'a str,
    signers: Vec<&'a VerifierKey>,
}

impl<'a> VerifiedNote<'a> {
    /// Returns the text, with its last newline.
    #[must_use]
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// Returns the keys that signed it, at least one, each once.
    #[must_use]
    pub fn signers(&self) -> &[&'a VerifierKey] {
        &self.signers
    }
}

fn check_text(text: &str) -> Result<(), NoteError> {
    if text.bytes().any(|byte| byte < 0x20 && byte != b'\n') {
        return Err(NoteError::ControlCharacter);
    }
    if text.ends_with('\n') { Ok(()) } else { Err(NoteError::Unterminated) }
}
