//! Managed configuration, the response to `GET /config`.

mod audience;
mod wrong_values;

use std::time::SystemTime;

pub use audience::Audience;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use wrong_values::{STAGE_KINDS, TRANSCRIPT_WITHIN_SECONDS, WrongValue};

use crate::json;

/// Version of the format supported by this crate.
pub const VERSION: u64 = 1;
/// Maximum size of a managed configuration, in bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// Maximum number of values in a managed configuration, counted as its commas and opening brackets. A value
/// of six bytes can take 2 KiB of memory once it is parsed.
pub const MAX_VALUES: usize = 100_000;
/// Range of `shipping.batch_size`.
pub const BATCH_SIZE: std::ops::RangeInclusive<u64> = 1..=10_000;
/// Range of `shipping.flush_interval_seconds`.
pub const FLUSH_INTERVAL_SECONDS: std::ops::RangeInclusive<u64> = 0..=86_400;
/// Range of `audience.percentage`.
pub const PERCENTAGE: std::ops::RangeInclusive<u64> = 0..=100;

/// Configuration managed by the server. Every member is optional: an absent one leaves the local
/// value. Unknown members are ignored; known ones must have the right type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct ManagedConfig {
    /// Version of the format.
    pub version: u64,
    /// Name of the content; the default is its `ETag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Number of this release of the configuration. All configurations of an organisation share one
    /// sequence; a device that verifies them with the organisation's key refuses a lower number than
    /// the highest that it ever applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    /// Time of the release, RFC 3339 in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<String>,
    /// Time from which the configuration should have been replaced, RFC 3339 in UTC. It stays in
    /// force, with an alarm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Devices that the configuration is meant for; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<Audience>,
    /// Filters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Filters>,
    /// Timing of batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shipping: Option<Shipping>,
    /// Permitted accounts, and the reaction to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compliance: Option<Compliance>,
    /// Tables of filters and enrichers, as far as the machine's file permits them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stages: Option<serde_json::Value>,
    /// Tests of the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tests: Option<serde_json::Value>,
}

/// Settings of the filters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Filters {
    /// Values of `type` to drop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_types: Option<Vec<String>>,
    /// Drop records of sub-agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_sidechain: Option<bool>,
    /// Drop records marked as meta.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_meta: Option<bool>,
    /// Remove tool calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_tool_calls: Option<bool>,
}

/// Timing of batches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Shipping {
    /// Number of entries per batch, 1 to 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u64>,
    /// Maximum waiting time of an entry in seconds, 0 to 86,400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flush_interval_seconds: Option<u64>,
}

/// Permitted accounts, and the reaction to others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Compliance {
    /// Domains of e-mail addresses; `*.company.com` includes subdomains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permitted_email_domains: Option<Vec<String>>,
    /// Ids of organisations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permitted_org_ids: Option<Vec<String>>,
    /// Text shown at the start of a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banner: Option<String>,
    /// Reaction to a violation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// Text shown at a violation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub violation_message: Option<String>,
    /// Treat an API key or a cloud provider in place of an account as a violation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_account: Option<bool>,
    /// Response of a hook if the check itself fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnError>,
    /// Reaction to an account that cannot be determined, if a rule depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unknown: Option<OnUnknown>,
    /// Seconds within which the transcript of a session must appear, 1 to 604,800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcript_within_seconds: Option<u64>,
}

/// Reaction to a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Warn the user.
    Warn,
    /// Block each prompt.
    Block,
}

/// Response of a hook if the check itself fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// Allow the prompt.
    Allow,
    /// Block the prompt.
    Block,
}

/// Reaction to an account that cannot be determined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// Allow the prompt.
    #[default]
    Allow,
    /// Warn the user.
    Warn,
    /// Block each prompt.
    Block,
}

