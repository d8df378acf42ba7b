//! Creates entries as documents in Elasticsearch or OpenSearch, with the bulk API.
//!
//! Each entry is a document with ECS fields, listed in `docs/siem/fields.md`; the record is the string
//! `event.original`, byte for byte, or base64 if it is not UTF-8. The action is `create`, as data
//! streams require, so that the credentials need the privilege `create_doc` only.
//!
//! An acknowledged entry is indexed. Its `_id` is the id of the event with a hash of its bytes: an entry
//! that is sent again is refused as a conflict, and counts as delivered. Ids are unique within one
//! backing index: if a data stream rolls over between a request whose response was lost and the next
//! one, the entries of that request are stored twice, with the same `event.id`.
//!
//! Each document has a result of its own. 400 makes the entry a dead letter; 429 and 5xx send it again;
//! 401, 403 and 404 hold all entries and raise an alarm. A document in the failure store is reported.
//! After 413 smaller requests are sent.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use ai_agent_stage::{BuildError, Context};
use siem_sinks::elasticsearch::{
    Authorization, DEFAULT_DATA_STREAM, EVENT_BYTES, Elasticsearch, REQUEST_BYTES, Settings, Target,
};

use super::{
    Plugin, SinkOptions,
    connection::{connection_sample, secret, url, with_connection_options},
    event_options::{Compression, EventTime, limits},
    siem::Adapter,
};
use crate::{config::Secret, stages::AgentContext};
use config_text::Size;

