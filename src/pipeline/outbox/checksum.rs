//! Checksums of single rows.
//!
//! redb verifies the checksums of its pages only when it opens the file. Without a checksum per
//! row, a row that changes on the disk later would be misread or skipped. A stored row is eight
//! bytes of checksum, little endian, followed by the row. The checksum covers the key too, so that
//! a row stored under another key is detected.
//!
//! The checksum of the state row is stored in a row of its own: an older agent must be able to
//! read the schema version of a newer store in order to refuse it.

use redb::ReadableTable;
use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{
    rows::{from_json, to_json_after},
    tables::{STATE, STATE_CHECKSUM},
};

/// Key of a row, hashed into the seed of the row's checksum.
pub(super) trait RowKey {
    fn seed(&self) -> u64;
}

impl RowKey for &str {
    fn seed(&self) -> u64 {
        xxh3_64(self.as_bytes())
    }
}

impl RowKey for (&str, &str) {
    fn seed(&self) -> u64 {
        xxh3_64_with_seed(self.1.as_bytes(), self.0.seed())
    }
}

impl RowKey for (&str, &str, u64) {
    fn seed(&self) -> u64 {
        xxh3_64_with_seed(&self.2.to_le_bytes(), (self.0, self.1).seed())
    }
}

fn checksum(key: impl RowKey, row: &[u8]) -> [u8; 8] {
    xxh3_64_with_seed(row, key.seed()).to_le_bytes()
}

/// Returns `row` with its checksum in front, as it is stored.
pub(super) fn protect(key: impl RowKey, row: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(8 + row.len());
    stored.extend_from_slice(&checksum(key, row));
    stored.extend_from_slice(row);
    stored
}

/// Serializes `row` and protects it.
pub(super) fn protect_json<T: Serialize>(key: impl RowKey, row: &T) -> Vec<u8> {
    let mut stored = to_json_after(&[0; 8], row);
    let sum = checksum(key, &stored[8..]);
    stored[..8].copy_from_slice(&sum);
    stored
}

/// Returns the row behind a verified checksum; `kind` names it in the error.
pub(super) fn verify<'a>(
    key: impl RowKey,
    stored: &'a [u8],
    kind: &'static str,
) -> Result<&'a [u8], redb::Error> {
    match stored.split_first_chunk::<8>() {
        Some((sum, row)) if *sum == checksum(key, row) => Ok(row),
        _ => Err(corrupted(kind)),
    }
}

/// Verifies a row and deserializes it.
pub(super) fn verify_json<T: DeserializeOwned>(
    key: impl RowKey,
    stored: &[u8],
    kind: &'static str,
) -> Result<T, redb::Error> {
    from_json(verify(key, stored, kind)?).ok_or_else(|| corrupted(kind))
}

/// The state row as it is stored.
pub(super) struct StateRow {
    pub(super) json: Vec<u8>,
    /// True if it has a checksum; up to schema 2 it has none.
    pub(super) has_checksum: bool,
}

/// Returns the state row, after verifying its checksum if there is one.
pub(super) fn read_state(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Option<StateRow>, redb::Error> {
    let Some(row) = meta.get(STATE)? else { return Ok(None) };
    let json = row.value().to_vec();
    match meta.get(STATE_CHECKSUM)? {
        None => Ok(Some(StateRow { json, has_checksum: false })),
        Some(stored) if *stored.value() == state_checksum(&json) => {
            Ok(Some(StateRow { json, has_checksum: true }))
        }
        Some(_) => Err(corrupted("the state row")),
    }
}

/// Checksum of the state row.
pub(super) fn state_checksum(row: &[u8]) -> [u8; 8] {
    checksum(STATE, row)
}

/// Error for a row that is not the one that was written.
pub(super) fn corrupted(kind: &'static str) -> redb::Error {
    redb::Error::Corrupted(format!("checksum mismatch or invalid content in {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_row_or_key_is_detected() {
        let key = ("siem", "epoch", 7);
        let stored = protect(key, b"{\"n\":1}");
        assert_eq!(verify(key, &stored, "a row").unwrap(), b"{\"n\":1}");
        for other in [("siem", "epoch", 8), ("siem", "epoc", 7), ("archive", "epoch", 7)] {
            assert!(verify(other, &stored, "a row").is_err(), "{other:?}");
        }
        for at in 0..stored.len() {
            let mut changed = stored.clone();
            changed[at] ^= 4;
            assert!(verify(key, &changed, "a row").is_err(), "{at}");
            assert!(verify(key, &stored[..at], "a row").is_err(), "{at}");
        }
    }
}
