//! Provenance of each value: its origin, the values that it overrides, and the users who may change
//! it.

use figment::value::{Dict, Value};
use serde::{Deserialize, Serialize};

use super::{
    key::{key_path, key_text},
    layer::SECTIONS,
    loaded::LoadedConfig,
    locks::KeyPattern,
    merged::step,
    origin::Location,
    permissions::Permission,
    pipeline::KINDS,
    redact::{OpenPaths, without_secrets},
};

/// Value of a key in one layer, without secrets.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigValue {
    /// Parts of the key.
    pub path: Vec<String>,
    /// Value; `***` for a secret.
    pub value: Value,
    /// Layer and line of the value.
    pub location: Location,
}

/// Value in force, without secrets, as a command shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownValue {
    /// Parts of the key.
    pub path: Vec<String>,
    /// Value; `***` for a secret.
    pub value: serde_json::Value,
    /// True if it differs from the built-in default.
    pub is_changed: bool,
    /// Layer and line, for people.
    pub location: String,
    /// Layer and line, for programs.
    pub origin: serde_json::Value,
}

impl ShownValue {
    /// Returns the dotted key.
    #[must_use]
    pub fn key(&self) -> String {
        key_text(&self.path)
    }
}

/// Values of one key in all layers, and who may change it.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyExplanation {
    /// Values that layers set, the one in force first.
    pub values: Vec<ConfigValue>,
    /// If the key is a table, its values in force, which several layers may set.
    pub table: Option<Value>,
    /// Whether a file of the user may set it.
    pub user: Permission,
    /// Whether the server may set it.
    pub server: Permission,
}

impl LoadedConfig {
    /// Returns every value in force, table by table. Tables of stages that no list contains are
    /// omitted, since they have no effect.
    #[must_use]
    pub fn effective_values(&self) -> Vec<ConfigValue> {
        let mut shown = Vec::new();
        let open = OpenPaths::of(&self.merged.layers);
        for table in SECTIONS {
            let Some(value) = step(&self.merged.root, table) else { continue };
            self.collect(&mut vec![table.to_owned()], value, &open, &mut shown);
        }
        shown
    }

    fn collect(
        &self,
        path: &mut Vec<String>,
        value: &Value,
        open: &OpenPaths,
        shown: &mut Vec<ConfigValue>,
    ) {
        if let [kind, name] = path.as_slice()
            && KINDS.contains(&&**kind)
            && (self.type_of_stage(kind, name).is_none() || self.replaced.contains(path))
        {
            return;
        }
        let Value::Dict(_, dict) = value else {
            let location = self.merged.location(path, value);
            shown.push(ConfigValue {
                path: path.clone(),
                value: without_secrets(path, value, open),
                location,
            });
            return;
        };
        // TOML requires the values of a table before its subtables.
        let (below, own): (Vec<_>, Vec<_>) =
            dict.iter().partition(|(_, value)| matches!(value, Value::Dict(..)));
        for (key, value) in own.into_iter().chain(below) {
            path.push(key.clone());
            self.collect(path, value, open, shown);
            path.pop();
        }
    }

    /// Returns every value in force as it is shown.
    #[must_use]
    pub fn shown_values(&self) -> Vec<ShownValue> {
        let at = |root: &Value, path: &[String]| {
            path.iter().try_fold(root, |value, part| step(value, part)).cloned()
        };
        let defaults = self.merged.layers.first().map(|layer| Value::from(layer.values.clone()));
        let shown =
            self.effective_values().into_iter().map(|ConfigValue { path, value, location }| {
                let default = defaults.as_ref().and_then(|defaults| at(defaults, &path));
                ShownValue {
                    is_changed: default != at(&self.merged.root, &path),
                    // A value of a configuration has no other keys than strings.
                    value: serde_json::to_value(value).unwrap_or_default(),
                    origin: location.to_json(),
                    location: location.to_string(),
                    path,
                }
            });
        shown.collect()
    }

    /// Returns the type of a stage that a list contains.
    #[must_use]
    pub fn type_of_stage(&self, kind: &str, name: &str) -> Option<&str> {
        let lists = [&self.settings.pipeline, &self.disabled].map(|it| match kind {
            "source" => &it.sources,
            "filter" => &it.filters,
            "enricher" => &it.enrichers,
            _ => &it.sinks,
        });
        lists.into_iter().flatten().find(|it| it.name == name).map(|it| &*it.stage)
    }

    /// Returns the locked keys of the machine's file that match none of the keys in `known` and no
    /// table above one.
    #[must_use]
    pub fn unmatched_locks(&self, known: &[&str]) -> Vec<String> {
        let paths: Vec<Vec<String>> = known.iter().map(|key| key_path(key)).collect();
        let means_one = |lock: &&KeyPattern| {
            paths.iter().any(|path| (1..=path.len()).any(|length| lock.is(&path[..length])))
        };
        let idle = self.locks.written().filter(|lock| !means_one(lock));
        idle.map(ToString::to_string).collect()
    }

    /// Returns the values of the key at `path` in all layers, and who may change it.
    #[must_use]
    pub fn explain_key(&self, path: &[String]) -> KeyExplanation {
        let mut values = Vec::new();
        let open = OpenPaths::of(&self.merged.layers);
        for layer in self.merged.layers.iter().rev() {
            let root = Value::from(layer.values.clone());
            let found = path.iter().try_fold(&root, |value, part| step(value, part));
            if let Some(value) = found.filter(|value| !is_empty_table(value)) {
                let value = without_secrets(path, value, &open);
                values.push(ConfigValue {
                    path: path.to_owned(),
                    value,
                    location: layer.location(path),
                });
            }
        }
        let root = &self.merged.root;
        let in_force = path.iter().try_fold(root, |value, part| step(value, part));
        let table = in_force.filter(|value| value.as_dict().is_some());
        KeyExplanation {
            values,
            table: table.map(|table| without_secrets(path, table, &open)),
            user: self.user_permission(path),
            server: self.server_permission(path),
        }
    }
}

impl ConfigValue {
    /// Returns the dotted key, such as `filter.ignore-types.types`.
    #[must_use]
    pub fn key(&self) -> String {
        key_text(&self.path)
    }
}

fn is_empty_table(value: &Value) -> bool {
    value.as_dict().is_some_and(Dict::is_empty)
}
