//! Built-in sinks.

mod connection;
mod file;
mod http_siem;
mod response;
mod siem;
mod stdout;
mod stored_frames;

pub use ai_agent_stage::{
    Batch, BatchError, Delivery, DeliveryFuture, Sink, SinkOptions, SinkPlugin,
    check_sink_options as check,
};
use ai_agent_stage::{BuildError, StageOptions};
pub(crate) use http_siem::connect;
pub(crate) use response::problem_summary;
use siem_protocol::Encoding;
pub use stored_frames::StoredFrames;

use super::AgentContext;
use crate::frame::Codec;

/// Returns the codec in which frames for `sink` are stored.
#[must_use]
pub fn codec(sink: &dyn Sink) -> Codec {
    match sink.encoding() {
        Encoding::Zstd => Codec::Zstd,
        Encoding::Gzip | Encoding::Identity => Codec::Plain,
    }
}

/// Builds a sink of type `name`.
///
/// # Errors
/// [`BuildError`] if no such sink is registered or an option is wrong.
pub fn build(
    name: &str,
    options: &StageOptions,
    context: &AgentContext,
) -> Result<Box<dyn Sink>, BuildError> {
    ai_agent_stage::build_sink(name, options, &context.for_stages())
}
