//! Rows under a checksum of their own.
//!
//! redb holds a page against its own checksum only when it opens the file: a row that rots later
//! would be taken for something else, or be left out. Eight bytes, little endian, then the row. The
//! checksum covers the key too, so that a row can't stand in for another.
//!
//! The state's lies in a row of its own: an older agent must be able to read that the schema is
//! newer than what it knows, and to refuse the store.

use redb::ReadableTable;
use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{STATE, from_json, json};

/// The row of the state's checksum.
pub(super) const SEAL: &str = "seal";

/// What a row is stored under.
pub(super) trait Key {
    fn seed(&self) -> u64;
}

impl Key for &str {
    fn seed(&self) -> u64 {
        xxh3_64(self.as_bytes())
    }
}

impl Key for (&str, &str) {
    fn seed(&self) -> u64 {
        xxh3_64_with_seed(self.1.as_bytes(), self.0.seed())
    }
}

impl Key for (&str, &str, u64) {
    fn seed(&self) -> u64 {
        xxh3_64_with_seed(&self.2.to_le_bytes(), (self.0, self.1).seed())
    }
}

fn checksum(key: impl Key, row: &[u8]) -> [u8; 8] {
    xxh3_64_with_seed(row, key.seed()).to_le_bytes()
}

/// The row as it is stored.
pub(super) fn seal(key: impl Key, row: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(8 + row.len());
    stored.extend_from_slice(&checksum(key, row));
    stored.extend_from_slice(row);
    stored
}

pub(super) fn seal_json<T: Serialize>(key: impl Key, row: &T) -> Vec<u8> {
    seal(key, &json(row))
}

/// The row that was stored, which is `what`.
pub(super) fn open<'a>(
    key: impl Key,
    stored: &'a [u8],
    what: &'static str,
) -> Result<&'a [u8], redb::Error> {
    match stored.split_first_chunk::<8>() {
        Some((sum, row)) if *sum == checksum(key, row) => Ok(row),
        _ => Err(damaged(what)),
    }
}

pub(super) fn open_json<T: DeserializeOwned>(
    key: impl Key,
    stored: &[u8],
    what: &'static str,
) -> Result<T, redb::Error> {
    from_json(open(key, stored, what)?).ok_or_else(|| damaged(what))
}

/// The row of the state; whether it is under a checksum. Up to schema 2 it is not.
pub(super) fn state(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Option<(Vec<u8>, bool)>, redb::Error> {
    let Some(row) = meta.get(STATE)? else { return Ok(None) };
    let row = row.value().to_vec();
    match meta.get(SEAL)? {
        None => Ok(Some((row, false))),
        Some(seal) if *seal.value() == checksum(STATE, &row) => Ok(Some((row, true))),
        Some(_) => Err(damaged("its state")),
    }
}

/// The checksum of the state's row.
pub(super) fn seal_of_state(row: &[u8]) -> [u8; 8] {
    checksum(STATE, row)
}

pub(super) fn damaged(what: &'static str) -> redb::Error {
    redb::Error::Corrupted(format!("{what} is not what was written"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_rots_or_lies_under_another_key_is_found_out() {
        let key = ("siem", "epoch", 7);
        let stored = seal(key, b"{\"n\":1}");
        assert_eq!(open(key, &stored, "a row").unwrap(), b"{\"n\":1}");
        for other in [("siem", "epoch", 8), ("siem", "epoc", 7), ("archive", "epoch", 7)] {
            assert!(open(other, &stored, "a row").is_err(), "{other:?}");
        }
        for at in 0..stored.len() {
            let mut rotten = stored.clone();
            rotten[at] ^= 4;
            assert!(open(key, &rotten, "a row").is_err(), "{at}");
            assert!(open(key, &stored[..at], "a row").is_err(), "{at}");
        }
    }
}
