//! Ships records to the HTTP Event Collector (HEC) of Splunk, LogScale or Falcon Next-Gen SIEM.
//!
//! Each entry is an event whose text is the record, byte for byte; its fields are indexed fields with the
//! names of ECS. A record that is not UTF-8 is sent in base64, and one that is blank as a JSON string;
//! the field `ai_agent.encoding` says so. Splunk cuts events at 10,000 bytes unless the sourcetype has
//! `TRUNCATE = 0`.
//!
//! Splunk reads a request event by event: it stores those before an invalid one and names that one by
//! its number, which becomes a dead letter. No other event is sent twice. HEC has no ids: after a lost
//! response, or a crash of the agent, the events of one batch are sent again, and are there twice with
//! the same `event.id`.
//!
//! A response of success means that Splunk has received the events; they can still be lost before they
//! are indexed. With `acknowledgement = "indexed"` and a token with indexer acknowledgement, entries
//! count as delivered when Splunk reports them as indexed, and those that it does not report in time are
//! sent again, over a new channel. The events before a refused one get no acknowledgement: for them the receipt counts.
//!
//! Requests that the receiver finds too large become smaller, down to 64 KiB, until the next start.

use std::{path::PathBuf, sync::Arc};

use ai_agent_stage::{BuildError, Context};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_sinks::splunk_hec::{
    self as hec, Indexed, LOGSCALE_EVENT_BYTES, LOGSCALE_REQUEST_BYTES, SPLUNK_BYTES, Settings,
    SplunkHec,
};

use super::{
    Plugin, SinkOptions,
    connection::{check_timeout, connection_sample, secret, url, with_connection_options},
    event_options::{Compression, EventTime, limits},
    siem::Adapter,
    sink_clock::SinkClock,
};
use crate::{config::Secret, stages::AgentContext};
use config_text::{Size, Time};

inventory::submit! {
    Plugin::sink::<Options>(
        "splunk-hec",
        "Ships records to the HTTP Event Collector of Splunk, LogScale or Falcon Next-Gen SIEM.",
        concat!(r#"
## URL of the receiver, http or https. The path of the collector is appended if it is missing.
endpoint = "https://splunk.example.com:8088"
## Token of the collector. Preferably set by `token_file`.
token = "..."
## File with the token, readable only by its owner (0600).
token_file = "/etc/ai-agent/splunk-token"
## Receiver: "splunk", or "logscale" for LogScale and Falcon Next-Gen SIEM.
dialect = "splunk"
## Index of the events; by default the one of the token. With LogScale the name of the repository.
index = "claude"
## Source type of the events; by default `claude_code:session` for sessions, and `ai_agent:event` for events of the agent.
sourcetype = "claude_code:session"
## Response that acknowledges entries: "received", or "indexed" if the token has indexer acknowledgement.
acknowledgement = "received"
## Time after which entries that are not reported as indexed are sent again.
acknowledgement_timeout = "5m"
## Compression of request bodies: "gzip" or "none".
compression = "gzip"
## Time of an event: "record", its own timestamp, or "read", when the agent read it.
time = "record"
## Maximum size of an event with its fields. A larger entry is sent in parts. By default 900 KB; 1 MB with LogScale.
max_event_bytes = "900 KB"
## Maximum size of a request, before compression. By default 900 KB; 5 MB with LogScale.
max_request_bytes = "900 KB"
"#, connection_sample!()),
    )
}

with_connection_options! {
    /// Options of the sink.
    struct Options {
        /// URL of the receiver, http or https. The path of the collector is appended if it is missing.
        endpoint: String,
        /// Token of the collector. Preferably set by `token_file`.
        token: Option<Secret>,
        /// File with the token, readable only by its owner (0600).
        token_file: Option<PathBuf>,
        /// Receiver: "splunk", or "logscale" for LogScale and Falcon Next-Gen SIEM.
        #[serde(default)]
        dialect: Dialect,
        /// Index of the events; by default the one of the token. With LogScale the name of the
        /// repository.
        index: Option<String>,
        /// Source type of the events; by default `claude_code:session` for sessions, and
        /// `ai_agent:event` for events of the agent.
        sourcetype: Option<String>,
        /// Response that acknowledges entries: "received", or "indexed" if the token has indexer
        /// acknowledgement.
        #[serde(default)]
        acknowledgement: Acknowledgement,
        /// Time after which entries that are not reported as indexed are sent again.
        #[serde(default = "acknowledgement_timeout")]
        acknowledgement_timeout: Time,
        /// Compression of request bodies: "gzip" or "none".
        #[serde(default)]
        compression: Compression,
        /// Time of an event: "record", its own timestamp, or "read", when the agent read it.
        #[serde(default = "time")]
        time: EventTime,
        /// Maximum size of an event with its fields. A larger entry is sent in parts. By default
        /// 900 KB; 1 MB with LogScale.
        max_event_bytes: Option<Size>,
        /// Maximum size of a request, before compression. By default 900 KB; 5 MB with LogScale.
        max_request_bytes: Option<Size>,
    }
}

/// Receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Dialect {
    /// Splunk.
    #[default]
    Splunk,
    /// LogScale and Falcon Next-Gen SIEM.
    #[serde(rename = "logscale")]
    LogScale,
}

