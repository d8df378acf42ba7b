//! Rows that are stored as JSON, and the types that outlive a restart with them.

use std::{collections::BTreeMap, path::PathBuf};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use siem_protocol::{ChainPoint, Digest, agent_event::DeadLetterTotals};

use super::{
    super::accounting::Totals,
    tables::{SCHEMA, StoreFormat},
    unreported::UnreportedEvent,
};
use crate::platform::Timestamp;

/// OutboxState of the whole outbox as of the last commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OutboxState {
    pub(super) schema: u32,
    /// Lowest schema whose agents can use the store; only the same one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) readable_from: Option<u32>,
    pub(super) epoch: String,
    /// Sequence number of the next entry.
    pub(super) next_seq: u64,
    /// Chain value after the last entry.
    pub(super) chain: Digest,
    /// Sequence number of the last entry that must be sent without delay.
    pub(super) urgent_seq: u64,
    /// Total size of all blocks, in bytes.
    pub(super) stored: u64,
    /// Total size of the blocks that were appended since the store was opened, in bytes.
    #[serde(skip)]
    pub(super) appended: u64,
    pub(super) totals: Totals,
    /// Entries that each sink refused permanently in this epoch.
    #[serde(default)]
    pub(super) dead_lettered: BTreeMap<String, DeadLetterTotals>,
    /// Dead letters that were deleted to make room for newer ones.
    #[serde(default)]
    pub(super) purged: DeadLetterTotals,
    /// Time at which this epoch replaced another; 0 for the first epoch of a store.
    #[serde(default)]
    pub(super) renumbered_at: Timestamp,
    /// Number of groups appended since the store was created.
    #[serde(default)]
    pub(super) groups: u64,
    /// Circumstances of the store's creation; removed once an entry that reports them is stored.
    #[serde(default, rename = "began", skip_serializing_if = "Option::is_none")]
    pub(super) creation: Option<CreationReport>,
    /// Device key that the epoch belongs to; absent until an agent with a key has opened the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) device: Option<EpochDevice>,
    /// Events to report, which are removed once an entry is stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) unreported: Vec<UnreportedEvent>,
    /// Members of a newer release, kept for its return.
    #[serde(flatten)]
    pub(super) other: serde_json::Map<String, serde_json::Value>,
}

impl OutboxState {
    /// Returns the state of an empty store.
    pub(super) fn new(epoch: String) -> Self {
        Self {
            schema: SCHEMA,
            readable_from: None,
            epoch,
            next_seq: 1,
            chain: Digest::ZERO,
            urgent_seq: 0,
            stored: 0,
            appended: 0,
            totals: Totals::default(),
            dead_lettered: BTreeMap::new(),
            purged: DeadLetterTotals::default(),
            renumbered_at: Timestamp::default(),
            groups: 0,
            creation: None,
            device: None,
            unreported: Vec::new(),
            other: serde_json::Map::new(),
        }
    }

    /// Raises the format to `format`. A store of a newer release keeps its own.
    pub(super) fn migrate_to(&mut self, format: StoreFormat) {
        let StoreFormat { schema, readable_from } = format;
        if self.schema <= schema {
            self.schema = schema;
            self.readable_from = Some(readable_from).filter(|from| *from < schema);
        }
    }

    /// Point after the last entry.
    pub(super) fn end(&self) -> ChainPoint {
        ChainPoint { seq: self.next_seq - 1, hash: self.chain }
    }
}

/// Device key that an epoch belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochDevice {
    /// The public key, `name+hash+base64`.
    pub key: String,
    /// Time at which a key without the lineage of the one before started an epoch; 0 if none has.
    #[serde(default)]
    pub since: Timestamp,
}

/// Circumstances under which a store was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CreationReport {
    pub(super) previous_epoch: Option<String>,
    pub(super) damage: Option<DamageReport>,
}

/// Report about the damaged store that this one replaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DamageReport {
    pub(super) moved_to: PathBuf,
    pub(super) reason: String,
    #[serde(default)]
    pub(super) dead_letters: RescuedDeadLetters,
}

/// Number of dead letters that were copied out of a damaged store, and of those that were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RescuedDeadLetters {
    /// Dead letters that are in the new store.
    pub kept: u64,
    /// Dead letters that could not be read; `None` when their number is unknown.
    pub lost: Option<u64>,
}

/// Delivery progress of a sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Epoch that the sequence number belongs to.
    pub epoch: String,
    /// Last acknowledged sequence number and the chain value there.
    pub acknowledged: ChainPoint,
    /// Point at which a sink that was added later starts, 0 if an epoch began before its first
    /// acknowledgement; cleared by that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<ChainPoint>,
    /// Epoch before this one; cleared by the first acknowledgement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_epoch: Option<String>,
    /// Destination of the sink, as [`SinkRegistration::destination`](super::SinkRegistration).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Consecutive permanent refusals since the last delivered entry. Stored because the limit on
    /// refusals must hold across restarts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refusals: u32,
    /// Note of the last receipt for this epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
    /// The last epochs before this one, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended: Vec<EndedEpoch>,
}

/// Delivery progress of a sink in an epoch that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedEpoch {
    /// The epoch.
    pub epoch: String,
    /// Last acknowledged sequence number and the chain value there.
    pub acknowledged: ChainPoint,
    /// Note of the last receipt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
}