/// Reason why a managed configuration is refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum ManagedError {
    /// It is too large.
    #[error("the managed configuration is larger than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    /// It has too many values.
    #[error("the managed configuration has more than {MAX_VALUES} values")]
    TooManyValues,
    /// It is not a JSON object, or a required member is missing.
    #[error("the managed configuration cannot be read")]
    Json(#[from] serde_json::Error),
    /// A member has the wrong type.
    #[error("`{key}` of the managed configuration is wrong")]
    Member {
        /// The member.
        key: String,
        /// Error of the parser.
        #[source]
        source: serde_json::Error,
    },
    /// Its version is not supported.
    #[error("the managed configuration has version {0}, expected {VERSION}")]
    Version(u64),
    /// A time is not RFC 3339 in UTC.
    #[error("`{0}` of the managed configuration is not a time such as 2026-01-31T00:00:00Z")]
    Time(&'static str),
    /// A value is out of range.
    #[error("`{key}` of the managed configuration is {value}, expected {least} to {most}")]
    Range {
        /// The member.
        key: &'static str,
        /// The value.
        value: u64,
        /// Minimum.
        least: u64,
        /// Maximum.
        most: u64,
    },
}

impl ManagedConfig {
    /// Parses a configuration and checks its numbers and times; [`wrong_values`](Self::wrong_values)
    /// checks the other values.
    ///
    /// # Errors
    /// [`ManagedError`]: the caller refuses the whole configuration and keeps the one in force.
    ///
    /// ```
    /// use siem_protocol::ManagedConfig;
    /// let config = ManagedConfig::parse(br#"{"version":1,"shipping":{"batch_size":100}}"#)?;
    /// assert_eq!(config.shipping.unwrap().batch_size, Some(100));
    /// assert!(ManagedConfig::parse(br#"{"version":1,"shipping":{"batch_size":0}}"#).is_err());
    /// # Ok::<(), siem_protocol::ManagedError>(())
    /// ```
    pub fn parse(body: &[u8]) -> Result<Self, ManagedError> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        if body.len() > MAX_BYTES {
            return Err(ManagedError::TooLarge);
        }
        if count_values(body) > MAX_VALUES {
            return Err(ManagedError::TooManyValues);
        }
        let Version { version } = read(body)?;
        if version != VERSION {
            return Err(ManagedError::Version(version));
        }
        check_objects(body)?;
        let config: Self = read(body)?;
        let shipping = config.shipping.clone().unwrap_or_default();
        let ranges = [
            ("shipping.batch_size", shipping.batch_size, BATCH_SIZE),
            (
                "shipping.flush_interval_seconds",
                shipping.flush_interval_seconds,
                FLUSH_INTERVAL_SECONDS,
            ),
            (
                "audience.percentage",
                config.audience.as_ref().and_then(|audience| audience.percentage),
                PERCENTAGE,
            ),
        ];
        for (key, value, range) in ranges {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                let (least, most) = (*range.start(), *range.end());
                return Err(ManagedError::Range { key, value, least, most });
            }
        }
        for (key, time) in [("issued", &config.issued), ("expires", &config.expires)] {
            if time.as_ref().is_some_and(|time| humantime::parse_rfc3339(time).is_err()) {
                return Err(ManagedError::Time(key));
            }
        }
        Ok(config)
    }

    /// Reports whether the configuration should have been replaced before `now`.
    #[must_use]
    pub fn is_expired(&self, now: SystemTime) -> bool {
        let expires = self.expires.as_deref().map(humantime::parse_rfc3339);
        expires.is_some_and(|expires| expires.is_ok_and(|expires| expires <= now))
    }
}

/// Deserializes `body`; errors name the member that is wrong.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ManagedError> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(ManagedError::Json(no_object()));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let key = error.path().to_string();
        let source = error.into_inner();
        if key == "." { ManagedError::Json(source) } else { ManagedError::Member { key, source } }
    })?;
    json.end()?;
    Ok(value)
}

