//! Removal of secrets from values that are shown or hashed.

use figment::value::Value;

use super::{options::masked, pipeline::KINDS, secret};

/// Replaces secrets by `***`.
pub(super) fn without_secrets(path: &[String], value: &Value) -> Value {
    if is_secret_path(path) {
        return secret::MASK.into();
    }
    without_passwords(masked(value))
}

/// Returns whether a part of the key says that its value is a secret. The name of a stage does not.
pub(super) fn is_secret_path(path: &[String]) -> bool {
    let options = match path {
        [kind, _, options @ ..] if KINDS.contains(&&**kind) => options,
        path => path,
    };
    options.iter().any(|part| secret::is_secret_key(part))
}

/// Returns user name and password in a URL.
pub(super) fn user_in_url(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    Some(&authority[..authority.rfind('@')?])
}

/// Removes user name and password from URLs.
pub(super) fn without_passwords(value: Value) -> Value {
    match value {
        Value::String(tag, text) => {
            let hidden = user_in_url(&text).map(|user| {
                let at = text.find("://").map_or(0, |at| at + 3);
                format!("{}{}{}", &text[..at], secret::MASK, &text[at + user.len()..])
            });
            Value::String(tag, hidden.unwrap_or(text))
        }
        Value::Array(tag, items) => {
            Value::Array(tag, items.into_iter().map(without_passwords).collect())
        }
        Value::Dict(tag, dict) => {
            let items = dict.into_iter().map(|(key, value)| (key, without_passwords(value)));
            Value::Dict(tag, items.collect())
        }
        other => other,
    }
}
