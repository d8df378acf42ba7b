//! Options that sinks for SIEMs share: the time of events, compression, and limits of sizes.

use ai_agent_stage::BuildError;
use schemars::JsonSchema;
use serde::Deserialize;
use siem_sinks::{compression, event::TimeOf};

use config_text::Size;

/// Smallest value of `max_event_bytes` and `max_request_bytes`: fields and some content fit.
const MIN_BYTES: Size = Size(16 << 10);

/// Time of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum EventTime {
    /// The record's own `timestamp`; the time of reading if it has none.
    Record,
    /// The time at which the agent read the record.
    Read,
}

impl From<EventTime> for TimeOf {
    fn from(time: EventTime) -> Self {
        match time {
            EventTime::Record => Self::Record,
            EventTime::Read => Self::Read,
        }
    }
}

/// Compression of request bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Compression {
    /// gzip.
    #[default]
    Gzip,
    /// No compression.
    None,
}

impl From<Compression> for compression::Compression {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Gzip => Self::Gzip,
            Compression::None => Self::None,
        }
    }
}

/// Returns the limits of an event and of a request in bytes.
///
/// # Errors
/// [`BuildError`] if a limit is too small.
pub(super) fn limits(event: Size, request: Size) -> Result<(usize, usize), BuildError> {
    let bytes = |size: Size| usize::try_from(size.0).unwrap_or(usize::MAX);
    if event < MIN_BYTES {
        let problem = format!("is {event}, the smallest value is {MIN_BYTES}");
        return Err(BuildError::invalid("max_event_bytes", problem));
    }
    if request < event {
        let problem = format!("is {request}, but `max_event_bytes` is {event}");
        return Err(BuildError::invalid("max_request_bytes", problem));
    }
    Ok((bytes(event), bytes(request)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_too_small_are_refused() {
        assert_eq!(limits(Size(1 << 20), Size(1 << 20)).unwrap(), (1 << 20, 1 << 20));
        let refused = |event, request| limits(Size(event), Size(request)).unwrap_err().to_string();
        assert_eq!(
            refused(1000, 9000),
            "`max_event_bytes` is 1000 B, the smallest value is 16.0 KiB"
        );
        let error = refused(1 << 20, 1 << 19);
        assert_eq!(error, "`max_request_bytes` is 512.0 KiB, but `max_event_bytes` is 1.0 MiB");
    }
}
