//! Sends a dead letter again.

use siem_protocol::{BatchHeader, Identity};

use super::super::outbox::{DeadLetter, DeadLetterId};
use crate::{
    frame::FrameBuilder,
    platform::Timestamp,
    stages::sink::{Batch, Delivery, Sink, StoredFrames},
};

/// Sends `letter` to its `sink` in a batch of its own, which fills the hole that it left.
pub async fn redeliver(
    sink: &mut dyn Sink,
    identity: &Identity,
    id: &DeadLetterId,
    letter: &DeadLetter,
    now: Timestamp,
) -> Delivery {
    let Some(line) = letter.line() else {
        return Delivery::Hold { after: None, reason: "its line cannot be read back".to_owned() };
    };
    let header = BatchHeader {
        count: 1,
        redelivery: true,
        seqs: vec![id.seq],
        ..BatchHeader::new(identity, id.epoch.clone(), letter.config, now.to_string())
    };
    let mut builder = FrameBuilder::default();
    let chain = builder.push(letter.line_sha256, false, |raw| raw.extend_from_slice(&line));
    let frame = builder.seal(id.seq + 1, chain, letter.config, now);
    let batch = Batch::new(header, StoredFrames(frame.into_iter().collect()));
    sink.deliver(&batch).await
}
