//! Statements: what devices and receivers sign, and what stays valid after the HTTP exchange.
//!
//! A statement is a [note]. Its text is
//!
//! ```text
//! ai-agent seal v1
//! receiver=siem.company.com
//! machine=9c41f0
//! …
//! ```
//!
//! The first line names kind and version. The others are `key=value`, exactly those of the struct,
//! in its order. Values are UTF-8, percent-encoded with upper-case digits, except for
//! `A-Z a-z 0-9 - . _ ~ : / + = @`; numbers are decimal, digests lower-case hex, keys in their text
//! form. `-` stands for none, and the text `-` is written `%2D`. Each value has one spelling:
//! [`Statement::parse`] rejects every other.
//!
//! `receiver` is the name of the receiver's key, which all receivers behind an endpoint share. The
//! holder of a key compares it with its own name, or with that of the pinned key: that binds a
//! statement to one endpoint. Times are RFC 3339 in UTC. They are shown to people and decide
//! nothing, so they are not parsed.

mod device;
mod line;
mod receiver;

pub use device::{Enroll, Seal};
pub use receiver::{
    Confirmation, Device, DeviceState, Durability, KeyList, StoredReceipt, TrustLevel, Verdict,
};

use crate::{
    Digest,
    minisign::MinisignError,
    note::{self, Note, NoteError, NoteSigner, SignError, VerifierKey},
};

/// A kind of statement.
///
/// ```
/// use siem_protocol::{Digest, note::{NoteSigner, SigningKey}, statement::{Seal, Statement}};
/// let key = SigningKey::from_seed("example.com/device", [7; 32])?;
/// let seal = Seal {
///     receiver: Some("siem.company.com".into()),
///     machine: "m-1".into(),
///     user: "u".into(),
///     epoch: "e".into(),
///     first_seq: Some(1),
///     last_seq: 3,
///     chain: Digest::of(b"chain"),
///     dead_lettered: None,
///     config: Digest::of(b"config"),
///     receipt: None,
///     instance: None,
/// };
/// let note = seal.sign(&[&key])?;
/// let opened = Seal::open(&note, &[key.key().clone()])?;
/// assert_eq!(opened.statement, seal);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Statement: line::Lines {
    /// First line of the text: `ai-agent <kind> v<version>`.
    const FIRST_LINE: &'static str;

    /// Returns the text that is signed.
    #[must_use]
    fn encode(&self) -> String {
        let mut lines = line::LineWriter::new(Self::FIRST_LINE);
        self.write(&mut lines);
        lines.finish()
    }

    /// Parses a text. A text has a meaning only after a signature of it was verified: use
    /// [`Statement::open`].
    ///
    /// # Errors
    /// [`StatementError`] for another kind or version, and for a line that is missing, repeated,
    /// misplaced, unknown, or not encoded as described in the [module](self).
    fn parse(text: &str) -> Result<Self, StatementError> {
        let mut lines = line::LineReader::new(text, Self::FIRST_LINE)?;
        let statement = Self::read(&mut lines)?;
        lines.finish()?;
        Ok(statement)
    }

    /// Returns the note: the statement with a signature by each of `signers`.
    ///
    /// # Errors
    /// [`SignError`] if a signer cannot sign, or the note would be too large.
    fn sign(&self, signers: &[&dyn NoteSigner]) -> Result<String, SignError> {
        note::sign(&self.encode(), signers)
    }

    /// Verifies a note with the keys that the caller trusts for this kind, and parses it.
    ///
    /// # Errors
    /// [`StatementError::Note`] if none of `keys` signed it or a signature of one of them is wrong;
    /// the errors of [`Statement::parse`].
    fn open(note: &str, keys: &[VerifierKey]) -> Result<Opened<Self>, StatementError> {
        let note = Note::parse(note)?;
        let verified = note.verify(keys)?;
        let statement = Self::parse(verified.text())?;
        let signers = verified.signers().iter().copied().cloned().collect();
        Ok(Opened { statement, signers })
    }
}

/// A statement with the keys that signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened<T> {
    /// The statement.
    pub statement: T,
    /// Those of the given keys that signed it: at least one, each once.
    pub signers: Vec<VerifierKey>,
}

/// Returns the SHA-256 of a note as received: how other statements name it.
#[must_use]
pub fn digest(note: &str) -> Digest {
    Digest::of(note.as_bytes())
}

/// Error of a statement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// The note is malformed or not signed by a trusted key.
    #[error("the note is not valid")]
    Note(#[from] NoteError),
    /// The organisation's signature is malformed or wrong.
    #[error("the organisation's signature is not valid")]
    Organisation(#[from] MinisignError),
    /// The statement is of another kind or version.
    #[error("the statement does not start with `{expected}`")]
    Kind {
        /// First line that was expected.
        expected: &'static str,
    },
    /// Another line, or none, is where this one belongs.
    #[error("the statement lacks the line `{0}` in its place")]
    Missing(&'static str),
    /// The value of this line is malformed, or has another spelling.
    #[error("the value of `{0}` in the statement is malformed")]
    Value(&'static str),
    /// Lines follow the last one.
    #[error("the statement has more lines than expected")]
    Extra,
    /// The enrollment is not signed by this key that it names.
    #[error("the enrollment is not signed by its `{0}`")]
    NotOwned(&'static str),
}
