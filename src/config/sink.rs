//! Options common to all types of sinks, and those with secrets.

use ai_agent_stage::StageKind;
use figment::value::{Dict, Value};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde::Deserialize;

use config_text::Size;

/// Type of the sink that delivers to a receiver over HTTP.
pub const HTTP_SIEM: &str = "http-siem";

/// Sample of these options, with comments.
pub const SINK_OPTIONS: &str = r#"
## Position at which a new sink starts: "oldest" (the oldest entry in the outbox) or "now" (entries
## stored from then on). A sink that the outbox knows continues where it stopped.
start = "oldest"
## Maximum number of bytes sent per second, on average: a batch is sent at once, and the next one
## waits. At least 1 KiB; unlimited if omitted.
max_bytes_per_second = "1 MiB"
"#;

/// Settings common to all types of sinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkSettings {
    /// Start position of a sink that is new to the outbox.
    pub start: Start,
    /// Maximum number of bytes sent per second, on average; `None` for no limit.
    pub max_bytes_per_second: Option<u64>,
}

/// Start position of a sink that is new to the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// The oldest entry in the outbox.
    #[default]
    Oldest,
    /// Entries stored from then on.
    Now,
}

/// Options as written in a sink's table.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct SinkTable {
    /// Position at which a new sink starts: "oldest" (the oldest entry in the outbox) or "now"
    /// (entries stored from then on).
    start: Start,
    /// Maximum number of bytes sent per second, on average; at least 1 KiB.
    max_bytes_per_second: Option<Size>,
}

/// A secret of a sink, which is configured by value, by file, or as a credential of systemd.
pub(super) struct SecretOption {
    /// Option with the value.
    pub(super) value: &'static str,
    /// Option with the path of a file that contains it.
    pub(super) file: &'static str,
    /// Last part of the credential's name.
    pub(super) credential: &'static str,
}

/// Secrets of sinks of all types.
pub(super) const SECRETS: [SecretOption; 8] = [
    SecretOption { value: "token", file: "token_file", credential: "token" },
    SecretOption { value: "hmac_secret", file: "hmac_secret_file", credential: "hmac-secret" },
    SecretOption { value: "enroll_token", file: "enroll_token_file", credential: "enroll-token" },
    SecretOption { value: "api_key", file: "api_key_file", credential: "api-key" },
    SecretOption { value: "headers", file: "headers_file", credential: "headers" },
    SecretOption { value: "password", file: "password_file", credential: "password" },
    // The URL of some receivers contains a key.
    SecretOption { value: "endpoint", file: "endpoint_file", credential: "endpoint" },
    SecretOption {
        value: "proxy_password",
        file: "proxy_password_file",
        credential: "proxy-password",
    },
];

/// Returns whether sinks of a type have an option, according to their sample.
pub(super) fn has_option(stage: &str, option: &str) -> bool {
    let mut stages = ai_agent_stage::registered().into_iter();
    let sink = stages.find(|it| it.kind == StageKind::Sink && it.name == stage);
    let sample = sink.and_then(|sink| sink.sample.parse::<toml::Table>().ok());
    sample.is_some_and(|sample| sample.contains_key(option))
}

/// Names of these options.
pub(super) const KEYS: [&str; 2] = ["start", "max_bytes_per_second"];

impl SinkSettings {
    /// Removes these options from a sink's table and returns them.
    ///
    /// # Errors
    /// The first option that is wrong; its path starts at the table.
    pub(super) fn extract(table: &mut Value) -> Result<Self, Box<figment::Error>> {
        let Value::Dict(tag, dict) = table else { return Ok(Self::default()) };
        let own: Dict =
            KEYS.into_iter().filter_map(|key| Some((key.to_owned(), dict.remove(key)?))).collect();
        let SinkTable { start, max_bytes_per_second } =
            SinkTable::deserialize(&Value::Dict(*tag, own)).map_err(Box::new)?;
        Ok(Self { start, max_bytes_per_second: max_bytes_per_second.map(|rate| rate.0) })
    }
}

/// Returns the JSON Schema of these options, by name.
pub(super) fn properties() -> serde_json::Value {
    let settings = SchemaSettings::draft2020_12().with(|it| it.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<SinkTable>().to_value();
    schema["properties"].take()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_in_sample_and_schema() {
        let sample: toml::Table = SINK_OPTIONS.parse().unwrap();
        let properties = properties();
        assert_eq!(properties.as_object().unwrap().len(), KEYS.len());
        for key in KEYS {
            assert!(sample.contains_key(key), "{key}");
            assert!(properties[key]["description"].is_string(), "{key}: {properties:#}");
            let at = SINK_OPTIONS.lines().position(|line| line.starts_with(key)).unwrap();
            assert!(SINK_OPTIONS.lines().nth(at - 1).unwrap().starts_with("## "), "{key}");
        }
    }
}
