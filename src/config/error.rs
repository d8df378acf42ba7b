//! Configuration errors: problem, location, and accepted values.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

pub use ai_agent_stage::did_you_mean;
use figment::error::{Actual, Kind};

use super::{
    key::key_text,
    origin::{LayerOrigin, Location},
    secret,
};
use config_text::toml_text::SyntaxError;

/// Reason why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read, or a required file does not exist.
    #[error("cannot read {origin}")]
    Read {
        /// File that cannot be read.
        origin: LayerOrigin,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
    /// A file is not valid TOML.
    #[error("{origin} is not valid TOML: {syntax}")]
    Syntax {
        /// File that cannot be parsed.
        origin: LayerOrigin,
        /// Position and reason.
        syntax: SyntaxError,
    },
    /// A key that no option reads.
    #[error("unknown key `{key}` in {location}: {hint}")]
    UnknownKey {
        /// Dotted key.
        key: String,
        /// Layer and line of the key.
        location: Location,
        /// Suggestion, or the keys that are accepted.
        hint: String,
    },
    /// A required key is missing.
    #[error("`{key}` is missing: add it under `[{table}]`")]
    MissingKey {
        /// Dotted key.
        key: String,
        /// Table that the key belongs to.
        table: String,
    },
    /// An invalid value; `problem` describes the accepted values.
    #[error("`{key}` in {location} {problem}")]
    Value {
        /// Dotted key.
        key: String,
        /// Layer and line of the value.
        location: Location,
        /// Predicate that describes the error.
        problem: String,
    },
    /// Required settings of a sink are missing.
    #[error(transparent)]
    Incomplete(MissingSettings),
}

/// Settings that are required for delivery and missing, with every way to set each of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct MissingSettings {
    pub(super) missing: Vec<MissingSetting>,
    pub(super) files: Vec<PathBuf>,
}

/// Setting that a sink requires. Its `Display` lists every way to set it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingSetting {
    pub(super) sink: String,
    pub(super) what: &'static str,
    pub(super) variable: Option<&'static str>,
    pub(super) credential: Option<String>,
    pub(super) keys: &'static [&'static str],
}

impl fmt::Display for MissingSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut what = self.missing.iter().map(|missing| missing.what).collect::<Vec<_>>();
        // Several sinks may lack the same setting.
        what.sort_unstable();
        what.dedup();
        write!(f, "cannot deliver without {}", in_words(&what, "and"))?;
        for missing in &self.missing {
            write!(f, "\n  {missing}")?;
        }
        let files = self.files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        write!(f, "\nconfiguration files: {}", in_words(&files, "or"))
    }
}

impl MissingSettings {
    /// Returns the settings.
    pub fn settings(&self) -> impl Iterator<Item = &MissingSetting> {
        self.missing.iter()
    }
}

impl MissingSetting {
    /// Returns the dotted key that sets it.
    #[must_use]
    pub fn key(&self) -> String {
        format!("sink.{}.{}", self.sink, self.keys[0])
    }
}

impl fmt::Display for MissingSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sink, what, variable, credential, keys } = self;
        write!(f, "{what}: ")?;
        if let Some(variable) = variable {
            write!(f, "set {variable}, or ")?;
        }
        if let Some(credential) = credential {
            write!(f, "pass the systemd credential `{credential}`, or ")?;
        }
        let keys = keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>();
        write!(f, "set {} under `[sink.{sink}]`", in_words(&keys, "or"))
    }
}

/// Joins items as in `a, b and c`.
fn in_words(items: &[impl AsRef<str>], conjunction: &str) -> String {
    let items = items.iter().map(AsRef::as_ref).collect::<Vec<_>>();
    match items.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} {conjunction} {last}", most.join(", ")),
    }
}

