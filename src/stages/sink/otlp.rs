//! Ships entries to an OpenTelemetry receiver: OTLP/HTTP logs in protobuf.
//!
//! The receiver is a collector, or a backend that speaks the protocol itself. Each entry is a log
//! record whose body is the record, byte for byte, as a string, or as bytes if it is not UTF-8. The
//! resource describes the machine, the user and the agent.
//!
//! A response of success means that the next hop has the log records; a collector with a queue in memory
//! may still lose them. The protocol has no ids: after a lost response log records are sent twice, with
//! the same `log.record.uid`. If a receiver refuses some log records of a request, it does not say which:
//! the number is reported, and they are not sent again, since that would duplicate the others.
//!
//! Statuses: 429, 502, 503 and 504 are retried, after `Retry-After` if the response has it, and so are
//! 408 and 425. After 413 smaller requests are sent. 400 and 422 halve the batch until the refused entry
//! is alone, which becomes a dead letter. The specification does not allow to retry after any other
//! status, and exporters drop the data; this sink keeps it, raises an alarm, and tries again later.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use ai_agent_stage::{BuildError, Context};
use siem_sinks::otlp::{Otlp, Settings};

use super::{
    Plugin, SinkOptions,
    connection::{connection_sample, url, with_connection_options},
    event_options::{Compression, EventTime, limits},
    headers::headers,
    siem::Adapter,
};
use crate::{config::Secret, stages::AgentContext};
use config_text::Size;

inventory::submit! {
    Plugin::sink::<Options>(
        "otlp",
        "Ships log records to an OpenTelemetry collector or backend over HTTP.",
        concat!(r#"
## URL of the receiver, http or https. As with other exporters, `/v1/logs` is appended to its path, unless it ends with that.
endpoint = "https://otel.example.com:4318"
## Additional headers of each request, such as an API key. Preferably set by `headers_file`.
headers = { "api-key" = "..." }
## File with additional headers, a `Name: value` on each line, readable only by its owner (0600).
headers_file = "/etc/ai-agent/otlp-headers"
## Compression of request bodies: "gzip" or "none".
compression = "gzip"
## Time of a log record: "read", when the agent read it, or "record", its own timestamp. Many receivers refuse old times.
time = "read"
## Maximum size of a log record with its attributes. A larger entry is sent in parts.
max_event_bytes = "1 MB"
## Maximum size of a request, before compression.
max_request_bytes = "4 MB"
"#, connection_sample!()),
    )
}

with_connection_options! {
    /// Options of the sink.
    struct Options {
        /// URL of the receiver, http or https. `/v1/logs` is appended to its path, unless it ends with
        /// that.
        endpoint: String,
        /// Additional headers of each request, such as an API key. Preferably set by `headers_file`.
        headers: Option<BTreeMap<String, Secret>>,
        /// File with additional headers, a `Name: value` on each line, readable only by its owner
        /// (0600).
        headers_file: Option<PathBuf>,
        /// Compression of request bodies: "gzip" or "none".
        #[serde(default)]
        compression: Compression,
        /// Time of a log record: "read", when the agent read it, or "record", its own timestamp.
        #[serde(default = "time")]
        time: EventTime,
        /// Maximum size of a log record with its attributes. A larger entry is sent in parts.
        #[serde(default = "max_event_bytes")]
        max_event_bytes: Size,
        /// Maximum size of a request, before compression.
        #[serde(default = "max_request_bytes")]
        max_request_bytes: Size,
    }
}

/// Receivers such as Loki refuse log records that are older than some days.
fn time() -> EventTime {
    EventTime::Read
}

fn max_event_bytes() -> Size {
    Size(1_000_000)
}

fn max_request_bytes() -> Size {
    Size(4_000_000)
}

impl SinkOptions for Options {
    type Sink = Adapter<Otlp>;

    fn build(self, context: &Context) -> Result<Self::Sink, BuildError> {
        let agent = AgentContext::of(context)?;
        let endpoint = url("endpoint", &self.endpoint)?;
        let client = self.connection().client("endpoint", &endpoint, agent)?;
        let headers = headers(self.headers.as_ref(), self.headers_file.as_deref(), agent)?;
        let (max_event_bytes, max_request_bytes) =
            limits(self.max_event_bytes, self.max_request_bytes)?;
        let clock = Arc::clone(context.clock());
        let now = Arc::new(move || UNIX_EPOCH + Duration::from_millis(clock.now().0));
        let settings = Settings {
            endpoint,
            headers,
            compression: self.compression.into(),
            time: self.time.into(),
            max_event_bytes,
            max_request_bytes,
            timeout: self.timeout.0,
        };
        Ok(Adapter::new(Otlp::new(client, settings, now)))
    }
}

#[cfg(test)]
mod tests {
    use crate::stages::sink::build;

    fn refused(options: &str) -> String {
        let options = options.parse().unwrap();
        let built = build("otlp", &options, &crate::test_context::context());
        built.err().unwrap().to_string()
    }

    #[test]
    fn destination_is_the_url_for_logs_without_secrets() {
        for (endpoint, destination) in [
            ("http://otel.test:4318", "http://otel.test:4318/v1/logs"),
            ("http://otel.test/", "http://otel.test/v1/logs"),
            ("http://otel.test/otlp/", "http://otel.test/otlp/v1/logs"),
            ("http://otel.test/otlp/v1/logs", "http://otel.test/otlp/v1/logs"),
            ("http://otel.test/?key=s3cr3t", "http://otel.test/v1/logs"),
        ] {
            let options = format!("endpoint = \"{endpoint}\"\nheaders = {{ key = \"s3cr3t\" }}");
            let options = options.parse().unwrap();
            let sink = build("otlp", &options, &crate::test_context::context()).unwrap();
            assert_eq!(sink.destination().as_deref(), Some(destination));
        }
    }

    #[test]
    fn invalid_options_are_refused() {
        let endpoint = "endpoint = \"http://otel.test\"\n";
        for (options, word) in [
            ("", "`endpoint`"),
            ("endpoint = \"otel.test:4318\"", "`endpoint`"),
            ("headers = { \"a b\" = \"c\" }", "`headers`"),
            ("headers_file = \"/no/such/file\"", "`headers_file`"),
            ("compression = \"zstd\"", "`compression`"),
            ("time = \"now\"", "`time`"),
            ("max_event_bytes = \"1 KB\"", "`max_event_bytes`"),
            ("max_request_bytes = \"500 KB\"", "`max_request_bytes`"),
        ] {
            let has_endpoint = options.is_empty() || options.starts_with("endpoint");
            let options =
                if has_endpoint { options.to_owned() } else { format!("{endpoint}{options}") };
            let error = refused(&options);
            assert!(error.contains(word), "{options}: {error}");
        }
    }
}
