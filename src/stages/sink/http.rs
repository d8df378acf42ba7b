//! Ships records as JSON over HTTP, to receivers without a protocol of their own: Sumo Logic, Datadog,
//! Cortex XSIAM, Azure Logic Apps, or a collector's own endpoint.
//!
//! Each event is an object with the names of ECS: `@timestamp`, `event.original` with the record, byte for
//! byte, and the fields of the entry. A record that is not UTF-8 is sent in base64, and
//! `ai_agent.encoding` says so.
//!
//! A status in `success` acknowledges all events of a request, and proves only that the next hop has
//! them. There are no ids: after a lost response, or a crash of the agent, the events of one batch are
//! sent again, and are there twice with the same `event.id`.
//!
//! Other statuses: 408, 425, 429 and 5xx are retried, after `Retry-After` if the response has it. After
//! 413 requests become smaller, down to 64 KiB, until the next start. 400 and 422 halve the batch until
//! the refused entry is alone, which becomes a dead letter. Any other status raises an alarm, and is
//! tried again later.

use std::{collections::BTreeMap, ops::RangeInclusive, path::PathBuf, sync::Arc};

use ai_agent_stage::{BuildError, Context};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_sinks::json_http::{self, JsonHttp, Settings};

use super::{
    Plugin, SinkOptions,
    connection::{connection_sample, secret, url, with_connection_options},
    event_options::{Compression, EventTime, limits},
    headers::headers,
    siem::Adapter,
    sink_clock::SinkClock,
};
use crate::{config::Secret, stages::AgentContext};
use config_text::Size;

inventory::submit! {
    Plugin::sink::<Options>(
        "http",
        "Ships records as JSON to any URL.",
        concat!(r#"
## URL of each request, http or https.
endpoint = "https://intake.example.com/v1/logs"
## File with the URL, if it contains a secret; readable only by its owner (0600).
endpoint_file = "/etc/ai-agent/endpoint"
## Method of each request: "post" or "put".
method = "post"
## Additional headers of each request, such as an API key. Preferably set by `headers_file`.
headers = { "api-key" = "..." }
## File with additional headers, a `Name: value` on each line, readable only by its owner (0600).
headers_file = "/etc/ai-agent/http-headers"
## Body of a request: "ndjson", a line for each event, or "array", a JSON array of events.
format = "ndjson"
## Statuses, or ranges of them, that acknowledge a request.
success = ["200-299"]
## Compression of request bodies: "gzip" or "none".
compression = "gzip"
## Time of an event: "record", its own timestamp, or "read", when the agent read it. Some receivers refuse old times.
time = "record"
## Maximum size of an event with its fields. A larger entry is sent in parts.
max_event_bytes = "900 KB"
## Maximum size of a request, before compression.
max_request_bytes = "4 MB"
## Maximum number of events in a request.
max_events = 1000
"#, connection_sample!()),
    )
}

with_connection_options! {
    /// Options of the sink.
    struct Options {
        /// URL of each request, http or https.
        endpoint: Option<Secret>,
        /// File with the URL, if it contains a secret; readable only by its owner (0600).
        endpoint_file: Option<PathBuf>,
        /// Method of each request: "post" or "put".
        #[serde(default)]
        method: Method,
        /// Additional headers of each request, such as an API key. Preferably set by `headers_file`.
        headers: Option<BTreeMap<String, Secret>>,
        /// File with additional headers, a `Name: value` on each line, readable only by its owner
        /// (0600).
        headers_file: Option<PathBuf>,
        /// Body of a request: "ndjson", a line for each event, or "array", a JSON array of events.
        #[serde(default)]
        format: Format,
        /// Statuses, or ranges of them, that acknowledge a request.
        #[serde(default = "success")]
        success: Vec<String>,
        /// Compression of request bodies: "gzip" or "none".
        #[serde(default)]
        compression: Compression,
        /// Time of an event: "record", its own timestamp, or "read", when the agent read it.
        #[serde(default = "time")]
        time: EventTime,
        /// Maximum size of an event with its fields. A larger entry is sent in parts.
        #[serde(default = "max_event_bytes")]
        max_event_bytes: Size,
        /// Maximum size of a request, before compression.
        #[serde(default = "max_request_bytes")]
        max_request_bytes: Size,
        /// Maximum number of events in a request.
        #[serde(default = "max_events")]
        max_events: usize,
    }
}

/// Method of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Method {
    /// POST.
    #[default]
    Post,
    /// PUT.
    Put,
}

/// Body of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Format {
    /// A line for each event.
    #[default]
    Ndjson,
    /// A JSON array of events.
    Array,
}

fn success() -> Vec<String> {
    vec!["200-299".to_owned()]
}

fn time() -> EventTime {
    EventTime::Record
}