impl Cursor {
    /// Maximum number of epochs in [`Cursor::ended`].
    const MAX_ENDED: usize = 8;

    /// Returns the last acknowledged point of an epoch and the note of its last receipt, if known.
    #[must_use]
    pub fn held(&self, epoch: &str) -> Option<(ChainPoint, Option<&str>)> {
        if self.epoch == epoch {
            return Some((self.acknowledged, self.receipt.as_deref()));
        }
        let ended = self.ended.iter().find(|ended| ended.epoch == epoch)?;
        Some((ended.acknowledged, ended.receipt.as_deref()))
    }

    /// Returns the cursor at `position` of the epoch `new`, which replaces the one of this cursor.
    pub(super) fn in_epoch(&self, new: &str, position: ChainPoint) -> Self {
        let mut ended = self.ended.clone();
        ended.push(EndedEpoch {
            epoch: self.epoch.clone(),
            acknowledged: self.acknowledged,
            receipt: self.receipt.clone(),
        });
        ended.drain(..ended.len().saturating_sub(Self::MAX_ENDED));
        // A receiver that got nothing yet must not take the entries before for lost.
        let begins = position.seq > 0 || self.base.is_some();
        Self {
            epoch: new.to_owned(),
            acknowledged: position,
            base: begins.then_some(position),
            previous_epoch: Some(self.epoch.clone()),
            destination: self.destination.clone(),
            refusals: self.refusals,
            receipt: None,
            ended,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Entry that a sink refused permanently, kept with the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// SHA-256 of the entry's line.
    pub line_sha256: Digest,
    /// The entry's line, in base64.
    pub line: String,
    /// Hash of the configuration under which the entry was created.
    pub config: Digest,
    /// HTTP status of the refusal.
    pub status: u16,
    /// Response of the receiver, at most 4 KiB.
    pub answer: String,
    /// Time of the last refusal, RFC 3339.
    pub at: String,
    /// Number of refusals of the entry in a batch of its own.
    pub attempts: u32,
}

impl DeadLetter {
    /// Dead letter for `line` after its first refusal.
    #[must_use]
    pub fn new(line: &[u8], config: Digest, status: u16, answer: String, at: String) -> Self {
        let (line_sha256, line) = (Digest::of(line), BASE64.encode(line));
        Self { line_sha256, line, config, status, answer, at, attempts: 1 }
    }

    /// The entry's line; `None` when it is not valid base64.
    #[must_use]
    pub fn line(&self) -> Option<Vec<u8>> {
        BASE64.decode(self.line.as_bytes()).ok()
    }
}

pub(super) fn to_json<T: Serialize>(row: &T) -> Vec<u8> {
    to_json_after(&[], row)
}

/// Returns the row as JSON, after `prefix`.
pub(super) fn to_json_after<T: Serialize>(prefix: &[u8], row: &T) -> Vec<u8> {
    // Most rows fit, so that the buffer does not grow step by step. glibc serves larger buffers more slowly.
    let mut json = Vec::with_capacity(1000);
    json.extend_from_slice(prefix);
    serde_json::to_writer(&mut json, row).expect("rows can be written as JSON");
    json
}

pub(super) fn from_json<T: DeserializeOwned>(row: &[u8]) -> Option<T> {
    serde_json::from_slice(row).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row as release 0.1 reads it.
    #[derive(Debug, PartialEq, Deserialize)]
    struct OldCursor {
        epoch: String,
        acknowledged: ChainPoint,
        #[serde(default)]
        base: Option<ChainPoint>,
        #[serde(default)]
        previous_epoch: Option<String>,
        #[serde(default)]
        destination: Option<String>,
        #[serde(default)]
        refusals: u32,
    }

    fn cursor() -> Cursor {
        Cursor {
            epoch: "e".into(),
            acknowledged: ChainPoint { seq: 7, hash: Digest::of(b"7") },
            base: None,
            previous_epoch: None,
            destination: Some("https://a/".into()),
            refusals: 1,
            receipt: Some("note".into()),
            ended: Vec::new(),
        }
    }

    #[test]
    fn cursor_with_receipts_can_be_read_by_release_0_1() {
        let (cursor, start) = (cursor(), ChainPoint { seq: 0, hash: Digest::ZERO });
        let json = to_json(&cursor.in_epoch("f", start));
        let old: OldCursor = from_json(&json).unwrap();
        assert_eq!((old.epoch.as_str(), old.acknowledged, old.refusals), ("f", start, 1));
        assert_eq!(old.previous_epoch.as_deref(), Some("e"));
    }

    #[test]
    fn cursor_keeps_the_end_of_the_last_epochs() {
        let first = cursor();
        let mut cursor = first.clone();
        for number in 0..20 {
            cursor = cursor.in_epoch(&format!("epoch-{number}"), first.acknowledged);
            cursor.receipt = Some(format!("note-{number}"));
        }
        assert_eq!(cursor.held("epoch-19"), Some((first.acknowledged, Some("note-19"))));
        assert_eq!(cursor.held("epoch-11"), Some((first.acknowledged, Some("note-11"))));
        assert_eq!((cursor.held("epoch-10"), cursor.held("e")), (None, None));
    }
}