/// Converts an error of deserializing the value at `path` into a [`ConfigError`].
///
/// `found` is that value if it is a string: it is masked in the message if the key names a secret.
pub(super) fn explain(
    path: &[String],
    location: Location,
    found: Option<&str>,
    kind: Kind,
) -> ConfigError {
    explain_of(path, location, found, kind, &[])
}

/// Same as [`explain`]; an unknown key may also be one of `besides`.
pub(super) fn explain_of(
    path: &[String],
    location: Location,
    found: Option<&str>,
    kind: Kind,
    besides: &[&str],
) -> ConfigError {
    let key = key_text(path);
    let is_secret = path.iter().any(|part| secret::is_secret_key(part));
    let is = |actual: &Actual, expected: &str| {
        let found = if is_secret { type_of(actual).to_owned() } else { describe(actual) };
        format!("is {found}, expected {}", in_plain_words(expected))
    };
    let problem = match kind {
        Kind::UnknownField(field, expected) => {
            let known = [expected, besides].concat();
            return ConfigError::UnknownKey { key, location, hint: hint(&field, &known) };
        }
        Kind::MissingField(field) => {
            let table = key;
            return ConfigError::MissingKey { key: format!("{table}.{field}"), table };
        }
        Kind::UnknownVariant(_, expected) if is_secret => {
            format!("is invalid, expected {}", one_of(expected))
        }
        Kind::UnknownVariant(found, expected) => {
            let near = did_you_mean(&found, expected)
                .map_or(String::new(), |near| format!(": did you mean `{near}`?"));
            format!("is {found:?}, expected {}{near}", one_of(expected))
        }
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            is(&actual, &expected)
        }
        Kind::InvalidLength(length, expected) => {
            format!("has {length} items, expected {expected}")
        }
        other => {
            let text = other.to_string();
            let text = match found {
                Some(found) if is_secret && !found.trim().is_empty() => {
                    text.replace(found.trim(), secret::MASK)
                }
                _ => text,
            };
            format!("is invalid: {text}")
        }
    };
    ConfigError::Value { key, location, problem }
}

fn hint(field: &str, expected: &[&str]) -> String {
    match did_you_mean(field, expected) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("expected {}", one_of(expected)),
    }
}

fn one_of(expected: &[&str]) -> String {
    let quoted = expected.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
    in_words(&quoted, "or")
}

/// Describes a value without its key, shortened.
fn describe(actual: &Actual) -> String {
    match actual {
        Actual::Bool(value) => format!("`{value}`"),
        Actual::Unsigned(value) => format!("the number {value}"),
        Actual::Signed(value) => format!("the number {value}"),
        Actual::Float(value) => format!("the number {value}"),
        Actual::Str(text) if text.chars().count() > 60 => {
            let start = text.chars().take(60).collect::<String>();
            format!("the string {:?}", start + "…")
        }
        Actual::Str(text) => format!("the string {text:?}"),
        other => type_of(other).to_owned(),
    }
}

/// Describes a value by its type only.
fn type_of(actual: &Actual) -> &'static str {
    match actual {
        Actual::Bool(_) => "a boolean",
        Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_) => "a number",
        Actual::Str(_) | Actual::Char(_) => "a string",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "a value of another type",
    }
}

/// Translates what serde expects into the terms of a configuration file.
fn in_plain_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "`true` or `false`",
        "a string" => "a string in quotes",
        "path string" => "a path in quotes",
        "a sequence" => "a list in brackets",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        // The value of an enum is one of several strings.
        other if other.starts_with("enum ") => "a string in quotes",
        other => other,
    }
}

/// Returns the files in which a setting can be written.
pub(super) fn config_files(explicit: Option<&Path>, user: &Path, machine: &Path) -> Vec<PathBuf> {
    explicit.into_iter().chain([user, machine]).map(Path::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_words_joins_with_commas_and_a_conjunction() {
        assert_eq!(in_words(&["a"], "and"), "a");
        assert_eq!(in_words(&["a", "b", "c"], "and"), "a, b and c");
    }
}
