//! Token and HMAC secret shared by the fleet.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use siem_protocol::{Digest, sign_answer, verify};
use subtle::ConstantTimeEq as _;

/// A token or a secret. Its `Debug` output hides the value.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// Error for an empty token or secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token or secret is empty")]
pub struct EmptySecret;

impl Secret {
    /// Length in bytes below which a secret is reported as short.
    pub const SHORT: usize = 16;

    /// Wraps `bytes`.
    ///
    /// # Errors
    /// [`EmptySecret`] if `bytes` is empty.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, EmptySecret> {
        let bytes = bytes.into();
        if bytes.is_empty() { Err(EmptySecret) } else { Ok(Self(bytes)) }
    }

    /// Reports whether the secret is shorter than [`Secret::SHORT`] bytes.
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

/// Tokens and secrets that a receiver accepts: the current ones and, during a rotation, a second
/// one of each.
///
/// Responses are signed with the current secret. To rotate: add the new secret as the second one,
/// roll it out to the agents, make it the first one, and remove the old one when all agents use the
/// new one. Clones share the values.
#[derive(Clone, Debug)]
pub struct Keys(Arc<RwLock<Values>>);

#[derive(Clone, Debug)]
struct Values {
    tokens: [Option<Secret>; 2],
    secret: Secret,
    second_secret: Option<Secret>,
}

impl Keys {
    /// Accepts one token and one secret.
    #[must_use]
    pub fn new(token: Secret, secret: Secret) -> Self {
        let values = Values { tokens: [Some(token), None], secret, second_secret: None };
        Self(Arc::new(RwLock::new(values)))
    }

    /// Also accepts a second token.
    #[must_use]
    pub fn with_second_token(self, token: Secret) -> Self {
        self.change(|values| values.tokens[1] = Some(token));
        self
    }

    /// Also accepts bodies signed with a second secret.
    #[must_use]
    pub fn with_second_secret(self, secret: Secret) -> Self {
        self.change(|values| values.second_secret = Some(secret));
        self
    }

    /// Accepts the tokens and secrets of `other` in place of the current ones. Running requests may
    /// use either.
    pub(crate) fn replace(&self, other: &Self) {
        let new = other.values().clone();
        self.change(|values| *values = new);
    }

    fn change(&self, change: impl FnOnce(&mut Values)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn values(&self) -> RwLockReadGuard<'_, Values> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports whether `presented` is an accepted token, in a time that does not depend on its
    /// content.
    pub(crate) fn know_token(&self, presented: &[u8]) -> bool {
        // Comparing digests hides both content and length from timing.
        let presented = Digest::of(presented);
        let values = self.values();
        let known = values.tokens.iter().flatten().fold(0, |known, token| {
            known | presented.as_bytes().ct_eq(Digest::of(&token.0).as_bytes()).unwrap_u8()
        });
        known == 1
    }

    /// Reports whether `signature` is valid for `body` under one of the secrets.
    pub(crate) fn verify(&self, body: &[u8], signature: &str) -> bool {
        // Not under the lock, since the body may be large.
        let Values { secret, second_secret, .. } = self.values().clone();
        verify(&secret.0, body, signature)
            || second_secret.is_some_and(|second| verify(&second.0, body, signature))
    }

    /// Signs the response `body` to the request with `nonce`.
    pub(crate) fn sign_answer(&self, nonce: &str, body: &[u8]) -> String {
        sign_answer(&self.values().secret.0, nonce, body)
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
    fn debug_output_hides_the_secret() {
        let keys = Keys::new(secret("tok-abc"), secret("sec-def")).with_second_token(secret("ghi"));
        let shown = format!("{keys:?}");
        for word in ["abc", "def", "ghi"] {
            assert!(!shown.contains(word), "{shown}");
        }
    }

    #[test]
    fn two_tokens_are_accepted() {
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
    fn two_secrets_are_accepted_first_one_signs() {
        let keys = Keys::new(secret("t"), secret("one")).with_second_secret(secret("two"));
        assert!(keys.verify(b"body", &sign(b"one", b"body")));
        assert!(keys.verify(b"body", &sign(b"two", b"body")));
        assert!(!keys.verify(b"body", &sign(b"three", b"body")));
        assert_eq!(keys.sign_answer("n", b"x"), sign_answer(b"one", "n", b"x"));
    }

    #[test]
    fn replaced_keys_count_for_clones() {
        let keys = Keys::new(secret("a"), secret("one")).with_second_token(secret("b"));
        let clone = keys.clone();
        clone.replace(&Keys::new(secret("c"), secret("two")));
        assert!(keys.know_token(b"c") && !keys.know_token(b"a") && !keys.know_token(b"b"));
        assert_eq!(keys.sign_answer("n", b"x"), sign_answer(b"two", "n", b"x"));
    }

    #[test]
    fn empty_secret_is_rejected() {
        assert_eq!(Secret::new(""), Err(EmptySecret));
    }
}
