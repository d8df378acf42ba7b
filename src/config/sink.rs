//! What the table of every sink may say, whatever its type.

use figment::value::{Dict, Value};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde::Deserialize;

use super::{ConfigError, merged::Merged};
use crate::units::Size;

/// These options as they stand in a table, each with a comment.
pub const SINK_OPTIONS: &str = r#"
## Where the sink begins that is new to the outbox: with the "oldest" entry that waits there, or
## "now", with what comes from then on. One that the outbox knows goes on where it was.
start = "oldest"
## The most that is sent in a second, on average: a batch goes at once, and the next one waits.
## At least 1 KiB. By default nothing is held back.
max_bytes_per_second = "1 MiB"
"#;

/// How a sink is fed, whatever its type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkSettings {
    /// Where it begins when it is new to the outbox.
    pub start: Start,
    /// How many bytes it may send in a second, on average; `None` for any number.
    pub max_bytes_per_second: Option<u64>,
}

/// Where a sink begins that is new to the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// With the oldest entry that waits there.
    #[default]
    Oldest,
    /// With what comes from then on.
    Now,
}

/// The options as they stand in a sink's table.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct FeedTable {
    /// Where the sink begins that is new to the outbox: with the "oldest" entry that waits there, or
    /// "now", with what comes from then on.
    start: Start,
    /// The most that is sent in a second, on average; at least 1 KiB.
    max_bytes_per_second: Option<Size>,
}

/// The names of these options.
pub(super) const KEYS: [&str; 2] = ["start", "max_bytes_per_second"];

impl SinkSettings {
    /// Takes what is said of it out of the table of the sink `name`.
    pub(super) fn take(
        name: &str,
        table: &mut Value,
        merged: &Merged,
    ) -> Result<Self, ConfigError> {
        let Value::Dict(tag, dict) = table else { return Ok(Self::default()) };
        let own: Dict =
            KEYS.into_iter().filter_map(|key| Some((key.to_owned(), dict.remove(key)?))).collect();
        let read = FeedTable::deserialize(&Value::Dict(*tag, own));
        let read = read.map_err(|error| merged.explain_error(&["sink", name], error))?;
        let rate = read.max_bytes_per_second;
        if let Some(rate) = rate.filter(|rate| rate.0 < 1 << 10) {
            let problem = format!("is {rate}, must be at least 1 KiB; leave it out for no limit");
            return Err(merged.value_error(&format!("sink.{name}.max_bytes_per_second"), problem));
        }
        Ok(Self { start: read.start, max_bytes_per_second: rate.map(|rate| rate.0) })
    }
}

/// JSON Schema of these options, by their names.
pub(super) fn properties() -> serde_json::Value {
    let settings = SchemaSettings::draft2020_12().with(|it| it.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<FeedTable>().to_value();
    schema["properties"].take()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_a_name_a_comment_and_a_description() {
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
