//! Signatures of requests and responses.

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Signs a body that is added in pieces.
#[derive(Clone)]
pub struct Signer(Hmac<Sha256>);

impl Signer {
    /// Creates a signer with `secret`, which may have any length.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes a key of any length"))
    }

    /// Adds the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// Returns the signature: 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn finish(self) -> String {
        HEXLOWER.encode(&self.0.finalize().into_bytes())
    }

    /// Reports whether `signature` is the signature of the added pieces, compared in constant time.
    #[must_use]
    pub fn verify(self, signature: &str) -> bool {
        HEXLOWER_PERMISSIVE
            .decode(signature.as_bytes())
            .is_ok_and(|bytes| self.0.verify_slice(&bytes).is_ok())
    }
}

/// Signs `body` as sent: the value of `X-Siem-Signature` in a request.
///
/// ```
/// let signature = siem_protocol::sign(b"secret", b"body");
/// assert!(siem_protocol::verify(b"secret", b"body", &signature));
/// assert!(!siem_protocol::verify(b"secret", b"Body", &signature));
/// ```
#[must_use]
pub fn sign(secret: &[u8], body: &[u8]) -> String {
    let mut signer = Signer::new(secret);
    signer.update(body);
    signer.finish()
}

/// Reports whether `signature` is the signature of `body`, compared in constant time.
#[must_use]
pub fn verify(secret: &[u8], body: &[u8], signature: &str) -> bool {
    let mut signer = Signer::new(secret);
    signer.update(body);
    signer.verify(signature)
}

fn answer(secret: &[u8], nonce: &str, body: &[u8]) -> Signer {
    let mut signer = Signer::new(secret);
    signer.update(nonce.as_bytes());
    signer.update(b"\n");
    signer.update(body);
    signer
}

/// Signs a response that the agent acts on. The signature covers the nonce of the request, a
/// newline, and the body, so that an old response cannot be replayed.
#[must_use]
pub fn sign_answer(secret: &[u8], nonce: &str, body: &[u8]) -> String {
    answer(secret, nonce, body).finish()
}

/// Reports whether `signature` is the signature of the response `body` to `nonce`, compared in
/// constant time.
#[must_use]
pub fn verify_answer(secret: &[u8], nonce: &str, body: &[u8], signature: &str) -> bool {
    answer(secret, nonce, body).verify(signature)
}
