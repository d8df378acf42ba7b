//! Hashes of the configuration in force, by which an administrator compares machines.
//!
//! The hash of a section is the SHA-256 of its canonical form: the values that `config show --json`
//! prints, as JSON with sorted keys and without white space. Values count as they are written: `5s`
//! and `5000ms` differ, and `~/` is not expanded, so that it is the same for each user. Of a secret
//! only its presence counts, also in a URL, and of a systemd credential not its path, which differs by
//! machine.

use std::{collections::BTreeMap, iter};

use figment::value::{Dict, Value};
use siem_protocol::{Digest, agent_event::LayerHash};

use super::{
    layer::{Layer, SECTIONS},
    origin::LayerOrigin,
    pipeline::KINDS,
    redact::{OpenPaths, is_secret_path, without_url_secrets},
    secret,
};

/// Hashes of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigHashes {
    /// Hash of all sections together, as in the headers of batches.
    pub whole: Digest,
    /// Hash of each section that has a value, by the name of its table.
    pub sections: BTreeMap<String, Digest>,
    /// Hash of each layer, lowest first: what it says, with values that do not count and tests.
    pub layers: Vec<LayerHash>,
}

impl ConfigHashes {
    /// Computes the hashes of merged values. `is_listed` tells whether a list contains the stage of
    /// a kind and a name: others have no effect. `is_credential` tells whether a value comes from
    /// systemd.
    pub(super) fn of(
        root: &Value,
        layers: Vec<LayerHash>,
        is_listed: impl Fn(&str, &str) -> bool,
        is_credential: impl Fn(&Value) -> bool,
    ) -> Self {
        let mut all = Dict::new();
        let mut open = OpenPaths::default();
        root.as_dict().into_iter().for_each(|root| open.add(root));
        for (name, section) in root.as_dict().into_iter().flatten() {
            let mut section = section.clone();
            if let (true, Value::Dict(_, stages)) = (KINDS.contains(&&**name), &mut section) {
                stages.retain(|stage, _| is_listed(name, stage));
            }
            let shown = SECTIONS.contains(&&**name);
            let hide = || canonical(&mut vec![name.clone()], &section, &open, &is_credential);
            let hidden = shown.then(hide);
            all.extend(hidden.flatten().map(|section| (name.clone(), section)));
        }
        let sections = all.iter().map(|(name, section)| (name.clone(), digest(section)));
        Self { sections: sections.collect(), whole: digest(&Value::from(all)), layers }
    }
}

/// Returns the hash of each layer: one for each file, and one for all variables, and all
/// credentials. The types of sinks are those of the layers below.
pub(super) fn of_layers<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> Vec<LayerHash> {
    let mut merged: Vec<(&LayerOrigin, Dict)> = Vec::new();
    for layer in layers {
        match merged.last_mut() {
            Some((origin, values))
                if origin.file().is_none() && origin.layer() == layer.origin.layer() =>
            {
                extend(values, layer.values.clone());
            }
            _ => merged.push((&layer.origin, layer.values.clone())),
        }
    }
    let mut open = OpenPaths::default();
    let hash = |(origin, values): (&LayerOrigin, Dict)| {
        open.add(&values);
        let is_credential = matches!(origin, LayerOrigin::Credential(_));
        let values = canonical(&mut Vec::new(), &values.into(), &open, &|_| is_credential);
        LayerHash {
            layer: origin.layer().to_owned(),
            file: origin.file().map(|path| path.to_string_lossy().into_owned()),
            hash: digest(&values.unwrap_or_else(|| Dict::new().into())),
        }
    };
    merged.into_iter().map(hash).collect()
}

/// Adds the tables and values of `more`.
fn extend(values: &mut Dict, more: Dict) {
    for (key, value) in more {
        match (values.get_mut(&key), value) {
            (Some(Value::Dict(_, own)), Value::Dict(_, more)) => extend(own, more),
            (_, value) => drop(values.insert(key, value)),
        }
    }
}

/// Returns the canonical form of the value at `path`; `None` for a table without values.
fn canonical(
    path: &mut Vec<String>,
    value: &Value,
    open: &OpenPaths,
    is_credential: &impl Fn(&Value) -> bool,
) -> Option<Value> {
    let Value::Dict(_, table) = value else {
        return Some(if is_credential(value) {
            "credential".into()
        } else if is_hidden(path) {
            secret::MASK.into()
        } else {
            hide_in_lists(path, value, open)
        });
    };
    let mut values = Dict::new();
    for (key, value) in table {
        path.push(key.clone());
        values
            .extend(canonical(path, value, open, is_credential).map(|value| (key.clone(), value)));
        path.pop();
    }
    (!values.is_empty()).then(|| values.into())
}

/// Returns whether the value at `path` is a secret. In a filter only an option itself can be one: below it
/// are names that a person chose, such as the patterns of `mask`, and a changed pattern must show.
fn is_hidden(path: &[String]) -> bool {
    match path {
        [kind, _, option, ..] if kind == "filter" => secret::is_secret_key(option),
        path => is_secret_path(path),
    }
}

/// Hides secrets in the tables of a list, and in URLs.
fn hide_in_lists(path: &[String], value: &Value, open: &OpenPaths) -> Value {
    let Value::Array(tag, items) = value else {
        return without_url_secrets(path, value.clone(), open);
    };
    let hide = |item: &Value| match item {
        Value::Dict(tag, table) => {
            let hide = |(key, value): (&String, &Value)| {
                let path: Vec<String> = path.iter().chain(iter::once(key)).cloned().collect();
                let value = if is_hidden(&path) {
                    secret::MASK.into()
                } else {
                    hide_in_lists(&path, value, open)
                };
                (key.clone(), value)
            };
            Value::Dict(*tag, table.iter().map(hide).collect())
        }
        item => hide_in_lists(path, item, open),
    };
    Value::Array(*tag, items.iter().map(hide).collect())
}

fn digest(value: &Value) -> Digest {
    // Tables are sorted maps.
    let json = serde_json::to_string(value).expect("all keys are strings");
    Digest::of(json.as_bytes())
}
