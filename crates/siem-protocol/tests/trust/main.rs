//! Notes, statements and minisign signatures: vectors of their specifications, stored texts of
//! version 1, and properties.
#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod minisign;
mod notes;
mod statements;
mod update;
mod wire;

use siem_protocol::note::{NoteSigner, SigningKey, VerifierKey};

fn key(name: &str, seed: u8) -> SigningKey {
    SigningKey::from_seed(name, [seed; 32]).unwrap()
}

fn public(key: &SigningKey) -> VerifierKey {
    key.key().clone()
}
