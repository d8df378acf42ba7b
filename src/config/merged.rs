//! All layers as one, each value still knowing where it comes from.

use figment::{
    Figment,
    value::{Dict, Value},
};
use serde::de::DeserializeOwned;

use super::{
    ConfigError, Origin, error,
    layers::{self, Layer},
};

/// All layers as one.
pub(super) struct Merged {
    figment: Figment,
    root: Value,
    /// Lowest first.
    origins: Vec<Origin>,
}

impl Merged {
    pub(super) fn new(layers: &[Layer]) -> Self {
        let figment = layers::merge(layers);
        // Merging fails only where a layer does, and none of these does.
        let root = figment.find_value("").unwrap_or_else(|_| Dict::new().into());
        let origins = layers.iter().map(|layer| layer.origin.clone()).collect();
        Self { figment, root, origins }
    }

    /// Reads the whole as `T`.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        T::deserialize(&self.root).map_err(|error| self.explain(&[], error))
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

    /// Where a value comes from, and its place among the layers.
    pub(super) fn origin(&self, value: &Value) -> (usize, Origin) {
        let name = self.figment.get_metadata(value.tag()).map(|metadata| &metadata.name);
        let is_it = |origin: &&Origin| Some(origin.to_string()) == name.map(ToString::to_string);
        match self.origins.iter().position(|origin| is_it(&origin)) {
            Some(place) => (place, self.origins[place].clone()),
            None => (0, Origin::Defaults),
        }
    }

    /// An error about the value at a dotted key, or the nearest table above that is there.
    pub(super) fn wrong(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let path = key.split('.').map(str::to_owned).collect::<Vec<_>>();
        let (_, origin) = self.origin(self.nearest(&path));
        ConfigError::Value { key: error::key_text(&path), origin, problem: problem.into() }
    }

    /// Makes an error that names key and origin out of one about a value below `table`.
    pub(super) fn explain(&self, table: &[&str], error: figment::Error) -> ConfigError {
        let mut path = table.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        path.extend(error.path);
        let value = self.nearest(&path);
        error::explain(&path, self.origin(value).1, value.as_str(), error.kind)
    }

    /// The value at `path`, or the nearest above that is there.
    fn nearest(&self, path: &[String]) -> &Value {
        path.iter()
            .try_fold(&self.root, |value, part| step(value, part).ok_or(value))
            .unwrap_or_else(|value| value)
    }
}

fn step<'a>(value: &'a Value, part: &str) -> Option<&'a Value> {
    match value {
        Value::Dict(_, dict) => dict.get(part),
        Value::Array(_, items) => items.get(part.parse::<usize>().ok()?),
        _ => None,
    }
}
