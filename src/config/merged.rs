//! All layers as one, each value still knowing where it comes from.

use figment::{
    Figment,
    value::{Dict, Value},
};
use serde::de::DeserializeOwned;

use super::{
    ConfigError, LayerOrigin, Location, error,
    layer::{self, Layer},
    sink,
};

/// All layers as one.
pub(super) struct Merged {
    figment: Figment,
    pub(super) root: Value,
    /// Lowest first.
    pub(super) layers: Vec<Layer>,
}

impl Merged {
    pub(super) fn new(layers: Vec<Layer>) -> Self {
        let figment = layer::merge(&layers);
        // Merging fails only where a layer does, and none of these does.
        let root = figment.find_value("").unwrap_or_else(|_| Dict::new().into());
        Self { figment, root, layers }
    }

    /// Reads the whole as `T`.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        T::deserialize(&self.root).map_err(|error| self.explain_error(&[], error))
    }

    /// The table of one stage, if there is one; it may be something else than a table.
    pub(super) fn stage(&self, kind: &str, name: &str) -> Option<&Value> {
        self.tables(kind).find(|(other, _)| *other == name).map(|(_, table)| table)
    }

    /// All tables of one kind of stage.
    pub(super) fn tables(&self, kind: &str) -> impl Iterator<Item = (&str, &Value)> {
        let tables = self.root.as_dict().and_then(|root| root.get(kind)?.as_dict());
        tables.into_iter().flatten().map(|(name, table)| (name.as_str(), table))
    }

    /// The layer that a value comes from, counted from the lowest.
    pub(super) fn rank(&self, value: &Value) -> usize {
        let name = self.figment.get_metadata(value.tag()).map(|metadata| &*metadata.name);
        let is_it = |layer: &Layer| Some(&*layer.origin.to_string()) == name;
        self.layers.iter().position(is_it).unwrap_or(0)
    }

    /// Where the value at `path` comes from.
    pub(super) fn location(&self, path: &[String], value: &Value) -> Location {
        match self.layers.get(self.rank(value)) {
            Some(layer) => layer.location(path),
            None => LayerOrigin::Defaults.into(),
        }
    }

    /// An error about the value at a dotted key, or the nearest table above that is there.
    pub(super) fn value_error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let path = key.split('.').map(str::to_owned).collect::<Vec<_>>();
        let location = self.location(&path, self.nearest(&path));
        ConfigError::Value { key: error::key_text(&path), location, problem: problem.into() }
    }

    /// Makes an error that names key and origin out of one about a value below `table`.
    pub(super) fn explain_error(&self, table: &[&str], error: figment::Error) -> ConfigError {
        let mut path = table.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        path.extend(error.path);
        let value = self.nearest(&path);
        let location = self.location(&path, value);
        // What the pipeline reads in the table of a stage.
        let mut besides = Vec::new();
        if path.len() == 3 && !table.is_empty() {
            besides.extend(["enabled", "type"]);
            if table[0] == "sink" {
                besides.extend(sink::KEYS);
            }
        }
        error::explain_of(&path, location, value.as_str(), error.kind, &besides)
    }

    /// The value at `path`, or the nearest above that is there.
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