/// Response that acknowledges entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Acknowledgement {
    /// The receiver has the events.
    #[default]
    Received,
    /// The receiver reports the events as indexed.
    Indexed,
}

fn acknowledgement_timeout() -> Time {
    Time::seconds(300)
}

/// Splunk accepts times that are years ago.
fn time() -> EventTime {
    EventTime::Record
}

impl SinkOptions for Options {
    type Sink = Adapter<SplunkHec>;

    fn build(self, context: &Context) -> Result<Self::Sink, BuildError> {
        let agent = AgentContext::of(context)?;
        check_timeout("acknowledgement_timeout", self.acknowledgement_timeout)?;
        let endpoint = url("endpoint", &self.endpoint)?;
        let client = self.connection().client("endpoint", &endpoint, agent)?;
        let clock = Arc::new(SinkClock(Arc::clone(&agent.clock)));
        let token = secret(
            ["token", "token_file"],
            self.token.as_ref(),
            self.token_file.as_deref(),
            agent,
        )?;
        if !token.expose().bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            let problem = "contains characters that an HTTP header cannot contain";
            return Err(BuildError::invalid("token", problem));
        }
        let (dialect, event, request) = match self.dialect {
            Dialect::Splunk => (hec::Dialect::Splunk, SPLUNK_BYTES, SPLUNK_BYTES),
            Dialect::LogScale => {
                (hec::Dialect::LogScale, LOGSCALE_EVENT_BYTES, LOGSCALE_REQUEST_BYTES)
            }
        };
        let event = self.max_event_bytes.unwrap_or(Size(event as u64));
        let request = self.max_request_bytes.unwrap_or(Size(request as u64).max(event));
        let (max_event_bytes, max_request_bytes) = limits(event, request)?;
        let settings = Settings {
            url: endpoint,
            token: token.expose().to_owned(),
            dialect,
            indexed: self.indexed()?,
            index: self.index,
            sourcetype: self.sourcetype,
            time: self.time.into(),
            max_event_bytes,
            max_request_bytes,
            compression: self.compression.into(),
            timeout: self.timeout.0,
        };
        Ok(Adapter::new(SplunkHec::new(client, clock, settings)))
    }
}

impl Options {
    fn indexed(&self) -> Result<Option<Indexed>, BuildError> {
        match (self.acknowledgement, self.dialect) {
            (Acknowledgement::Received, _) => Ok(None),
            (Acknowledgement::Indexed, Dialect::Splunk) => Ok(Some(Indexed {
                new_channel: Arc::new(|| uuid::Uuid::new_v4().hyphenated().to_string()),
                within: self.acknowledgement_timeout.0,
            })),
            (Acknowledgement::Indexed, Dialect::LogScale) => {
                let problem = "is \"indexed\", but LogScale has no indexer acknowledgement";
                Err(BuildError::invalid("acknowledgement", problem))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ai_agent_stage::Acknowledged;

    use crate::stages::sink::{Sink, build};

    fn sink(options: &str) -> Result<Box<dyn Sink>, String> {
        let options = options.parse().unwrap();
        let built = build("splunk-hec", &options, &crate::test_context::context());
        built.map_err(|error| error.to_string())
    }

    #[test]
    fn dialect_and_acknowledgement_select_url_and_meaning() {
        for (options, destination, acknowledged) in [
            ("", "http://hec.test/services/collector", Acknowledged::Received),
            ("dialect = \"splunk\"", "http://hec.test/services/collector", Acknowledged::Received),
            (
                "acknowledgement = \"indexed\"",
                "http://hec.test/services/collector",
                Acknowledged::Indexed,
            ),
            ("dialect = \"logscale\"", "http://hec.test/api/v1/ingest/hec", Acknowledged::Received),
        ] {
            let sink = sink(&format!("endpoint = \"http://hec.test\"\ntoken = \"t\"\n{options}"));
            let sink = sink.unwrap();
            assert_eq!(sink.destination().as_deref(), Some(destination));
            assert_eq!(sink.acknowledged(), acknowledged);
        }
    }

    #[test]
    fn invalid_options_are_refused() {
        let needed = "endpoint = \"http://hec.test\"\ntoken = \"s3cr3t\"\n";
        for (options, word) in [
            ("endpoint = \"http://hec.test\"", "`token` is missing"),
            ("endpoint = \"hec.test:8088\"\ntoken = \"t\"", "`endpoint`"),
            ("endpoint = \"http://hec.test\"\ntoken = \"s3cr3t\\n1\"", "`token` contains"),
            ("dialect = \"elastic\"", "`dialect`"),
            ("dialect = \"logscale\"\nacknowledgement = \"indexed\"", "`acknowledgement`"),
            ("max_event_bytes = \"1 KB\"", "`max_event_bytes`"),
            ("max_request_bytes = \"100 KB\"", "`max_request_bytes`"),
        ] {
            let options = match options.starts_with("endpoint") {
                true => options.to_owned(),
                false => format!("{needed}{options}"),
            };
            let error = sink(&options).err().unwrap();
            assert!(error.contains(word) && !error.contains("s3cr3t"), "{options}: {error}");
        }
        assert!(sink(&format!("{needed}max_event_bytes = \"2 MB\"")).is_ok());
    }
}
