//! Merged values of all layers; each value keeps its origin.

use figment::{
    Figment,
    value::{Dict, Value},
};
use serde::de::DeserializeOwned;

use super::{
    error::{self, ConfigError},
    key::{key_path, key_text},
    layer::{self, Layer, SECTIONS},
    origin::{LayerOrigin, Location},
    sink,
};

/// Sections whose texts are paths, addresses and names.
const WITH_PATHS: [&str; 4] = ["agent", "metrics", "source", "sink"];

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
    ///
    /// # Errors
    /// The first value of a wrong type, or of a form that no option may have.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        self.check_sections()?;
        self.check_texts()?;
        T::deserialize(&self.root).map_err(|error| self.explain_error(&[], error))
    }

    /// Checks that no section is a list: serde would accept one of the values of its options.
    fn check_sections(&self) -> Result<(), ConfigError> {
        for (name, section) in self.root.as_dict().into_iter().flatten() {
            let is_list = matches!(name.as_str(), "locked" | "test");
            if section.as_array().is_some() && !is_list && SECTIONS.contains(&name.as_str()) {
                return Err(self.value_error(name, "is a list, expected a table"));
            }
        }
        Ok(())
    }

    /// Checks that no text of a section with paths contains a NUL, with which no file can be opened.
    fn check_texts(&self) -> Result<(), ConfigError> {
        let sections = self.root.as_dict().into_iter().flatten();
        for (name, section) in sections.filter(|(name, _)| WITH_PATHS.contains(&name.as_str())) {
            if let Some(path) = path_of_nul(section, vec![name.clone()]) {
                let location = self.location(&path, self.nearest(&path));
                let problem = "contains a NUL character".to_owned();
                return Err(ConfigError::Value { key: key_text(&path), location, problem });
            }
        }
        Ok(())
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
        let path = key_path(key);
        (key_text(&path), self.location(&path, self.nearest(&path)))
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

/// Returns the path of a text with a NUL in `value`, which is at `path`.
fn path_of_nul(value: &Value, path: Vec<String>) -> Option<Vec<String>> {
    let below = |part: &str| [path.as_slice(), &[part.to_owned()]].concat();
    match value {
        Value::String(_, text) => text.contains('\0').then_some(path),
        Value::Dict(_, table) => table.iter().find_map(|(key, it)| path_of_nul(it, below(key))),
        Value::Array(_, items) => {
            let mut items = items.iter().enumerate();
            items.find_map(|(index, item)| path_of_nul(item, below(&index.to_string())))
        }
        _ => None,
    }
}

pub(super) fn step<'a>(value: &'a Value, part: &str) -> Option<&'a Value> {
    match value {
        Value::Dict(_, dict) => dict.get(part),
        Value::Array(_, items) => items.get(part.parse::<usize>().ok()?),
        _ => None,
    }
}
