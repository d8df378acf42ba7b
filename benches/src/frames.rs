//! Encoding records into frames and storing them.

use std::path::Path;

use ai_agent::internals::{
    config::ShippingSettings,
    frame::Codec,
    pipeline::{
        filter_chain::FilterChain,
        group::{Group, GroupStart},
        group_builder::GroupBuilder,
        outbox::{Outbox, SinkRegistration},
        record_stages::RecordStages,
    },
    platform::Timestamp,
    protocol::Digest,
    tail::{Chunk, Origin, Piece},
};

/// Name of the sink that is registered in the outbox.
pub const SINK: &str = "siem";

const NOW: Timestamp = Timestamp(1_795_291_200_000);
/// A checkpoint row of typical size.
const ROW: [u8; 600] = [b'x'; 600];

/// Encodes lines into groups, from `start` and without filters, and passes each group to `show`.
pub fn encode(
    start: GroupStart,
    codec: Codec,
    origin: &Origin,
    pieces: &[Piece<'_>],
    mut show: impl FnMut(Group),
) {
    let mut stages = RecordStages::new(FilterChain::new(Vec::new()), Vec::new());
    let mut builder = GroupBuilder::new(start, Digest::ZERO, ShippingSettings::default(), codec);
    // As many pieces per chunk as the tail reads.
    for pieces in pieces.chunks(64) {
        let chunk = Chunk::new(origin, pieces, Some(&ROW));
        builder.add_chunk(chunk, "claude-sessions", "claude-code", &mut stages, NOW);
        if !builder.has_room() {
            show(builder.finish(NOW));
        }
    }
    if !builder.is_empty() {
        show(builder.finish(NOW));
    }
}

/// Returns the start of an empty outbox.
#[must_use]
pub fn beginning() -> GroupStart {
    let (epoch, totals) = ("bench".to_owned(), Default::default());
    GroupStart { epoch, seq: 1, chain: Digest::ZERO, totals }
}

/// Opens an empty outbox in a folder.
#[must_use]
pub fn outbox(folder: &Path) -> Outbox {
    let sink = SinkRegistration { name: SINK.to_owned(), ..SinkRegistration::default() };
    Outbox::open(&folder.join("outbox.redb"), &[sink], || "bench".to_owned()).unwrap()
}
