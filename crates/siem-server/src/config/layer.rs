//! Layer of the configuration: the values of one origin, and the line of each.

use figment::{
    Figment, Metadata, Profile, Provider,
    value::{Dict, Map, Value},
};

use super::located::{Origin, ValueLocation};
use config_text::toml_text::LineIndex;

/// Values of one origin.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) origin: Origin,
    pub(super) values: Dict,
    pub(super) lines: LineIndex,
}

impl Layer {
    /// Creates a layer with one value at a dotted key.
    pub(super) fn of_value(origin: Origin, key: &str, value: Value) -> Self {
        let mut values = Dict::new();
        insert(&mut values, key, value);
        Self { origin, values, lines: LineIndex::default() }
    }

    pub(super) fn location(&self, path: &[String]) -> ValueLocation {
        ValueLocation { origin: self.origin.clone(), line: self.lines.of(path) }
    }

    pub(super) fn get(&self, path: &[String]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.values.get(first)?, step)
    }

    /// Removes the value at `path`; returns false if there is none.
    pub(super) fn remove(&mut self, path: &[String]) -> bool {
        let Some((last, above)) = path.split_last() else { return false };
        let Some((first, above)) = above.split_first() else {
            return self.values.remove(last).is_some();
        };
        let table = self.values.get_mut(first);
        let table = above.iter().try_fold(table, |value, part| match value? {
            Value::Dict(_, dict) => Some(dict.get_mut(part)),
            _ => None,
        });
        match table.flatten() {
            Some(Value::Dict(_, dict)) => dict.remove(last).is_some(),
            _ => false,
        }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::default()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// Merges layers: tables key by key, other values are replaced by the last layer.
pub(super) fn merge(layers: &[Layer]) -> Figment {
    layers.iter().fold(Figment::new(), |figment, layer| figment.merge(layer))
}

fn step<'a>(value: &'a Value, part: &String) -> Option<&'a Value> {
    match value {
        Value::Dict(_, dict) => dict.get(part),
        Value::Array(_, items) => items.get(part.parse::<usize>().ok()?),
        _ => None,
    }
}

fn insert(values: &mut Dict, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            values.insert(key.to_owned(), value);
        }
        Some((table, rest)) => {
            let table = values.entry(table.to_owned()).or_insert_with(|| Dict::new().into());
            if let Value::Dict(_, table) = table {
                insert(table, rest, value);
            }
        }
    }
}
