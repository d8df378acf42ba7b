//! Removal of secrets from values that are shown or hashed.

use std::collections::BTreeSet;

use figment::value::{Dict, Value};

use super::{
    layer::{Layer, tables},
    options::masked,
    pipeline::KINDS,
    secret,
    sink::HTTP_SIEM,
};

/// Sinks whose endpoint has no secret in its path: those of type `http-siem`. Other receivers may use the
/// path as a key.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenPaths(BTreeSet<String>);

impl OpenPaths {
    /// Returns the sinks that are of this type after all `layers`.
    pub(super) fn of(layers: &[Layer]) -> Self {
        let mut open = Self::default();
        layers.iter().for_each(|layer| open.add(&layer.values));
        open
    }

    /// Adds the types that a layer sets.
    pub(super) fn add(&mut self, layer: &Dict) {
        for (name, table) in tables(layer, "sink") {
            let Some(stage) = table.get("type") else { continue };
            if stage.as_str() == Some(HTTP_SIEM) {
                self.0.insert(name.to_owned());
            } else {
                self.0.remove(name);
            }
        }
    }

    /// Returns whether the path of a URL at this key may contain a secret.
    pub(super) fn hide(&self, path: &[String]) -> bool {
        match path {
            [kind, name, option] if kind == "sink" && option == "endpoint" => {
                !self.0.contains(name)
            }
            _ => false,
        }
    }
}

/// Replaces secrets by `***`.
pub(super) fn without_secrets(path: &[String], value: &Value, open: &OpenPaths) -> Value {
    if is_secret_path(path) {
        return secret::MASK.into();
    }
    without_url_secrets(path, masked(value), open)
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

/// Returns the end of a URL that may contain a secret: the query, and with `hides_path` the path too.
/// Texts that only contain a URL, such as patterns, have none.
pub(super) fn secret_in_url(text: &str, hides_path: bool) -> Option<&str> {
    let (scheme, rest) = text.split_once("://")?;
    let is_scheme = |it: char| it.is_ascii_alphanumeric() || "+-.".contains(it);
    if !scheme.trim_start().chars().all(is_scheme) {
        return None;
    }
    let tail = &rest[rest.find(['/', '?', '#'])?..];
    let start = if hides_path { 1 } else { tail.find('?')? + 1 };
    Some(&tail[start..]).filter(|secret| !secret.is_empty())
}

/// Removes user names, passwords and other secrets from the URLs at and below `path`.
pub(super) fn without_url_secrets(path: &[String], value: Value, open: &OpenPaths) -> Value {
    match value {
        Value::String(tag, text) => Value::String(tag, masked_url(text, open.hide(path))),
        Value::Array(tag, items) => {
            let items = items.into_iter().map(|item| without_url_secrets(path, item, open));
            Value::Array(tag, items.collect())
        }
        Value::Dict(tag, dict) => {
            let items = dict.into_iter().map(|(key, value)| {
                let path: Vec<String> = path.iter().chain([&key]).cloned().collect();
                (key, without_url_secrets(&path, value, open))
            });
            Value::Dict(tag, items.collect())
        }
        other => other,
    }
}

fn masked_url(mut text: String, hides_path: bool) -> String {
    if let Some(length) = secret_in_url(&text, hides_path).map(str::len) {
        text.truncate(text.len() - length);
        text += secret::MASK;
    }
    let hidden = user_in_url(&text).map(|user| {
        let at = text.find("://").map_or(0, |at| at + 3);
        format!("{}{}{}", &text[..at], secret::MASK, &text[at + user.len()..])
    });
    hidden.unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use config_text::toml_text;

    #[test]
    fn secrets_in_urls_are_masked() {
        let mut open = OpenPaths::default();
        let types =
            "sink.x.type = 'http'\nsink.siem.type = 'http-siem'\nsink.was.type = 'http-siem'";
        open.add(&toml_text::parse(types).unwrap().values);
        open.add(&toml_text::parse("sink.was.type = 'otlp'").unwrap().values);
        let shown = |key: &str, text: &str| {
            let path: Vec<String> = key.split('.').map(str::to_owned).collect();
            without_secrets(&path, &text.into(), &open).as_str().map(str::to_owned).unwrap()
        };
        for (key, text, expected) in [
            ("sink.x.endpoint", "https://intake.test/receiver/KEY", "https://intake.test/***"),
            ("sink.x.endpoint", "https://intake.test?sig=KEY", "https://intake.test?***"),
            ("sink.x.endpoint", "https://u:p@intake.test/KEY?a", "https://***@intake.test/***"),
            ("sink.x.endpoint", "https://intake.test:8088", "https://intake.test:8088"),
            ("sink.x.endpoint", "https://intake.test/", "https://intake.test/"),
            ("sink.siem.endpoint", "https://siem.test/a/b", "https://siem.test/a/b"),
            ("sink.siem.endpoint", "https://u:p@siem.test/a?k=KEY", "https://***@siem.test/a?***"),
            ("sink.was.endpoint", "https://intake.test/KEY", "https://intake.test/***"),
            ("sink.unknown.endpoint", "https://intake.test/KEY", "https://intake.test/***"),
            ("sink.x.proxy", "http://proxy.test/a?sig=KEY", "http://proxy.test/a?***"),
            ("sink.x.proxy", "http://proxy.test/a", "http://proxy.test/a"),
            ("filter.x.drop", "https?://a.test/?b", "https?://a.test/?b"),
        ] {
            assert_eq!(shown(key, text), expected);
        }
    }

    #[test]
    fn secrets_in_urls_of_a_table_are_masked() {
        let sink = Dict::from([("endpoint".to_owned(), "https://intake.test/KEY".into())]);
        let shown = without_secrets(
            &["sink".to_owned(), "x".to_owned()],
            &sink.into(),
            &OpenPaths::default(),
        );
        let endpoint = shown.find("endpoint").unwrap();
        assert_eq!(endpoint.as_str(), Some("https://intake.test/***"));
    }
}