/// Many receivers cut or refuse events above 1 MB.
fn max_event_bytes() -> Size {
    Size(900_000)
}

/// Datadog refuses requests above 5 MB.
fn max_request_bytes() -> Size {
    Size(4_000_000)
}

/// Datadog refuses requests with more events.
fn max_events() -> usize {
    1000
}

impl SinkOptions for Options {
    type Sink = Adapter<JsonHttp>;

    fn build(self, context: &Context) -> Result<Self::Sink, BuildError> {
        let agent = AgentContext::of(context)?;
        let endpoint = secret(
            ["endpoint", "endpoint_file"],
            self.endpoint.as_ref(),
            self.endpoint_file.as_deref(),
            agent,
        )?;
        let endpoint = url("endpoint", endpoint.expose())?;
        let client = self.connection().client("endpoint", &endpoint, agent)?;
        let clock = Arc::new(SinkClock(Arc::clone(&agent.clock)));
        let (max_event_bytes, max_request_bytes) =
            limits(self.max_event_bytes, self.max_request_bytes)?;
        if self.max_events == 0 {
            return Err(BuildError::invalid("max_events", "is 0, the smallest value is 1"));
        }
        let settings = Settings {
            url: endpoint,
            method: match self.method {
                Method::Post => reqwest::Method::POST,
                Method::Put => reqwest::Method::PUT,
            },
            headers: headers(self.headers.as_ref(), self.headers_file.as_deref(), agent)?,
            success: statuses(&self.success)?,
            format: match self.format {
                Format::Ndjson => json_http::Format::Ndjson,
                Format::Array => json_http::Format::Array,
            },
            time: self.time.into(),
            max_event_bytes,
            max_request_bytes,
            max_events: self.max_events,
            compression: self.compression.into(),
            timeout: self.timeout.0,
        };
        Ok(Adapter::new(JsonHttp::new(client, clock, settings)))
    }
}

/// Parses `success`.
fn statuses(texts: &[String]) -> Result<Vec<RangeInclusive<u16>>, BuildError> {
    let parse = |text: &String| {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let (from, to) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        (100 <= from && from <= to && to <= 599).then_some(from..=to)
    };
    let wrong = |text: &String| {
        let problem = format!("contains `{text}`, expected a status or a range such as `200-299`");
        BuildError::invalid("success", problem)
    };
    if texts.is_empty() {
        return Err(BuildError::invalid("success", "is empty: no response would acknowledge"));
    }
    texts.iter().map(|text| parse(text).ok_or_else(|| wrong(text))).collect()
}

#[cfg(test)]
mod tests {
    use ai_agent_stage::Acknowledged;

    use super::statuses;
    use crate::{
        platform::secure_file,
        stages::sink::{Sink, build},
    };

    fn sink(options: &str) -> Result<Box<dyn Sink>, String> {
        let options = options.parse().unwrap();
        let built = build("http", &options, &crate::test_context::context());
        built.map_err(|error| error.to_string())
    }

    #[test]
    fn destination_has_no_secret_of_the_url() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("endpoint");
        secure_file::replace(&path, b"http://intake.test/receiver/s3cr3t\n").unwrap();
        let of_file = format!("endpoint_file = {path:?}");
        for options in ["endpoint = \"http://intake.test/x?sig=s3cr3t\"", &of_file] {
            let sink = sink(options).unwrap();
            assert_eq!(sink.destination().as_deref(), Some("http://intake.test"));
            assert_eq!(sink.acknowledged(), Acknowledged::Received);
        }
    }

    #[test]
    fn statuses_are_numbers_or_ranges() {
        let parse = |texts: &[&str]| {
            statuses(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(parse(&["200", "202 - 204"]).unwrap(), [200..=200, 202..=204]);
        for wrong in ["", "ok", "299-200", "20", "200-600", "2xx"] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn invalid_options_are_refused() {
        for (options, word) in [
            ("", "`endpoint` is missing"),
            ("endpoint = \"intake.test\"", "`endpoint`"),
            ("endpoint_file = \"/no/such/file\"", "`endpoint_file`"),
            ("method = \"get\"", "`method`"),
            ("format = \"xml\"", "`format`"),
            ("success = [\"2xx\"]", "`success`"),
            ("max_events = 0", "`max_events`"),
            ("max_event_bytes = \"1 KB\"", "`max_event_bytes`"),
            ("headers = { \"a b\" = \"s3cr3t\" }", "`headers`"),
        ] {
            let endpoint = "endpoint = \"http://intake.test\"\n";
            let options = match options.is_empty() || options.starts_with("endpoint") {
                true => options.to_owned(),
                false => format!("{endpoint}{options}"),
            };
            let error = sink(&options).err().unwrap();
            assert!(error.contains(word) && !error.contains("s3cr3t"), "{options}: {error}");
        }
    }
}
