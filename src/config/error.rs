//! What is wrong with a configuration, where, and what would be right.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use figment::error::{Actual, Kind};

use super::{LayerOrigin, Location, SyntaxError, secret};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file is there and can't be read, or is not there and must be.
    #[error("cannot read {origin}")]
    Read {
        /// The file.
        origin: LayerOrigin,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file is no TOML.
    #[error("{origin} is no TOML: {syntax}")]
    Syntax {
        /// The file.
        origin: LayerOrigin,
        /// Where and why.
        syntax: SyntaxError,
    },
    /// A key that nothing reads.
    #[error("unknown key `{key}` in {location}: {hint}")]
    UnknownKey {
        /// The key.
        key: String,
        /// Where it stands.
        location: Location,
        /// What would be right.
        hint: String,
    },
    /// A key that must be there.
    #[error("`{key}` is missing: add it under `[{table}]`")]
    MissingKey {
        /// The key.
        key: String,
        /// The table that it belongs in.
        table: String,
    },
    /// A value that is wrong; `problem` says what would be right.
    #[error("`{key}` in {location} {problem}")]
    Value {
        /// The key.
        key: String,
        /// Where the value stands.
        location: Location,
        /// What is wrong, as a predicate.
        problem: String,
    },
    /// What a sink can't do without.
    #[error(transparent)]
    Incomplete(MissingSettings),
}

/// All that must be given before anything can be delivered, and every way to give it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct MissingSettings {
    pub(super) missing: Vec<MissingSetting>,
    pub(super) files: Vec<PathBuf>,
}

/// One setting that a sink can't do without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MissingSetting {
    pub(super) sink: String,
    pub(super) what: &'static str,
    pub(super) variable: Option<&'static str>,
    pub(super) credential: Option<String>,
    pub(super) keys: &'static [&'static str],
}

impl fmt::Display for MissingSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut what = self.missing.iter().map(|missing| missing.what).collect::<Vec<_>>();
        // Two sinks may lack the same.
        what.sort_unstable();
        what.dedup();
        write!(f, "cannot deliver without {}", in_words(&what, "and"))?;
        for MissingSetting { sink, what, variable, credential, keys } in &self.missing {
            write!(f, "\n  {what}: ")?;
            if let Some(variable) = variable {
                write!(f, "set {variable}, or ")?;
            }
            if let Some(credential) = credential {
                write!(f, "pass the systemd credential `{credential}`, or ")?;
            }
            let keys = keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>();
            write!(f, "give {} under `[sink.{sink}]`", in_words(&keys, "or"))?;
        }
        let files = self.files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        write!(f, "\nconfiguration file: {}", in_words(&files, "or"))
    }
}

/// `a, b and c`.
fn in_words(items: &[impl AsRef<str>], conjunction: &str) -> String {
    let items = items.iter().map(AsRef::as_ref).collect::<Vec<_>>();
    match items.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} {conjunction} {last}", most.join(", ")),
    }
}

/// A key as a person writes it: `filter.ignore-types.types[1]`.
pub(super) fn key_text(path: &[impl AsRef<str>]) -> String {
    let mut text = String::new();
    for part in path.iter().map(AsRef::as_ref) {
        if part.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
            text += &format!("[{part}]");
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            text += part;
        }
    }
    text
}

/// Makes a [`ConfigError`] of what reading the value at `path`, which stands in `location`, led to. `found` is
/// that value, if it is a text: where the key's name is a secret's, it is taken out.
pub(super) fn explain(
    path: &[String],
    location: Location,
    found: Option<&str>,
    kind: Kind,
) -> ConfigError {
    explain_of(path, location, found, kind, &[])
}

/// As [`explain`]; where a key is unknown, `besides` are right there too.
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
            format!("is wrong, expected {}", one_of(expected))
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
            format!("is wrong: {text}")
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

/// The one of `known` that is nearest to `found`, if it is near enough to be meant.
#[must_use]
pub fn did_you_mean<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |name: &&str| strsim::damerau_levenshtein(found, name);
    let nearest = known.iter().copied().min_by_key(distance)?;
    let near = distance(&nearest) <= (found.chars().count() / 3).max(1);
    near.then_some(nearest)
}

/// The value itself, shortened.
fn describe(actual: &Actual) -> String {
    match actual {
        Actual::Bool(value) => format!("`{value}`"),
        Actual::Unsigned(value) => format!("the number {value}"),
        Actual::Signed(value) => format!("the number {value}"),
        Actual::Float(value) => format!("the number {value}"),
        Actual::Str(text) if text.chars().count() > 60 => {
            let start = text.chars().take(60).collect::<String>();
            format!("the text {:?}", start + "…")
        }
        Actual::Str(text) => format!("the text {text:?}"),
        other => type_of(other).to_owned(),
    }
}

/// The type of a value, without the value.
fn type_of(actual: &Actual) -> &'static str {
    match actual {
        Actual::Bool(_) => "a boolean",
        Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_) => "a number",
        Actual::Str(_) | Actual::Char(_) => "a text",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "something else",
    }
}

/// What serde expects, in the words of a configuration file.
fn in_plain_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "`true` or `false`",
        "a string" => "a text in quotes",
        "path string" => "a path in quotes",
        "a sequence" => "a list in brackets",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        // One of a few words.
        other if other.starts_with("enum ") => "a text in quotes",
        other => other,
    }
}

/// The files that a person would write a setting in.
pub(super) fn files(explicit: Option<&Path>, user: &Path, machine: &Path) -> Vec<PathBuf> {
    explicit.into_iter().chain([user, machine]).map(Path::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_what_is_near() {
        let known = ["batch_size", "flush_interval", "max_batch_bytes"];
        assert_eq!(did_you_mean("bach_size", &known), Some("batch_size"));
        assert_eq!(did_you_mean("flush-interval", &known), Some("flush_interval"));
        assert_eq!(did_you_mean("colour", &known), None);
        assert_eq!(did_you_mean("x", &[]), None);
    }

    #[test]
    fn writes_keys_as_a_person_does() {
        assert_eq!(key_text(&["filter", "x", "types", "1"]), "filter.x.types[1]");
        assert_eq!(key_text(&["a"]), "a");
    }

    #[test]
    fn counts_in_words() {
        assert_eq!(in_words(&["a"], "and"), "a");
        assert_eq!(in_words(&["a", "b", "c"], "and"), "a, b and c");
    }
}
