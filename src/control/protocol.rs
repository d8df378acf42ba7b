//! Messages between the agent and a client: one line of JSON for the request, one or more for the
//! response.
//!
//! ```text
//! → {"version":1,"ask":"status"}
//! ← {"status":{…}}
//! ← "done"
//! ```
//! The last line of a response is `"done"` or `{"failed":{…}}`. A request of another version, or one
//! that is not known, is refused with a message.

use serde::{Deserialize, Serialize};
use siem_protocol::{Digest, Kind};

use super::{device_status::DeviceStatus, status::AgentStatus};
use crate::{
    agent::handle::ReloadReport, config::ShownValue, logging::Level,
    pipeline::delivery::RetryOutcome,
};

/// Version of the protocol.
pub(crate) const VERSION: u32 = 1;
/// Longest request, in bytes.
pub(super) const MAX_REQUEST: usize = 64 << 10;
/// Longest line of a response, in bytes: one entry, however it is escaped.
pub(super) const MAX_RESPONSE: u64 = 256 << 20;

/// Request to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Report the status.
    Status,
    /// Deliver the queued entries now, and wait for their acknowledgement.
    Flush {
        /// Longest wait.
        within_ms: u64,
    },
    /// Deliver a test event, and wait for its acknowledgement.
    Canary {
        /// Longest wait.
        within_ms: u64,
    },
    /// Report the configuration in force.
    Config,
    /// Read the configuration again, the server's part included.
    Reload,
    /// Change the log level; without a level, report it.
    LogLevel {
        /// The new level.
        level: Option<Level>,
    },
    /// Inspect or change the outbox.
    Outbox(OutboxRequest),
    /// Inspect or change the dead letters.
    Deadletter(DeadLetterRequest),
    /// Inspect or change the key of the device.
    Device(DeviceRequest),
}

/// Request about the key of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum DeviceRequest {
    /// Report the key, and its state at receivers.
    Show,
    /// Replace the key by another of the same lineage.
    Rotate,
}

/// Request about the outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum OutboxRequest {
    /// Report the number of queued entries for each sink.
    Status,
    /// List queued entries without their content.
    List {
        /// First number; by default the first that a sink has not acknowledged.
        from: Option<u64>,
        /// Maximum number of entries.
        limit: u64,
    },
    /// Return entries as they travel.
    Show {
        /// Their numbers.
        numbers: Vec<u64>,
    },
    /// Return all queued entries as they travel.
    Export {
        /// First number; by default the first that a sink has not acknowledged.
        from: Option<u64>,
    },
    /// Verify sequence numbers, checksums and the hash chain.
    Verify,
    /// Remove a sink that is no longer configured.
    ForgetSink {
        /// Its name.
        name: String,
    },
}

/// Request about dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum DeadLetterRequest {
    /// List dead letters without their content.
    List,
    /// Return the entries as they travel.
    Show(Selection),
    /// Send them again.
    Retry(Selection),
    /// Delete them, and report that to the SIEM.
    Purge(Selection),
}

/// Selection of dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Selection {
    /// Their numbers.
    pub(crate) numbers: Vec<u64>,
    /// All, in place of numbers.
    pub(crate) all: bool,
    /// Only those of this sink.
    pub(crate) sink: Option<String>,
    /// Only those of this epoch.
    pub(crate) epoch: Option<String>,
}

