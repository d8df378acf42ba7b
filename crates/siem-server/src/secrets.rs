//! The token and the secret that the fleet shares.

use std::fmt;

use siem_protocol::{Digest, sign_answer, verify};
use subtle::ConstantTimeEq as _;

/// A token or a secret. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// A secret of no length protects nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token or secret is empty")]
pub struct EmptySecret;

impl Secret {
    /// Under so many bytes a secret is worth a warning.
    pub const SHORT: usize = 16;

    /// Wraps `bytes`.
    ///
    /// # Errors
    /// [`EmptySecret`] when there are none.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, EmptySecret> {
        let bytes = bytes.into();
        if bytes.is_empty() { Err(EmptySecret) } else { Ok(Self(bytes)) }
    }

    /// Whether it has fewer than [`Secret::SHORT`] bytes.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.0.len() < Self::SHORT
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The tokens and secrets that a receiver accepts: the current ones and, while the fleet moves
/// from one to the other, one more of each.
///
/// Answers are signed with the current secret. To rotate: add the new secret as the second, roll
/// it out, make it the first, and drop the old one when every agent has moved.
#[derive(Clone, Debug)]
pub struct Keys {
    tokens: [Option<Secret>; 2],
    secret: Secret,
    second_secret: Option<Secret>,
}

impl Keys {
    /// Accepts one token and one secret.
    #[must_use]
    pub fn new(token: Secret, secret: Secret) -> Self {
        Self { tokens: [Some(token), None], secret, second_secret: None }
    }

    /// Accepts a second token too.
    #[must_use]
    pub fn with_second_token(mut self, token: Secret) -> Self {
        self.tokens[1] = Some(token);
        self
    }

    /// Accepts bodies signed with a second secret too.
    #[must_use]
    pub fn with_second_secret(mut self, secret: Secret) -> Self {
        self.second_secret = Some(secret);
        self
    }

    /// Whether `presented` is a token; the time taken does not tell how much of it is right.
    pub(crate) fn know_token(&self, presented: &[u8]) -> bool {
        // Digests are compared, so that neither content nor length shows in the time taken.
        let presented = Digest::of(presented);
        let known = self.tokens.iter().flatten().fold(0, |known, token| {
            known | presented.as_bytes().ct_eq(Digest::of(&token.0).as_bytes()).unwrap_u8()
        });
        known == 1
    }

    /// Whether `signature` is that of `body` under one of the secrets.
    pub(crate) fn verify(&self, body: &[u8], signature: &str) -> bool {
        verify(&self.secret.0, body, signature)
            || self.second_secret.as_ref().is_some_and(|second| verify(&second.0, body, signature))
    }

    /// Signs the answer `body` to `nonce`.
    pub(crate) fn sign_answer(&self, nonce: &str, body: &[u8]) -> String {
        sign_answer(&self.secret.0, nonce, body)
    }
}

#[cfg(test)]
mod tests {
    use siem_protocol::sign;

    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text).unwrap()
    }

    #[test]
    fn shows_no_secret() {
        let keys = Keys::new(secret("tok-abc"), secret("sec-def")).with_second_token(secret("ghi"));
        let shown = format!("{keys:?}");
        for word in ["abc", "def", "ghi"] {
            assert!(!shown.contains(word), "{shown}");
        }
    }

    #[test]
    fn accepts_two_tokens_and_no_third() {
        let keys = Keys::new(secret("a"), secret("s"));
        assert!(keys.know_token(b"a"));
        assert!(!keys.know_token(b"b"));
        let keys = keys.with_second_token(secret("b"));
        assert!(keys.know_token(b"a") && keys.know_token(b"b"));
        for wrong in ["", "ab", "A", "c"] {
            assert!(!keys.know_token(wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn accepts_two_secrets_and_signs_with_the_first() {
        let keys = Keys::new(secret("t"), secret("one")).with_second_secret(secret("two"));
        assert!(keys.verify(b"body", &sign(b"one", b"body")));
        assert!(keys.verify(b"body", &sign(b"two", b"body")));
        assert!(!keys.verify(b"body", &sign(b"three", b"body")));
        assert_eq!(keys.sign_answer("n", b"x"), sign_answer(b"one", "n", b"x"));
    }

    #[test]
    fn refuses_an_empty_secret() {
        assert_eq!(Secret::new(""), Err(EmptySecret));
    }
}
