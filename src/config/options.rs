//! Table of one stage in a configuration; its values keep their origin.

use std::{fmt, path::PathBuf};

use ai_agent_stage::StageOptions;
use figment::value::{Dict, Value};
use serde::Deserialize as _;

use super::secret;
#[cfg(test)]
use config_text::toml_text;

/// Table of a stage without `type`, `enabled` and the keys that the pipeline reads itself. `Debug`
/// prints no values.
#[derive(Clone, PartialEq)]
pub struct OptionTable(pub(super) Value);

impl OptionTable {
    /// Returns the options in the form in which the stage deserializes them.
    #[must_use]
    pub fn to_options(&self) -> StageOptions {
        StageOptions::deserialize(&self.0).expect("a table of a configuration has values only")
    }

    /// Parses a table, for tests.
    #[cfg(test)]
    pub(crate) fn from_toml(text: &str) -> Self {
        Self::from_table(toml_text::parse(text).unwrap().values)
    }

    /// Creates the options from a stage's table.
    #[cfg(test)]
    pub(super) fn from_table(table: Dict) -> Self {
        Self::tagged(Value::from(table))
    }

    /// Creates the options from a stage's table; `table` keeps its origin tags.
    pub(super) fn tagged(mut table: Value) -> Self {
        if let Value::Dict(_, dict) = &mut table {
            dict.remove("type");
            dict.remove("enabled");
        }
        Self(table)
    }

    /// Returns the value of one option.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.as_dict()?.get(key)
    }

    /// Returns the paths of the options that end in `_file`.
    pub fn files(&self) -> Vec<PathBuf> {
        let options = self.0.as_dict().into_iter().flatten();
        let named = options.filter(|(key, _)| key.ends_with("_file"));
        named.filter_map(|(_, value)| value.as_str().map(PathBuf::from)).collect()
    }

    /// Returns the options that are texts, with their keys.
    pub(super) fn texts(&self) -> Vec<(&str, &str)> {
        let options = self.0.as_dict().into_iter().flatten();
        options.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect()
    }

    /// Sets one option to a text.
    pub(super) fn set(&mut self, key: &str, text: &str) {
        if let Value::Dict(_, dict) = &mut self.0 {
            dict.insert(key.to_owned(), text.into());
        }
    }

    /// Removes one option.
    pub(super) fn remove(&mut self, key: &str) {
        if let Value::Dict(_, dict) = &mut self.0 {
            dict.remove(key);
        }
    }
}

pub(super) fn masked(value: &Value) -> Value {
    match value {
        Value::Dict(tag, dict) => {
            let entries = dict.iter().map(|(key, value)| {
                let masked =
                    if secret::is_secret_key(key) { secret::MASK.into() } else { masked(value) };
                (key.clone(), masked)
            });
            Value::Dict(*tag, entries.collect())
        }
        Value::Array(tag, items) => Value::Array(*tag, items.iter().map(masked).collect()),
        other => other.clone(),
    }
}

impl fmt::Debug for OptionTable {
    /// Prints keys only: a secret under a misspelt key cannot be recognized.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.as_dict().into_iter().flat_map(Dict::keys)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_hides_secrets_at_any_depth() {
        let text = "token = \"s3cr3t\"\nlist = [{ password = \"s3cr3t\" }]\nurl = \"u\"";
        let masked = serde_json::to_string(&masked(&OptionTable::from_toml(text).0)).unwrap();
        assert_eq!(masked, r#"{"list":[{"password":"***"}],"token":"***","url":"u"}"#);
    }

    #[test]
    fn debug_prints_no_values() {
        let options = OptionTable::from_toml("tokn = \"s3cr3t\"\nurl = \"u\"");
        assert_eq!(format!("{options:?}"), r#"{"tokn", "url"}"#);
    }
}