/// Counts the commas and opening brackets outside of strings: not less than the values, without the first
/// of each list and object.
fn count_values(body: &[u8]) -> usize {
    let (mut count, mut in_string, mut is_escaped) = (0, false, false);
    for byte in body {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_string,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

/// Members that are objects.
const SECTIONS: [&str; 4] = ["filters", "shipping", "compliance", "audience"];

/// Rejects sections that are arrays: serde reads an array as a struct, member by member.
fn check_objects(body: &[u8]) -> Result<(), ManagedError> {
    let Ok(text) = std::str::from_utf8(body) else { return Ok(()) };
    let mut wrong = None;
    json::members(text, |member| {
        let section = SECTIONS.into_iter().find(|it| member.is(it));
        if member.value.starts_with('[') {
            wrong = wrong.or(section);
        }
    });
    match wrong {
        Some(key) => Err(ManagedError::Member { key: key.to_owned(), source: no_object() }),
        None => Ok(()),
    }
}

fn no_object() -> serde_json::Error {
    serde::de::Error::custom("expected an object")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_value_rejects_the_whole_config() {
        let wrong = [
            "",
            "[]",
            "{}",
            r#"{"version":2}"#,
            r#"{"version":"1"}"#,
            r#"{"version":1,"filters":{"drop_meta":"yes"}}"#,
            r#"{"version":1,"shipping":{"batch_size":10001}}"#,
            r#"{"version":1,"shipping":{"flush_interval_seconds":86401}}"#,
            r#"{"version":1,"compliance":{"action":"shout"}}"#,
            r#"{"version":1,"serial":-1}"#,
            r#"{"version":1,"issued":"yesterday"}"#,
            r#"{"version":1,"expires":"2026-01-31"}"#,
            r#"{"version":1,"audience":{"percentage":101}}"#,
            r#"{"version":1,"audience":{"tenants":["a"]}}"#,
        ];
        for text in wrong {
            assert!(ManagedConfig::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    /// 4 MiB of small objects took 2.4 GiB of memory.
    #[test]
    fn config_with_too_many_values_is_refused_before_it_is_parsed() {
        let config = |count: usize, text: &str| {
            let list = vec![text; count].join(",");
            ManagedConfig::parse(format!(r#"{{"version":1,"x":[{list}]}}"#).as_bytes())
        };
        assert!(config(MAX_VALUES - 3, "0").is_ok());
        assert!(matches!(config(MAX_VALUES, "0"), Err(ManagedError::TooManyValues)));
        assert!(matches!(config(MAX_VALUES / 2, r#"{"":0}"#), Err(ManagedError::TooManyValues)));
        // What is in strings does not count.
        assert!(config(10, &format!(r#""\"{}""#, "[,{".repeat(MAX_VALUES / 4))).is_ok());
    }

    /// Serde reads an array as a struct, member by member: `[1]` was once a valid configuration.
    #[test]
    fn array_is_not_an_object() {
        let sections = [
            r#""filters":[["a"],true]"#,
            r#""ship\u0070ing":[7]"#,
            r#""compliance":[["a"]]"#,
            r#""audience":[["a"]]"#,
        ];
        let sections = sections.map(|section| format!("{{\"version\":1,{section}}}"));
        for text in ["[1]", r#"[1,"r",{}]"#].into_iter().chain(sections.iter().map(|s| &**s)) {
            assert!(ManagedConfig::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn error_names_the_member() {
        for (text, key) in [
            (r#"{"version":"1"}"#, "`version`"),
            (r#"{"version":1,"filters":[]}"#, "`filters`"),
            (r#"{"version":1,"filters":{"drop_meta":"yes"}}"#, "`filters.drop_meta`"),
            (r#"{"version":1,"filters":{"ignore_types":["a",1]}}"#, "`filters.ignore_types[1]`"),
            (r#"{"version":1,"compliance":{"action":"shout"}}"#, "`compliance.action`"),
        ] {
            let message = ManagedConfig::parse(text.as_bytes()).unwrap_err().to_string();
            assert_eq!(message, format!("{key} of the managed configuration is wrong"), "{text}");
        }
    }

    #[test]
    fn unknown_members_are_ignored() {
        let config = ManagedConfig::parse(br#"{"version":1,"new":[1]}"#).unwrap();
        assert_eq!(config, ManagedConfig { version: 1, ..ManagedConfig::default() });
    }

    #[test]
    fn expiry_is_compared_with_the_clock() {
        let text = br#"{"version":1,"serial":7,"expires":"2026-01-31T00:00:00Z"}"#;
        let config = ManagedConfig::parse(text).unwrap();
        let at = |time| humantime::parse_rfc3339(time).unwrap();
        assert!(!config.is_expired(at("2026-01-30T23:59:59Z")));
        assert!(config.is_expired(at("2026-01-31T00:00:00Z")));
        assert!(!ManagedConfig::default().is_expired(at("2026-01-31T00:00:00Z")));
    }
}
