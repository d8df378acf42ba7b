//! Secrets of a configuration, to remove them from other texts.

use std::{iter, path::Path};

use figment::value::Value;

use super::{
    error::ConfigError,
    inputs::ConfigInputs,
    layer::Layer,
    loaded::LoadedConfig,
    on_error::OnError,
    read_layers::{self, LayerReader},
    redact::{OpenPaths, is_secret_path, secret_in_url, user_in_url},
    secret,
    sink::SECRETS,
};
use crate::platform::{Paths, secure_file};

impl LoadedConfig {
    /// Returns the secrets in all layers and in the files that they name.
    #[must_use]
    pub fn secret_values(&self, paths: &Paths) -> Vec<String> {
        secrets_of(&self.merged.layers, paths)
    }
}

impl ConfigInputs<'_> {
    /// Returns the secrets in all layers and in the files that they name, even if the layers have
    /// errors; and false if a layer cannot be read or parsed, so that its secrets are missing.
    pub(crate) fn secret_values(&self) -> (Vec<String>, bool) {
        let (mut warnings, mut errors) = (Vec::new(), Vec::new());
        let mut collect = OnError::Collect(&mut errors);
        let read =
            read_layers::read(self, &mut LayerReader::default(), &mut warnings, &mut collect);
        let Ok(set) = read else { return (Vec::new(), false) };
        let hides_a_layer = |error: &ConfigError| {
            matches!(error, ConfigError::Read { .. } | ConfigError::Syntax { .. })
        };
        (secrets_of(&set.layers, self.paths), !errors.iter().any(hides_a_layer))
    }
}

fn secrets_of(layers: &[Layer], paths: &Paths) -> Vec<String> {
    let mut secrets = Vec::new();
    let open = OpenPaths::of(layers);
    for layer in layers {
        let root = Value::from(layer.values.clone());
        collect_secrets(&mut Vec::new(), &root, paths, &open, &mut secrets);
    }
    secrets
}

fn collect_secrets(
    path: &mut Vec<String>,
    value: &Value,
    paths: &Paths,
    open: &OpenPaths,
    secrets: &mut Vec<String>,
) {
    match value {
        _ if is_secret_path(path) => collect_texts(value, secrets),
        Value::String(_, file) if names_secret_file(path) => {
            let text = secure_file::read(&paths.expand(Path::new(file))).unwrap_or_default();
            for line in text.lines() {
                add_text(line, secrets);
                add_url(line, true, secrets);
            }
        }
        Value::String(_, text) => add_url(text, open.hide(path), secrets),
        Value::Dict(_, table) => {
            for (key, value) in table {
                path.push(key.clone());
                collect_secrets(path, value, paths, open, secrets);
                path.pop();
            }
        }
        Value::Array(_, items) => {
            items.iter().for_each(|item| collect_secrets(path, item, paths, open, secrets));
        }
        _ => {}
    }
}

/// Returns whether the value at `path` is the path of a file with a secret.
fn names_secret_file(path: &[String]) -> bool {
    path.last().is_some_and(|key| {
        SECRETS.iter().any(|secret| secret.file == key)
            || key.strip_suffix("_file").is_some_and(secret::is_secret_key)
    })
}

fn collect_texts(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(_, text) => text.lines().for_each(|line| add_text(line, texts)),
        Value::Array(_, items) => items.iter().for_each(|item| collect_texts(item, texts)),
        Value::Dict(_, table) => table.values().for_each(|value| collect_texts(value, texts)),
        _ => {}
    }
}

/// Adds a secret. It may be a header: its value, and the token behind a scheme such as `Bearer`, also
/// occur without the rest.
fn add_text(text: &str, secrets: &mut Vec<String>) {
    let text = text.trim();
    let header = text.split_once(':').map(|(_, value)| value.trim());
    for text in iter::once(text).chain(header) {
        secrets.push(text.to_owned());
        secrets.extend(text.split_whitespace().next_back().map(str::to_owned));
    }
}

/// Adds the secrets in a URL, and a URL that contains more than a password.
fn add_url(text: &str, hides_path: bool, secrets: &mut Vec<String>) {
    let text = text.trim();
    secrets.extend(user_in_url(text).map(str::to_owned));
    if let Some(secret) = secret_in_url(text, hides_path) {
        secrets.extend([text.to_owned(), secret.to_owned()]);
    }
}
