//! Built-in sinks.

mod connection;
mod elasticsearch;
mod event_options;
mod file;
mod headers;
mod http;
mod http_siem;
mod otlp;
mod response;
mod siem;
mod sink_clock;
mod splunk_hec;
mod stdout;
mod stored_frames;
mod syslog;

pub use ai_agent_stage::sink_files as files;
pub use ai_agent_stage::{
    Acknowledged, Batch, Delivery, DeliveryFuture, EntryResult, Plugin, ProbeFuture, Rest, Sink,
    SinkOptions,
};
use ai_agent_stage::{BuildError, StageKind, StageOptions, registered};
pub(crate) use http_siem::connect;
pub(crate) use response::problem_summary;
use siem_protocol::Encoding;
#[cfg(test)]
pub(crate) use stored_frames::ResponseFindings;
pub use stored_frames::{Custody, StoredFrames};

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

/// Checks the options of a sink of type `name` without building it, so that no secrets are needed.
///
/// # Errors
/// [`BuildError`] if no such sink is registered or an option is wrong.
pub fn check(name: &str, options: &StageOptions) -> Result<(), BuildError> {
    let kind = StageKind::Sink;
    let mut all = registered().into_iter();
    let found = all.find(|stage| stage.kind == kind && stage.name == name);
    let sink = found.ok_or_else(|| BuildError::Unknown { kind, name: name.to_owned() })?;
    Ok((sink.check)(options)?)
}
