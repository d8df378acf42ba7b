//! Errors and warnings about a configuration: key, location, and what to write instead.

use std::fmt;

use figment::error::{Actual, Kind};
use serde_json::{Value, json};

use super::ValueLocation;

/// A problem of a configuration. Its `Display` names the key, where it is set, what is wrong, and how to
/// fix it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Stable name of the kind of problem.
    pub code: &'static str,
    /// Dotted key.
    pub key: Option<String>,
    /// Location of the value.
    pub location: Option<ValueLocation>,
    /// Whole message.
    pub message: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl ConfigProblem {
    /// Creates a problem of a value; `problem` is a predicate that says what is wrong, and how to fix it.
    pub(super) fn of_value(
        code: &'static str,
        key: String,
        location: ValueLocation,
        problem: &str,
    ) -> Self {
        let message = format!("`{key}` in {location} {problem}");
        Self { code, key: Some(key), location: Some(location), message }
    }

    /// Returns the problem as an object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut problem = json!({ "code": self.code, "key": self.key, "message": self.message });
        let location = self.location.as_ref().map(ValueLocation::to_json);
        if let (Value::Object(problem), Some(Value::Object(location))) = (&mut problem, location) {
            problem.extend(location);
        }
        problem
    }
}

/// Formats a key for display: `http.trusted_proxies[1]`.
pub(super) fn key_text(path: &[String]) -> String {
    let mut text = String::new();
    for part in path {
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

/// Converts an error of deserializing the value at `path`.
pub(super) fn explain(path: &[String], location: ValueLocation, kind: Kind) -> ConfigProblem {
    let key = key_text(path);
    let problem = match kind {
        Kind::UnknownField(field, expected) => {
            let hint = hint(&field, expected);
            let message = format!("unknown key `{key}` in {location}: {hint}");
            let (key, location) = (Some(key), Some(location));
            return ConfigProblem { code: "key_unknown", key, location, message };
        }
        Kind::MissingField(field) => format!("has no `{field}`: add it"),
        Kind::UnknownVariant(found, expected) => {
            let near = did_you_mean(&found, expected);
            let near = near.map_or(String::new(), |near| format!(": did you mean `{near}`?"));
            format!("is {found:?}, expected {}{near}", one_of(expected))
        }
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            format!("is {}, expected {}", describe(&actual), in_plain_words(&expected))
        }
        Kind::InvalidLength(length, expected) => {
            format!("has {length} items, expected {expected}")
        }
        other => format!("is invalid: {other}"),
    };
    ConfigProblem::of_value("value_invalid", key, location, &problem)
}

/// Returns the known name that is most like an unknown one, or all names.
pub(super) fn hint(field: &str, known: &[&str]) -> String {
    match did_you_mean(field, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("expected {}", one_of(known)),
    }
}

/// Returns the name most like `found`, if any is like it.
fn did_you_mean<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |name: &&str| strsim::damerau_levenshtein(found, name);
    let nearest = known.iter().copied().min_by_key(distance)?;
    let is_near = distance(&nearest) <= (found.chars().count() / 3).max(1);
    is_near.then_some(nearest)
}

fn one_of(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [] => "no key".to_owned(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// Describes a value, shortened.
fn describe(actual: &Actual) -> String {
    match actual {
        Actual::Bool(value) => format!("`{value}`"),
        Actual::Unsigned(value) => format!("the number {value}"),
        Actual::Signed(value) => format!("the number {value}"),
        Actual::Float(value) => format!("the number {value}"),
        Actual::Str(text) if text.chars().count() > 60 => {
            let start: String = text.chars().take(60).collect();
            format!("the string {:?}", start + "…")
        }
        Actual::Str(text) => format!("the string {text:?}"),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        _ => "a value of another type".to_owned(),
    }
}

/// Translates what serde expects into the terms of a configuration file.
fn in_plain_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "f32" | "f64" => "a number",
        "a boolean" => "`true` or `false`",
        "a string" => "a string in quotes",
        "path string" => "a path in quotes",
        "a sequence" => "a list in brackets",
        "socket address" => "an address with a port, such as \"127.0.0.1:8080\"",
        other if other.starts_with("struct ") => "a table",
        other if other.starts_with("enum ") => "a string in quotes",
        other => other,
    }
}
