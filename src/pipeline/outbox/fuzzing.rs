//! Stored values, for fuzzing: hidden, and public for the same reason as `tail::fuzzing`.

use super::block;
use crate::frame::Frame;

/// The value that holds these frames.
#[must_use]
pub fn encode_value(frames: &[Frame]) -> Vec<u8> {
    block::encode(frames)
}

/// The frames of a stored value; none when it is damaged.
#[must_use]
pub fn decode_value(value: &[u8]) -> Option<Vec<Frame>> {
    let frames = block::decode(value)?;
    Some(frames.map(|(head, body)| Frame { head, body: body.to_vec() }).collect())
}
