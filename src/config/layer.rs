//! Layer of the configuration: the values of one origin, and the line of each.

use figment::{
    Figment, Metadata, Profile, Provider,
    value::{Dict, Map, Value},
};

use super::origin::{LayerOrigin, Location};
use config_text::toml_text::LineIndex;

/// Sections: tables in the order in which they are shown.
pub(super) const SECTIONS: [&str; 13] = [
    "locked",
    "agent",
    "shipping",
    "outbox",
    "metrics",
    "managed",
    "update",
    "compliance",
    "pipeline",
    "source",
    "filter",
    "enricher",
    "sink",
];

/// Values of one origin.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) origin: LayerOrigin,
    pub(super) values: Dict,
    pub(super) lines: LineIndex,
}

impl Layer {
    /// Creates a layer whose values have no line.
    pub(super) fn new(origin: LayerOrigin, values: Dict) -> Self {
        Self { origin, values, lines: LineIndex::default() }
    }

    /// Returns the location of the value at `path`.
    pub(super) fn location(&self, path: &[String]) -> Location {
        let line = self.origin.file().and_then(|_| self.lines.of(path));
        Location { origin: self.origin.clone(), line }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// Merges layers: tables key by key, other values are replaced by the last layer.
pub(super) fn merge(layers: &[Layer]) -> Figment {
    layers.iter().fold(Figment::new(), |figment, layer| figment.merge(layer))
}

/// Inserts `value` under a dotted key.
pub(super) fn insert(values: &mut Dict, key: &str, value: Value) {
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

pub(super) fn tables<'a>(
    values: &'a Dict,
    kind: &str,
) -> impl Iterator<Item = (&'a str, &'a Dict)> {
    let tables = values.get(kind).and_then(Value::as_dict).into_iter().flatten();
    tables.filter_map(|(name, table)| Some((name.as_str(), table.as_dict()?)))
}
