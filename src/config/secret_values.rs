//! Secrets of a configuration, to remove them from other texts.

use std::path::Path;

use figment::value::Value;

use super::{
    loaded::LoadedConfig,
    redact::{is_secret_path, user_in_url},
    secret,
};
use crate::platform::secure_file;

impl LoadedConfig {
    /// Returns the secrets in all layers and in the files that they name.
    #[must_use]
    pub fn secret_values(&self) -> Vec<String> {
        let mut secrets = Vec::new();
        for layer in &self.merged.layers {
            let root = Value::from(layer.values.clone());
            collect_secrets(&mut Vec::new(), &root, &mut secrets);
        }
        secrets
    }
}

fn collect_secrets(path: &mut Vec<String>, value: &Value, secrets: &mut Vec<String>) {
    let key = path.last().map(String::as_str).unwrap_or_default();
    let is_file = key.strip_suffix("_file").is_some_and(secret::is_secret_key);
    match value {
        _ if is_secret_path(path) => collect_texts(value, secrets),
        Value::String(_, path) if is_file => {
            let text = secure_file::read(Path::new(path)).unwrap_or_default();
            // A line may be a header: only its value is secret.
            let lines = text.lines().map(|line| line.split_once(": ").map_or(line, |it| it.1));
            secrets.extend(lines.map(|line| line.trim().to_owned()));
        }
        Value::String(_, text) => secrets.extend(user_in_url(text).map(str::to_owned)),
        Value::Dict(_, table) => {
            for (key, value) in table {
                path.push(key.clone());
                collect_secrets(path, value, secrets);
                path.pop();
            }
        }
        Value::Array(_, items) => {
            items.iter().for_each(|item| collect_secrets(path, item, secrets));
        }
        _ => {}
    }
}

fn collect_texts(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(_, text) => texts.push(text.trim().to_owned()),
        Value::Array(_, items) => items.iter().for_each(|item| collect_texts(item, texts)),
        Value::Dict(_, table) => table.values().for_each(|value| collect_texts(value, texts)),
        _ => {}
    }
}
