//! Merged values of all layers; each value keeps its origin.

use figment::{
    Figment,
    value::{Dict, Value},
};
use serde::de::DeserializeOwned;

use super::{
    error::{self, ConfigError},
    layer::{self, Layer},
    origin::{LayerOrigin, Location},
    sink,
};

/// Merged values of all layers.
pub(super) struct Merged {
    figment: Figment,
    pub(super) root: Value,
    /// Layers in the order in which they override each other.
    pub(super) layers: Vec<Layer>,
}

impl Merged {
    pub(super) fn new(layers: Vec<Layer>) -> Self {
        let figment = layer::merge(&layers);
        // Merging fails only if a layer fails to provide its values, which never happens here.
        let root = figment.find_value("").unwrap_or_else(|_| Dict::new().into());
        Self { figment, root, layers }
    }

    /// Deserializes the merged values as `T`.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        T::deserialize(&self.root).map_err(|error| self.explain_error(&[], error))
    }

    /// Returns the value under `KIND.NAME`, which may not be a table.
    pub(super) fn stage(&self, kind: &str, name: &str) -> Option<&Value> {
        self.tables(kind).find(|(other, _)| *other == name).map(|(_, table)| table)
    }

    /// Returns all tables of one kind of stage.
    pub(super) fn tables(&self, kind: &str) -> impl Iterator<Item = (&str, &Value)> {
        let tables = self.root.as_dict().and_then(|root| root.get(kind)?.as_dict());
        tables.into_iter().flatten().map(|(name, table)| (name.as_str(), table))
    }

    /// Returns the index of the layer that a value comes from; a higher one overrides a lower one.
    pub(super) fn rank(&self, value: &Value) -> usize {
        let name = self.figment.get_metadata(value.tag()).map(|metadata| &*metadata.name);
        let is_it = |layer: &Layer| Some(&*layer.origin.to_string()) == name;
        self.layers.iter().position(is_it).unwrap_or(0)
    }

    /// Returns the location of the value at `path`.
    pub(super) fn location(&self, path: &[String], value: &Value) -> Location {
        match self.layers.get(self.rank(value)) {
            Some(layer) => layer.location(path),
            None => LayerOrigin::Defaults.into(),
        }
    }

    /// Creates an error about the value at a dotted key, or about the nearest table above it that
    /// exists.
    pub(super) fn value_error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let (key, location) = self.locate(key);
        ConfigError::Value { key, location, problem: problem.into() }
    }

    /// Returns the text of a dotted key, and the location of its value, or of the nearest table above
    /// it that exists.
    pub(super) fn locate(&self, key: &str) -> (String, Location) {
        let path = key.split('.').map(str::to_owned).collect::<Vec<_>>();
        (error::key_text(&path), self.location(&path, self.nearest(&path)))
    }

    /// Converts an error about a value below `table` into one that names key and origin.
    pub(super) fn explain_error(&self, table: &[&str], error: figment::Error) -> ConfigError {
        let mut path = table.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        path.extend(error.path);
        let value = self.nearest(&path);
        let location = self.location(&path, value);
        // Keys that the pipeline reads from the table of a stage.
        let mut besides = Vec::new();
        if path.len() == 3 && !table.is_empty() {
            besides.extend(["enabled", "type"]);
            if table[0] == "sink" {
                besides.extend(sink::KEYS);
            }
        }
        error::explain_of(&path, location, value.as_str(), error.kind, &besides)
    }

    /// Returns the value at `path`, or the nearest existing value above it.
    pub(super) fn nearest(&self, path: &[String]) -> &Value {
        path.iter()
            .try_fold(&self.root, |value, part| step(value, part).ok_or(value))
            .unwrap_or_else(|value| value)
    }
}

pub(super) fn step<'a>(value: &'a Value, part: &str) -> Option<&'a Value> {
    match value {
        Value::Dict(_, dict) => dict.get(part),
        Value::Array(_, items) => items.get(part.parse::<usize>().ok()?),
        _ => None,
    }
}
