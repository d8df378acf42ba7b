//! The managed configuration that `GET /config` gives.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::json;

/// The version of the format that this crate reads.
pub const VERSION: u64 = 1;
/// The most bytes that a managed configuration may have.
pub const MAX_BYTES: usize = 4 << 20;
/// What `shipping.batch_size` may be.
pub const BATCH_SIZE: std::ops::RangeInclusive<u64> = 1..=10_000;
/// What `shipping.flush_interval_seconds` may be.
pub const FLUSH_INTERVAL_SECONDS: std::ops::RangeInclusive<u64> = 0..=86_400;

/// What the server manages. Every member is optional: what is absent leaves the local value.
/// Members not named here are ignored, those named here must be of their type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct ManagedConfig {
    /// Version of the format.
    pub version: u64,
    /// Names the content; else its `ETag` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What is filtered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Filters>,
    /// When batches are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shipping: Option<Shipping>,
    /// Who may be signed in, and what happens otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compliance: Option<Compliance>,
    /// Tables of filters and enrichers, for what the machine's file allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stages: Option<serde_json::Value>,
    /// Tests that the configuration carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tests: Option<serde_json::Value>,
}

/// What is filtered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Filters {
    /// Values of `type` to drop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_types: Option<Vec<String>>,
    /// Whether records of sub-agents are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_sidechain: Option<bool>,
    /// Whether records marked as meta are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_meta: Option<bool>,
    /// Whether calls of tools are cut out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_tool_calls: Option<bool>,
}

/// When batches are sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Shipping {
    /// How many entries make a batch, 1 to 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u64>,
    /// How many seconds an entry may wait, 0 to 86,400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flush_interval_seconds: Option<u64>,
}

/// Who may be signed in, and what happens otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Compliance {
    /// Domains of e-mail addresses; `*.company.com` covers subdomains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permitted_email_domains: Option<Vec<String>>,
    /// Organisations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permitted_org_ids: Option<Vec<String>>,
    /// Shown when a session begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banner: Option<String>,
    /// What is done about a violation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// Shown at a violation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub violation_message: Option<String>,
    /// Whether a key or cloud provider in place of an account is a violation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_account: Option<bool>,
    /// What a hook answers when the check itself fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnError>,
    /// How soon a session's transcript must appear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcript_within_seconds: Option<u64>,
}

/// What is done about a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Tell the user.
    Warn,
    /// Block each prompt.
    Block,
}

/// What a hook answers when the check itself fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// Let the prompt through.
    Allow,
    /// Block the prompt.
    Block,
}

/// Why a managed configuration is refused whole.
#[derive(Debug, thiserror::Error)]
pub enum ManagedError {
    /// It is larger than any that was meant.
    #[error("the managed configuration is larger than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    /// It is no JSON object, or a member that must be there is not.
    #[error("the managed configuration cannot be read")]
    Json(#[from] serde_json::Error),
    /// A member has the wrong type.
    #[error("`{key}` of the managed configuration is wrong")]
    Member {
        /// The member.
        key: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Its version is not known.
    #[error("the managed configuration has version {0}, this agent reads {VERSION}")]
    Version(u64),
    /// A value is out of range.
    #[error("`{key}` of the managed configuration is {value}, expected {least} to {most}")]
    Range {
        /// The member.
        key: &'static str,
        /// What stands there.
        value: u64,
        /// The least that may.
        least: u64,
        /// The most that may.
        most: u64,
    },
}

impl ManagedConfig {
    /// Reads a configuration and checks its ranges.
    ///
    /// # Errors
    /// [`ManagedError`]: the caller refuses the whole and keeps what is in force.
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
        ];
        for (key, value, range) in ranges {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                let (least, most) = (*range.start(), *range.end());
                return Err(ManagedError::Range { key, value, least, most });
            }
        }
        Ok(config)
    }
}

/// Reads `body`, and names the member that is wrong.
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

/// Refuses sections that are arrays: serde takes one for a struct, member by member.
fn check_objects(body: &[u8]) -> Result<(), ManagedError> {
    let Ok(text) = std::str::from_utf8(body) else { return Ok(()) };
    let mut wrong = None;
    json::members(text, |member| {
        let section = ["filters", "shipping", "compliance"].into_iter().find(|it| member.is(it));
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
    fn refuses_the_whole_for_one_wrong_value() {
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
        ];
        for text in wrong {
            assert!(ManagedConfig::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    /// Serde takes an array for a struct, member by member: `[1]` was a configuration once.
    #[test]
    fn an_array_is_no_object() {
        let sections =
            [r#""filters":[["a"],true]"#, r#""ship\u0070ing":[7]"#, r#""compliance":[["a"]]"#];
        let sections = sections.map(|section| format!("{{\"version\":1,{section}}}"));
        for text in ["[1]", r#"[1,"r",{}]"#].into_iter().chain(sections.iter().map(|s| &**s)) {
            assert!(ManagedConfig::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_names_the_member() {
        for (text, key) in [
            (r#"{"version":"1"}"#, "`version`"),
            (r#"{"version":1,"filters":[]}"#, "`filters`"),
            (r#"{"version":1,"filters":{"drop_meta":"yes"}}"#, "`filters.drop_meta`"),
            (r#"{"version":1,"filters":{"ignore_types":["a",1]}}"#, "`filters.ignore_types[1]`"),
            (r#"{"version":1,"compliance":{"action":"shout"}}"#, "`compliance.action`"),
        ] {
            let said = ManagedConfig::parse(text.as_bytes()).unwrap_err().to_string();
            assert_eq!(said, format!("{key} of the managed configuration is wrong"), "{text}");
        }
    }

    #[test]
    fn ignores_what_it_does_not_know() {
        let config = ManagedConfig::parse(br#"{"version":1,"new":[1]}"#).unwrap();
        assert_eq!(config, ManagedConfig { version: 1, ..ManagedConfig::default() });
    }
}
