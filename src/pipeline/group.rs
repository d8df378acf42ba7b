//! A group: entries and the checkpoints that cover them, stored together or not at all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use siem_protocol::Digest;

use super::accounting::{Share, Totals};
use crate::{
    frame::{Encoder, Frame},
    tail::{BlockUpdate, GenerationId},
};

/// Position in the outbox at which a group starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStart {
    /// The epoch of its entries.
    pub epoch: String,
    /// Sequence number of the group's first entry.
    pub seq: u64,
    /// Hash chain before that entry.
    pub chain: Digest,
    /// Totals before that entry.
    pub totals: Totals,
}

/// Entries with the checkpoints that cover them, stored in one transaction.
#[derive(Debug)]
pub struct Group {
    /// End of the outbox when the group was started.
    pub start: GroupStart,
    /// Entries, in order and without gaps.
    pub frames: Vec<Frame>,
    /// New checkpoint rows by source and generation; `None` removes a row.
    pub checkpoints: BTreeMap<(String, GenerationId), Option<Vec<u8>>>,
    /// Changes to the hashes of files' blocks, by source and generation.
    pub blocks: BTreeMap<(String, GenerationId), Vec<BlockUpdate>>,
    /// Position of the verification of files, by source.
    pub verification: BTreeMap<String, Vec<u8>>,
    /// Changes to the long lines that filters have dropped, by generation; `None` removes a row.
    pub dropped_parts: BTreeMap<GenerationId, Option<DroppedPart>>,
    /// Accounting of the bytes that were read, by generation.
    pub shares: BTreeMap<GenerationId, Share>,
    /// Totals after the group.
    pub totals: Totals,
}

impl Group {
    /// Encodes the frames with `encoder`.
    pub fn encode(&mut self, encoder: &mut Encoder) {
        self.frames.iter_mut().for_each(|frame| encoder.encode(frame));
    }
}

/// A dropped line that arrives in parts. The filters decide on the first part; the decision is
/// stored until the last part has been read, which may be long after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedPart {
    /// Offset in the file at which the line starts.
    pub offset: u64,
    /// Instance name of the filter that dropped the line.
    pub stage: String,
    /// Reason that the filter gave.
    pub reason: String,
}