/// One line of a response.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Response {
    /// Status of the agent.
    Status(Box<AgentStatus>),
    /// Everything in the outbox was delivered and acknowledged.
    Flushed {
        /// Number of entries.
        entries: u64,
    },
    /// The test event was acknowledged.
    CanaryAcknowledged {
        /// Its id.
        id: String,
        /// Time until the acknowledgement.
        took_ms: u64,
    },
    /// Every value in force, without secrets.
    Config(Vec<ShownValue>),
    /// Outcome of a reload.
    Reloaded(ReloadReport),
    /// The log filter in force.
    LogFilter {
        /// The filter, as `RUST_LOG` takes it.
        filter: String,
    },
    /// Status of the outbox.
    OutboxStatus(OutboxStatus),
    /// An entry in a list.
    Entry(EntrySummary),
    /// An entry in a list that cannot be parsed.
    UnreadableEntry {
        /// Its number.
        seq: u64,
    },
    /// The list ends at its limit.
    MoreEntries {
        /// Number of the next entry.
        next: u64,
    },
    /// An entry as it travels.
    Line(String),
    /// The outbox is intact.
    Verified(Verification),
    /// A sink was removed.
    SinkForgotten(ForgottenSink),
    /// A dead letter in a list.
    DeadLetter(DeadLetterSummary),
    /// Dead letters that are left out, since no batch has announced them to the receiver yet.
    Unannounced {
        /// Number of dead letters.
        count: u64,
    },
    /// Outcome of sending a dead letter again.
    Retried {
        /// Its number.
        seq: u64,
        /// The outcome.
        outcome: RetryOutcome,
    },
    /// Dead letters were deleted.
    Purged {
        /// Number of dead letters.
        count: u64,
    },
    /// Key of the device.
    Device(Box<DeviceStatus>),
    /// The key of the device was replaced.
    DeviceRotated {
        /// Public key before.
        previous: String,
        /// Public key in force.
        key: String,
    },
    /// End of a successful response.
    Done,
    /// End of a failed response.
    Failed {
        /// Reason and remedy.
        error: String,
        /// True if the request was wrong, so that nothing was tried.
        usage: bool,
    },
}

/// Status of the outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutboxStatus {
    /// Version of this object.
    pub(crate) version: u32,
    pub(crate) epoch: String,
    pub(crate) last_seq: u64,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) file_bytes: u64,
    pub(crate) max_bytes: u64,
    pub(crate) dead_letters: u64,
    pub(crate) sinks: Vec<SinkPosition>,
}

/// Position of a sink in the outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SinkPosition {
    pub(crate) name: String,
    pub(crate) destination: Option<String>,
    pub(crate) configured: bool,
    pub(crate) acknowledged: u64,
    pub(crate) entries: u64,
    pub(crate) oldest_seconds: Option<u64>,
    /// Note of the last receipt for the current epoch.
    #[serde(default)]
    pub(crate) receipt: Option<String>,
    /// Receipts for the epochs before it, the latest last.
    #[serde(default)]
    pub(crate) earlier_receipts: Vec<EpochReceipt>,
}

/// Last receipt for an epoch that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EpochReceipt {
    pub(crate) epoch: String,
    /// The note.
    pub(crate) receipt: String,
}

/// An entry without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntrySummary {
    pub(crate) seq: u64,
    pub(crate) kind: Kind,
    pub(crate) source: String,
    pub(crate) path: Option<String>,
    pub(crate) generation: Option<String>,
    pub(crate) offset: Option<u64>,
    pub(crate) length: Option<u64>,
    pub(crate) part: Option<u32>,
    pub(crate) event: Option<String>,
    pub(crate) severity: Option<String>,
    pub(crate) at: Option<String>,
}

/// Result of a verification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verification {
    pub(crate) entries: u64,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    /// Bytes before compression.
    pub(crate) bytes: u64,
    pub(crate) dead_letters: u64,
}

/// A sink that was removed from the outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ForgottenSink {
    pub(crate) name: String,
    pub(crate) acknowledged: u64,
    pub(crate) undelivered: u64,
    pub(crate) freed_bytes: u64,
    /// Its dead letters, which are still stored.
    pub(crate) dead_letters: u64,
}

/// A dead letter without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeadLetterSummary {
    pub(crate) seq: u64,
    pub(crate) sink: String,
    pub(crate) epoch: String,
    pub(crate) reason: String,
    pub(crate) status: u16,
    pub(crate) at: String,
    pub(crate) attempts: u32,
    pub(crate) answer: String,
    pub(crate) line_sha256: Digest,
}