inventory::submit! {
    Plugin::sink::<Options>(
        "elasticsearch",
        "Creates documents in Elasticsearch or OpenSearch with the bulk API.",
        concat!(r#"
## URL of the cluster, http or https.
endpoint = "https://elastic.example.com:9200"
## API key: the base64 text that Elasticsearch shows as `encoded`. Preferably set by `api_key_file`.
api_key = "..."
## File with the API key, readable only by its owner (0600).
api_key_file = "/etc/ai-agent/elastic-api-key"
## User, if there is no API key.
user = "..."
## Password of the user. Preferably set by `password_file`.
password = "..."
## File with the password, readable only by its owner (0600).
password_file = "/etc/ai-agent/elastic-password"
## Data stream, named `<type>-<dataset>-<namespace>`. The parts are fields of the documents too.
data_stream = "logs-claude_code.session-default"
## Index, alias or data stream with any name. If set, `data_stream` is not used.
index = "claude-code"
## Ingest pipeline. If absent, that of the data stream or index is used.
pipeline = "..."
## Compression of request bodies: "gzip" or "none".
compression = "gzip"
## `@timestamp` of a document: "record", its own timestamp, or "read", when the agent read it.
time = "record"
## Maximum size of a document with its fields. A larger entry is sent in parts.
max_event_bytes = "5 MB"
## Maximum size of a request, before compression.
max_request_bytes = "5 MB"
"#, connection_sample!()),
    )
}

with_connection_options! {
    /// Options of the sink.
    struct Options {
        /// URL of the cluster, http or https.
        endpoint: String,
        /// API key: the base64 text that Elasticsearch shows as `encoded`. Preferably set by
        /// `api_key_file`.
        api_key: Option<Secret>,
        /// File with the API key, readable only by its owner (0600).
        api_key_file: Option<PathBuf>,
        /// User, if there is no API key.
        user: Option<String>,
        /// Password of the user. Preferably set by `password_file`.
        password: Option<Secret>,
        /// File with the password, readable only by its owner (0600).
        password_file: Option<PathBuf>,
        /// Data stream, named `<type>-<dataset>-<namespace>`. The parts are fields of the documents too.
        #[serde(default = "data_stream")]
        data_stream: String,
        /// Index, alias or data stream with any name. If set, `data_stream` is not used.
        index: Option<String>,
        /// Ingest pipeline. If absent, that of the data stream or index is used.
        pipeline: Option<String>,
        /// Compression of request bodies: "gzip" or "none".
        #[serde(default)]
        compression: Compression,
        /// `@timestamp` of a document: "record", its own timestamp, or "read", when the agent read it.
        #[serde(default = "time")]
        time: EventTime,
        /// Maximum size of a document with its fields. A larger entry is sent in parts.
        #[serde(default = "max_event_bytes")]
        max_event_bytes: Size,
        /// Maximum size of a request, before compression.
        #[serde(default = "max_request_bytes")]
        max_request_bytes: Size,
    }
}

fn data_stream() -> String {
    DEFAULT_DATA_STREAM.to_owned()
}

fn time() -> EventTime {
    EventTime::Record
}

fn max_event_bytes() -> Size {
    Size(EVENT_BYTES as u64)
}

fn max_request_bytes() -> Size {
    Size(REQUEST_BYTES as u64)
}

impl SinkOptions for Options {
    type Sink = Adapter<Elasticsearch>;

    fn build(self, context: &Context) -> Result<Self::Sink, BuildError> {
        let agent = AgentContext::of(context)?;
        let endpoint = url("endpoint", &self.endpoint)?;
        let client = self.connection().client("endpoint", &endpoint, agent)?;
        let (max_event_bytes, max_request_bytes) =
            limits(self.max_event_bytes, self.max_request_bytes)?;
        let clock = Arc::clone(context.clock());
        let now = Arc::new(move || UNIX_EPOCH + Duration::from_millis(clock.now().0));
        let settings = Settings {
            url: endpoint,
            authorization: self.authorization(agent)?,
            target: self.target()?,
            pipeline: self.pipeline,
            time: self.time.into(),
            max_event_bytes,
            max_request_bytes,
            compression: self.compression.into(),
            timeout: self.timeout.0,
        };
        Ok(Adapter::new(Elasticsearch::new(client, settings, now)))
    }
}

impl Options {
    fn authorization(&self, context: &AgentContext) -> Result<Authorization, BuildError> {
        let (key, key_file) = (self.api_key.as_ref(), self.api_key_file.as_deref());
        let (password, password_file) = (self.password.as_ref(), self.password_file.as_deref());
        if key.is_some() || key_file.is_some() {
            let key = secret(["api_key", "api_key_file"], key, key_file, context)?;
            let key = key.expose();
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                let problem = "contains characters that an HTTP header cannot contain";
                return Err(BuildError::invalid("api_key", problem));
            }
            return Ok(Authorization::ApiKey(key.to_owned()));
        }
        let Some(user) = &self.user else {
            if password.is_some() || password_file.is_some() {
                return Err(BuildError::invalid("user", "is missing: a password needs a user"));
            }
            return Ok(Authorization::None);
        };
        let options = ["password", "password_file"];
        let password = secret(options, password, password_file, context)?;
        Ok(Authorization::Basic { user: user.clone(), password: password.expose().to_owned() })
    }

    fn target(&self) -> Result<Target, BuildError> {
        match &self.index {
            Some(index) => {
                Target::index(index).map_err(|error| BuildError::invalid("index", error.0))
            }
            None => Target::data_stream(&self.data_stream)
                .map_err(|error| BuildError::invalid("data_stream", error.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::sink::build;

    const ENDPOINT: &str = "endpoint = \"http://elastic.test:9200\"\n";

    fn options(text: &str) -> Options {
        let text = format!("{ENDPOINT}{text}");
        text.parse::<ai_agent_stage::StageOptions>().unwrap().parse().unwrap()
    }

    #[test]
    fn destination_is_the_target_without_secrets() {
        for (options, destination) in [
            ("", "http://elastic.test:9200/logs-claude_code.session-default"),
            ("index = \"claude\"\napi_key = \"s3cr3t\"", "http://elastic.test:9200/claude"),
            (
                "data_stream = \"logs-ai-eu\"\nuser = \"u\"\npassword = \"s3cr3t\"",
                "http://elastic.test:9200/logs-ai-eu",
            ),
        ] {
            let options = format!("{ENDPOINT}{options}").parse().unwrap();
            let sink = build("elasticsearch", &options, &crate::test_context::context()).unwrap();
            assert_eq!(sink.destination().as_deref(), Some(destination));
        }
    }

    #[test]
    fn invalid_options_are_refused() {
        for (text, word) in [
            ("data_stream = \"claude\"", "`data_stream` is not `<type>-<dataset>-<namespace>`"),
            ("index = \"_all\"", "`index` starts with"),
            ("password = \"p455\"", "`user` is missing"),
            ("user = \"u\"", "`password` is missing"),
            ("api_key = \"p4 55\"", "`api_key` contains"),
            ("api_key_file = \"/no/such/file\"", "`api_key_file`"),
            ("compression = \"zstd\"", "`compression`"),
            ("max_event_bytes = \"1 KB\"", "`max_event_bytes`"),
            ("max_request_bytes = \"1 MB\"", "`max_request_bytes`"),
        ] {
            let options = format!("{ENDPOINT}{text}").parse().unwrap();
            let error = build("elasticsearch", &options, &crate::test_context::context()).err();
            let error = error.unwrap().to_string();
            assert!(error.contains(word) && !error.contains("p455"), "{text}: {error}");
        }
    }

    #[test]
    fn each_form_of_credentials_is_used() {
        let context = crate::test_context::context();
        let authorization = |text| options(text).authorization(&context).unwrap();
        assert!(matches!(authorization(""), Authorization::None));
        let key = authorization("api_key = \"k\"");
        assert!(matches!(key, Authorization::ApiKey(key) if key == "k"));
        let basic = authorization("user = \"u\"\npassword = \"p\"");
        assert!(
            matches!(basic, Authorization::Basic { user, password } if user == "u" && password == "p")
        );
    }
}
