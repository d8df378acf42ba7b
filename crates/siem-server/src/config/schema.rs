//! Known keys and the types of their values, which decide how variables and arguments are read.

use figment::value::Value;
use serde_json::Value as Json;

use config_text::toml_text;

use super::Settings;

/// A key that holds a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownKey {
    /// Dotted key.
    pub(super) key: String,
    kind: ValueKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueKind {
    Text,
    List,
    /// Boolean or number.
    Scalar,
}

/// Returns all keys, sorted.
pub(super) fn known_keys() -> Vec<KnownKey> {
    let schema = Json::from(schemars::schema_for!(Settings));
    let mut keys = Vec::new();
    add(&schema, &schema, "", &mut keys);
    keys.sort_by(|a, b| a.key.cmp(&b.key));
    keys
}

fn add(schema: &Json, root: &Json, prefix: &str, keys: &mut Vec<KnownKey>) {
    let schema = resolve(schema, root);
    match schema.get("properties").and_then(Json::as_object) {
        Some(properties) => {
            for (name, property) in properties {
                let separator = if prefix.is_empty() { "" } else { "." };
                add(property, root, &format!("{prefix}{separator}{name}"), keys);
            }
        }
        None => keys.push(KnownKey { key: prefix.to_owned(), kind: kind(schema) }),
    }
}

/// Follows references, and leaves out `null` as an alternative.
fn resolve<'a>(schema: &'a Json, root: &'a Json) -> &'a Json {
    if let Some(name) = schema["$ref"].as_str().and_then(|it| it.strip_prefix("#/$defs/")) {
        return resolve(&root["$defs"][name], root);
    }
    match schema["anyOf"].as_array().and_then(|all| all.first()) {
        Some(first) => resolve(first, root),
        None => schema,
    }
}

fn kind(schema: &Json) -> ValueKind {
    let name = match &schema["type"] {
        Json::Array(names) => names.first().and_then(Json::as_str),
        name => name.as_str(),
    };
    match name {
        Some("array") => ValueKind::List,
        Some("boolean" | "integer" | "number") => ValueKind::Scalar,
        _ => ValueKind::Text,
    }
}

impl KnownKey {
    /// Returns the environment variable that sets the key.
    pub(super) fn variable(&self) -> String {
        format!("{PREFIX}{}", self.key.replace('.', "_").to_ascii_uppercase())
    }

    /// Reads the text of a variable or an argument. A list is written in brackets or with commas.
    pub(super) fn value(&self, text: &str) -> Value {
        let parsed = || {
            let table = format!("value = {text}").parse::<toml::Table>().ok()?;
            (table.len() == 1).then_some(table).and_then(|mut table| table.remove("value"))
        };
        match self.kind {
            ValueKind::Text => text.into(),
            ValueKind::Scalar => parsed().map_or_else(|| text.into(), toml_text::value),
            ValueKind::List if text.trim_start().starts_with('[') => {
                parsed().map_or_else(|| text.into(), toml_text::value)
            }
            ValueKind::List => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.collect::<Vec<_>>().into()
            }
        }
    }
}

/// Start of the names of environment variables.
pub(super) const PREFIX: &str = "SIEM_SERVER_";
