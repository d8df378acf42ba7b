//! The options of one stage, before the stage has read them.

use std::{fmt, path::PathBuf};

use figment::value::{Dict, Value};
use serde::de::DeserializeOwned;

use super::{secret, toml_text};

/// What a stage's table says besides `type` and `enabled`. `Debug` prints no values.
#[derive(Clone, PartialEq)]
pub struct StageOptions(pub(super) Value);

impl StageOptions {
    /// Reads the options as `T`.
    ///
    /// # Errors
    /// The first option that is unknown, missing or wrong. It names the key below the table only:
    /// [`Loaded::explain`](super::Loaded::explain) makes of it what a person needs.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Box<figment::Error>> {
        T::deserialize(&self.0).map_err(Box::new)
    }

    /// Reads options as they stand below a stage's table, for tests.
    ///
    /// # Errors
    /// `text` is no TOML.
    ///
    /// ```
    /// use ai_agent::config::StageOptions;
    /// use std::collections::BTreeMap;
    /// let options = StageOptions::from_toml(r#"types = ["progress"]"#)?;
    /// let options: BTreeMap<String, Vec<String>> = options.parse()?;
    /// assert_eq!(options["types"], ["progress"]);
    /// # Ok::<(), Box<figment::Error>>(())
    /// ```
    pub fn from_toml(text: &str) -> Result<Self, Box<figment::Error>> {
        let parsed = toml_text::parse(text)
            .map_err(|wrong| Box::new(figment::Error::from(wrong.to_string())))?;
        Ok(Self::from_table(parsed.values))
    }

    /// The options in a stage's table.
    pub(super) fn from_table(table: Dict) -> Self {
        Self::tagged(Value::from(table))
    }

    /// The options in a stage's table; `table` keeps its tags.
    pub(super) fn tagged(mut table: Value) -> Self {
        if let Value::Dict(_, dict) = &mut table {
            dict.remove("type");
            dict.remove("enabled");
        }
        Self(table)
    }

    /// The value of one option.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.as_dict()?.get(key)
    }

    /// The files that options name, of those that end in `_file`.
    pub fn files(&self) -> Vec<PathBuf> {
        let options = self.0.as_dict().into_iter().flatten();
        let named = options.filter(|(key, _)| key.ends_with("_file"));
        named.filter_map(|(_, value)| value.as_str().map(PathBuf::from)).collect()
    }

    /// Takes one option away.
    pub(super) fn remove(&mut self, key: &str) {
        if let Value::Dict(_, dict) = &mut self.0 {
            dict.remove(key);
        }
    }

    /// All options, with `***` for secrets.
    #[must_use]
    pub fn masked(&self) -> Value {
        masked(&self.0)
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

impl fmt::Debug for StageOptions {
    /// Prints keys only: under a misspelt key a secret is not known for one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.as_dict().into_iter().flat_map(Dict::keys)).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[test]
    fn leaves_type_and_enabled_to_the_pipeline() {
        #[derive(Debug, Deserialize, PartialEq)]
        #[serde(deny_unknown_fields)]
        struct Options {
            size: u64,
        }
        let options = StageOptions::from_toml("type = \"x\"\nenabled = true\nsize = 3").unwrap();
        assert_eq!(options.parse::<Options>().unwrap(), Options { size: 3 });
    }

    #[test]
    fn masks_secrets_at_any_depth() {
        let text = "token = \"s3cr3t\"\nlist = [{ password = \"s3cr3t\" }]\nurl = \"u\"";
        let options = StageOptions::from_toml(text).unwrap();
        let masked = serde_json::to_string(&options.masked()).unwrap();
        assert_eq!(masked, r#"{"list":[{"password":"***"}],"token":"***","url":"u"}"#);
    }

    #[test]
    fn prints_no_values() {
        let options = StageOptions::from_toml("tokn = \"s3cr3t\"\nurl = \"u\"").unwrap();
        assert_eq!(format!("{options:?}"), r#"{"tokn", "url"}"#);
    }

    #[test]
    fn says_where_the_text_is_no_toml() {
        let error = StageOptions::from_toml("a = 1\nb = ").unwrap_err().to_string();
        assert!(error.starts_with("line 2, column 5: "), "{error}");
    }
}