/// Reason why a request cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("the request is not a line of JSON with a `version`")]
    Json(#[source] serde_json::Error),
    #[error(
        "ai-agent {} speaks version {VERSION} of the control protocol, the request has version \
         {requested}: use the `ai-agent` that is running, or restart it after an upgrade",
        crate::version::version()
    )]
    OtherVersion { requested: u32 },
    #[error(
        "the running ai-agent {} does not know this request: restart it after an upgrade",
        crate::version::version()
    )]
    Unknown(#[source] serde_json::Error),
    #[error("the request is longer than {MAX_REQUEST} bytes")]
    TooLong,
}

/// Encodes a request as a line.
pub(super) fn encode(request: &Request) -> Vec<u8> {
    #[derive(Serialize)]
    struct Message<'a> {
        version: u32,
        ask: &'a Request,
    }
    let message = Message { version: VERSION, ask: request };
    let mut line = serde_json::to_vec(&message).expect("requests serialise to JSON");
    line.push(b'\n');
    line
}

/// Decodes the line of a request.
pub(super) fn decode(line: &[u8]) -> Result<Request, DecodeError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    #[derive(Deserialize)]
    struct Message {
        ask: Request,
    }
    let Versioned { version } = serde_json::from_slice(line).map_err(DecodeError::Json)?;
    if version != VERSION {
        return Err(DecodeError::OtherVersion { requested: version });
    }
    let Message { ask } = serde_json::from_slice(line).map_err(DecodeError::Unknown)?;
    Ok(ask)
}

impl Response {
    /// Encodes a response as a line.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("responses serialise to JSON");
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::causes;

    /// An agent of another version may send or receive these lines: they must not change.
    #[test]
    fn lines_on_the_wire_stay_the_same() {
        let line = |request: &Request| String::from_utf8(encode(request)).unwrap();
        assert_eq!(line(&Request::Status), "{\"version\":1,\"ask\":\"status\"}\n");
        assert_eq!(
            line(&Request::Flush { within_ms: 500 }),
            "{\"version\":1,\"ask\":{\"flush\":{\"within_ms\":500}}}\n"
        );
        assert!(matches!(decode(b"{\"version\":1,\"ask\":\"reload\"}"), Ok(Request::Reload)));
        let level = Request::LogLevel { level: Some(Level::Debug) };
        assert_eq!(line(&level), "{\"version\":1,\"ask\":{\"log-level\":{\"level\":\"debug\"}}}\n");
        assert_eq!(Response::Done.encode(), b"\"done\"\n");
        assert_eq!(Response::Line("a".to_owned()).encode(), b"{\"line\":\"a\"}\n");
        let failed = Response::Failed { error: "no".to_owned(), usage: true };
        assert_eq!(failed.encode(), b"{\"failed\":{\"error\":\"no\",\"usage\":true}}\n");
    }

    #[test]
    fn a_request_that_cannot_be_decoded_is_explained() {
        let error_text = |line: &str| causes(&decode(line.as_bytes()).unwrap_err());
        let cases = [
            ("", "not a line of JSON"),
            ("[]", "not a line of JSON"),
            ("{\"ask\":\"status\"}", "missing field `version`"),
            ("{\"version\":2,\"ask\":{\"new\":1}}", "the request has version 2"),
            ("{\"version\":1,\"ask\":\"dance\"}", "unknown variant `dance`"),
            ("{\"version\":1,\"ask\":{\"flush\":{\"within_ms\":-1}}}", "invalid value"),
            // An agent that ignored the field would do more than was requested.
            ("{\"version\":1,\"ask\":{\"flush\":{\"within_ms\":1,\"only\":1}}}", "unknown field"),
        ];
        for (line, words) in cases {
            assert!(error_text(line).contains(words), "{line}: {}", error_text(line));
        }
    }
}
