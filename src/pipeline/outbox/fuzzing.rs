//! Access to the block encoding for fuzz targets and benches.

use super::block;
use crate::frame::Frame;

/// Encodes frames as one block of the store.
#[must_use]
pub fn encode_block(frames: &[Frame]) -> Vec<u8> {
    block::encode(frames)
}

/// Decodes the frames of a block; `None` when the block is damaged.
#[must_use]
pub fn decode_block(block: &[u8]) -> Option<Vec<Frame>> {
    let frames = block::decode(block)?;
    Some(frames.map(|(head, body)| Frame { head, body: body.to_vec() }).collect())
}
