//! Makes minisign keys and signatures for tests, as `minisign -G` and `minisign -S` do.

use blake2::{Blake2b512, Digest as _};
use data_encoding::BASE64;
use siem_protocol::note::{NoteSigner, SigningKey};

/// A private key.
pub struct Minisign {
    key: SigningKey,
    id: [u8; 8],
}

impl Minisign {
    /// Makes the key of a seed; the seed is its id, too.
    pub fn new(seed: u8) -> Self {
        Self { key: SigningKey::from_seed("minisign", [seed; 32]).unwrap(), id: [seed; 8] }
    }

    /// Returns the base64 line of the public key.
    pub fn public(&self) -> String {
        BASE64.encode(&[b"Ed".as_slice(), &self.id, self.key.key().public()].concat())
    }

    /// Returns the text of a `.minisig` file.
    pub fn sign(&self, body: &[u8], comment: &str) -> String {
        let signature = self.key.sign(&Blake2b512::digest(body)).unwrap();
        let global = self.key.sign(&[&signature, comment.as_bytes()].concat()).unwrap();
        format!(
            "untrusted comment: signature\n{}\ntrusted comment: {comment}\n{}\n",
            BASE64.encode(&[b"ED".as_slice(), &self.id, &signature].concat()),
            BASE64.encode(&global),
        )
    }
}
