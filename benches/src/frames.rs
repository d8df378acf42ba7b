//! Records into frames, and frames into the store.

use std::path::Path;

use ai_agent::{
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

/// The name of the sink that has a place in the store.
pub const SINK: &str = "siem";

const NOW: Timestamp = Timestamp(1_795_291_200_000);
/// About as large as a real one.
const ROW: [u8; 600] = [b'x'; 600];

/// Encodes lines as groups, after `start` and without filters, and shows each.
pub fn encode(
    start: GroupStart,
    codec: Codec,
    origin: &Origin,
    pieces: &[Piece<'_>],
    mut show: impl FnMut(Group),
) {
    let mut stages = RecordStages::new(FilterChain::new(Vec::new()), Vec::new());
    let mut builder = GroupBuilder::new(start, Digest::ZERO, ShippingSettings::default(), codec);
    // As many at once as the tail reads.
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

/// Where an outbox begins.
#[must_use]
pub fn beginning() -> GroupStart {
    GroupStart { seq: 1, chain: Digest::ZERO, totals: Default::default() }
}

/// An empty outbox in a folder.
#[must_use]
pub fn outbox(folder: &Path) -> Outbox {
    let seat = SinkRegistration { name: SINK.to_owned(), ..SinkRegistration::default() };
    Outbox::open(&folder.join("outbox.redb"), &[seat], || "bench".to_owned()).unwrap()
}
