//! A group: entries and the checkpoints that cover them, stored together or not at all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use siem_protocol::Digest;

use super::accounting::{Share, Totals};
use crate::{
    frame::{Encoder, Frame},
    tail::GenerationId,
};

/// Where the next group begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStart {
    /// The number of its first entry.
    pub seq: u64,
    /// The chain before it.
    pub chain: Digest,
    /// The totals before it.
    pub totals: Totals,
}

/// Entries with the checkpoints that cover them: stored together or not at all.
#[derive(Debug)]
pub struct Group {
    /// Where it begins: the outbox's end when it was begun.
    pub start: GroupStart,
    /// The entries, in order and without gaps.
    pub frames: Vec<Frame>,
    /// New rows of generations by source; `None` removes a row.
    pub checkpoints: BTreeMap<(String, GenerationId), Option<Vec<u8>>>,
    /// Lines in parts that are dropped, by generation; `None` where none is any more.
    pub dropping: BTreeMap<GenerationId, Option<DroppedPart>>,
    /// What became of the bytes that were read, by generation.
    pub shares: BTreeMap<GenerationId, Share>,
    /// The totals after it.
    pub totals: Totals,
}

impl Group {
    /// Encodes its frames as `encoder` does.
    pub fn encode(&mut self, encoder: &mut Encoder) {
        self.frames.iter_mut().for_each(|frame| encoder.encode(frame));
    }
}

/// A line in parts that is dropped: its first part decided. Stored until its last part came, since
/// that may be long after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedPart {
    /// Where the line begins.
    pub offset: u64,
    /// The filter that dropped it.
    pub stage: String,
    /// The filter's word for why.
    pub reason: String,
}
