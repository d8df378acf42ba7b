//! Finds all errors of a configuration, where loading stops at the first one.
//!
//! A value with an error is removed from its layer, so that the value of a lower layer takes its place,
//! and the rest is checked again. What is only wrong because a value was removed is not an error.

use std::path::PathBuf;

use figment::value::{Dict, Value};

use super::{
    error::{ConfigError, MissingSetting, config_files},
    inputs::ConfigInputs,
    key::{key_path, key_text},
    layer::{Layer, insert, tables},
    loaded::LoadedConfig,
    managed::ManagedSettings,
    on_error::OnError,
    origin::{LayerOrigin, Location},
    pipeline::{BUILT_IN_FILTERS, KINDS, is_kebab_case},
    read_layers::{self, LayerReader, LayerSet},
};
use crate::platform::Paths;

/// Number of errors after which the search ends.
const MAX_ERRORS: usize = 100;
/// Number of values that are merged, in all layers and for all errors: the layers are merged again after
/// each error, and a file may have a million keys.
const MAX_MERGED: usize = 500_000;

/// Error of a configuration, and the stage that cannot be built because of it.
#[derive(Debug)]
pub struct StageError {
    /// Kind of the stage: `source`, `filter`, `enricher` or `sink`.
    pub kind: String,
    /// Name of the stage.
    pub name: String,
    /// Error.
    pub error: ConfigError,
}

/// Checks of a configuration that has been loaded.
pub trait StageChecks {
    /// Returns at most one error of each stage.
    fn errors(&mut self, loaded: &LoadedConfig) -> Vec<StageError>;
}

/// All errors of a configuration.
#[derive(Debug)]
pub struct FoundErrors {
    /// The configuration, without the values that have errors; `None` if it could not be loaded.
    pub loaded: Option<LoadedConfig>,
    /// Errors, each of which refuses the configuration.
    pub errors: Vec<ConfigError>,
}

/// Finds the errors of the layers of this machine.
pub fn find_errors(inputs: &ConfigInputs<'_>, checks: &mut dyn StageChecks) -> FoundErrors {
    let Paths { user_config, machine_config, .. } = inputs.paths;
    let files = config_files(inputs.explicit, user_config, machine_config);
    let (mut warnings, mut errors) = (Vec::new(), Vec::new());
    let mut collect = OnError::Collect(&mut errors);
    let read = read_layers::read(inputs, &mut LayerReader::default(), &mut warnings, &mut collect);
    let build =
        |set: LayerSet| LoadedConfig::of_machine(set, inputs, files.clone(), warnings.clone());
    find(read, errors, build, checks)
}

/// Finds the errors of `files`, as the only files of a machine.
pub fn find_errors_in_files(
    files: &[PathBuf],
    managed: Option<&ManagedSettings>,
    paths: &Paths,
    checks: &mut dyn StageChecks,
) -> FoundErrors {
    let (mut warnings, mut errors) = (Vec::new(), Vec::new());
    let mut collect = OnError::Collect(&mut errors);
    let read = read_layers::read_files(files, managed, &mut warnings, &mut collect);
    let build = |set: LayerSet| LoadedConfig::new(set, paths, files.to_owned(), warnings.clone());
    find(read, errors, build, checks)
}

fn find(
    read: Result<LayerSet, ConfigError>,
    mut errors: Vec<ConfigError>,
    build: impl Fn(LayerSet) -> Result<LoadedConfig, ConfigError>,
    checks: &mut dyn StageChecks,
) -> FoundErrors {
    let set = match read {
        Ok(set) => set,
        Err(error) => {
            errors.push(error);
            return FoundErrors { loaded: None, errors };
        }
    };
    // A stage or a setting may be in the file that cannot be read.
    let is_complete = !errors.iter().any(ConfigError::hides_a_layer);
    let values: usize = set.layers.iter().map(|layer| count(&layer.values)).sum();
    let max = (MAX_MERGED / values.max(1)).clamp(1, MAX_ERRORS);
    let mut search = Search { set, errors, removed: Vec::new(), texts: Vec::new() };
    loop {
        let mut loaded = match build(search.set.clone()) {
            Ok(loaded) => loaded,
            Err(error) => {
                let is_removed = search.add(error);
                if is_removed && search.errors.len() < max {
                    continue;
                }
                return FoundErrors { loaded: None, errors: search.errors };
            }
        };
        let mut found = if is_complete { checks.errors(&loaded) } else { Vec::new() };
        // What is wrong with a stage that was replaced is known, or follows from the replacement: the
        // defaults, for example, have options for another type.
        found.retain(|found| !search.is_replaced(&found.kind, &found.name));
        let mut has_changed = false;
        if search.errors.len() < max {
            found.into_iter().for_each(|found| has_changed |= search.add_of_stage(found));
        }
        if !has_changed {
            if let Some(missing) = loaded.missing_for_delivery().filter(|_| is_complete) {
                search.add_missing(missing);
            }
            loaded.replaced = search.replaced();
            loaded.removed = search.texts;
            return FoundErrors { loaded: Some(loaded), errors: search.errors };
        }
    }
}

/// Layers without the values that had errors.
struct Search {
    set: LayerSet,
    errors: Vec<ConfigError>,
    removed: Vec<(LayerOrigin, Vec<String>)>,
    /// Layers, dotted keys and texts of removed values.
    texts: Vec<(LayerOrigin, String, String)>,
}

impl Search {
    /// Adds an error of loading, and removes its value; returns false if that is not possible.
    fn add(&mut self, error: ConfigError) -> bool {
        let Some((location, path)) = error.place() else {
            self.errors.push(error);
            return false;
        };
        if self.was_removed(&path) {
            return self.remove_everywhere(&path);
        }
        let (origin, path) = (location.origin.clone(), path);
        let original = self.original(&origin, &path);
        self.errors.push(error.moved(&original, self.location(&origin, &original)));
        match stage_of(&path) {
            Some((kind, name, "" | "type")) => self.replace_stage(&kind, &name),
            _ if self.remove(&origin, &path, original) => true,
            _ => self.remove_everywhere(&path),
        }
    }

    /// Adds an error of a stage, and removes its value, or makes the stage harmless. Returns false if it
    /// was harmless already: the error is about its name, and was added before.
    fn add_of_stage(&mut self, found: StageError) -> bool {
        let StageError { kind, name, error } = found;
        if self.removed.contains(&replacement_mark(&kind, &name)) {
            return false;
        }
        let place = error.place();
        let of_option = place.as_ref().and_then(|(location, path)| match stage_of(path) {
            Some((_, _, "" | "type")) | None => None,
            Some(_) => Some((location.origin.clone(), path.clone())),
        });
        let is_derived = match (&of_option, &error) {
            (Some((_, path)), _) => self.lacks_removed(path),
            (None, ConfigError::MissingKey { key, .. }) => self.lacks_removed(&key_path(key)),
            (None, _) => false,
        };
        if is_derived {
            let is_removed = of_option.is_some_and(|(_, path)| self.remove_group(&path));
            return is_removed || self.replace_stage(&kind, &name);
        }
        let Some((origin, path)) = of_option else {
            self.errors.push(error);
            return self.replace_stage(&kind, &name);
        };
        let original = self.original(&origin, &path);
        self.errors.push(error.moved(&original, self.location(&origin, &original)));
        self.remove(&origin, &path, original)
            || self.remove_group(&path)
            || self.replace_stage(&kind, &name)
    }

    /// Removes the options that belong to the one at `path`, which is missing; returns false if there
    /// are none.
    fn remove_group(&mut self, path: &[String]) -> bool {
        let [kind, name, option, ..] = path else { return false };
        let tables = self.set.layers.iter().flat_map(|layer| tables(&layer.values, kind));
        let options = tables.filter(|(table, _)| table == name).flat_map(|(_, table)| table.keys());
        let group: Vec<String> =
            options.filter(|other| group_of(other) == group_of(option)).cloned().collect();
        let mut has_removed = false;
        for other in group {
            has_removed |= self.remove_everywhere(&[kind.clone(), name.clone(), other]);
        }
        has_removed
    }

    /// Adds the settings that are missing and were not removed here.
    fn add_missing(&mut self, error: ConfigError) {
        let ConfigError::Incomplete(mut missing) = error else { return };
        let list = ["pipeline".to_owned(), "sinks".to_owned()];
        if self.removed.iter().any(|(_, path)| path.starts_with(&list)) {
            return;
        }
        missing.missing.retain(|MissingSetting { sink, keys, .. }| {
            let path = |key: &&str| vec!["sink".to_owned(), sink.clone(), (*key).to_owned()];
            !keys.iter().any(|key| self.lacks_removed(&path(key)))
        });
        if !missing.missing.is_empty() {
            self.errors.push(ConfigError::Incomplete(missing));
        }
    }

    /// Returns the kinds and names of replaced stages.
    fn replaced(&self) -> Vec<Vec<String>> {
        let marks = self.removed.iter().filter(|(origin, _)| *origin == LayerOrigin::Defaults);
        marks.map(|(_, path)| path[..2].to_vec()).collect()
    }

    fn was_removed(&self, path: &[String]) -> bool {
        self.removed.iter().any(|(_, removed)| removed.starts_with(path))
            && !self.set.layers.iter().any(|layer| get(&layer.values, path).is_some())
    }

    /// Returns whether the option at `path` is missing in all layers, since it or an option that
    /// belongs to it was removed.
    fn lacks_removed(&self, path: &[String]) -> bool {
        let [kind, name, option, ..] = path else { return false };
        let is_there = self.set.layers.iter().any(|layer| get(&layer.values, path).is_some());
        !is_there
            && self.removed.iter().any(|(_, removed)| match removed.as_slice() {
                [of, stage, other, ..] => {
                    of == kind && stage == name && group_of(other) == group_of(option)
                }
                _ => false,
            })
    }

    /// Returns the path with the indexes that list items had before others were removed.
    fn original(&self, origin: &LayerOrigin, path: &[String]) -> Vec<String> {
        let Some((last, list)) = path.split_last() else { return path.to_owned() };
        let Ok(mut index) = last.parse::<usize>() else { return path.to_owned() };
        let items = self.removed.iter().filter(|(of, removed)| {
            of == origin && removed.len() == path.len() && removed.starts_with(list)
        });
        let mut items: Vec<usize> =
            items.filter_map(|(_, removed)| removed.last()?.parse().ok()).collect();
        items.sort_unstable();
        for removed in items {
            index += usize::from(removed <= index);
        }
        [list, &[index.to_string()]].concat()
    }

    fn location(&self, origin: &LayerOrigin, path: &[String]) -> Location {
        let layer = self.set.layers.iter().find(|layer| layer.origin == *origin);
        layer.map_or_else(|| origin.clone().into(), |layer| layer.location(path))
    }

    fn remove(&mut self, origin: &LayerOrigin, path: &[String], original: Vec<String>) -> bool {
        let layer = self.set.layers.iter_mut().find(|layer| layer.origin == *origin);
        let text = layer.as_ref().and_then(|layer| get(&layer.values, path)?.as_str());
        if let Some(text) = text {
            self.texts.push((origin.clone(), key_text(&original), text.to_owned()));
        }
        let is_removed = layer.is_some_and(|layer| {
            *origin != LayerOrigin::Defaults && remove(&mut layer.values, path)
        });
        if is_removed {
            self.removed.push((origin.clone(), original));
        }
        is_removed
    }

    /// Removes a value from all layers but the defaults; returns false if none has it.
    fn remove_everywhere(&mut self, path: &[String]) -> bool {
        let own = |layer: &&mut Layer| layer.origin != LayerOrigin::Defaults;
        let layers = self.set.layers.iter_mut().filter(own);
        let mut has_removed = false;
        for layer in layers {
            if remove(&mut layer.values, path) {
                has_removed = true;
                self.removed.push((layer.origin.clone(), path.to_owned()));
            }
        }
        has_removed
    }

    fn is_replaced(&self, kind: &str, name: &str) -> bool {
        self.removed.contains(&replacement_mark(kind, name))
    }

    /// Replaces a stage by one of a type that needs no options; returns false if it is replaced
    /// already.
    fn replace_stage(&mut self, kind: &str, name: &str) -> bool {
        if self.is_replaced(kind, name) {
            return false;
        }
        self.remove_everywhere(&[kind.to_owned(), name.to_owned()]);
        self.removed.push(replacement_mark(kind, name));
        let harmless = match kind {
            "source" => "claude-sessions",
            "filter" => "ignore-types",
            "enricher" => "host",
            _ => "stdout",
        };
        let is_default = kind == "filter" && BUILT_IN_FILTERS.contains(&name);
        if is_kebab_case(name)
            && !is_default
            && let Some(layer) = self.set.layers.last_mut()
        {
            insert(&mut layer.values, &format!("{kind}.{name}.type"), harmless.into());
        }
        true
    }
}

/// Returns the removed value that stands for a replaced stage.
fn replacement_mark(kind: &str, name: &str) -> (LayerOrigin, Vec<String>) {
    (LayerOrigin::Defaults, [kind, name, "type"].map(str::to_owned).to_vec())
}

/// Returns kind and name of the stage that a path leads to, and the option or an empty text.
fn stage_of(path: &[String]) -> Option<(String, String, &str)> {
    let [kind, name, option @ ..] = path else { return None };
    let option = option.first().map_or("", String::as_str);
    KINDS.contains(&&**kind).then(|| (kind.clone(), name.clone(), option))
}

/// Returns what an option belongs to: one that needs another is not wrong because that was removed.
fn group_of(option: &str) -> &str {
    let option = option.strip_suffix("_file").unwrap_or(option);
    match option {
        "client_certificate" | "client_key" => "client",
        "proxy_user" | "proxy_password" => "proxy",
        other => other,
    }
}

/// Returns the number of values in a table and in the tables below it.
fn count(values: &Dict) -> usize {
    let below = |value: &Value| value.as_dict().map_or(1, |table| 1 + count(table));
    values.values().map(below).sum()
}

fn get<'a>(values: &'a Dict, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = values.get(first)?;
    rest.iter().try_fold(value, |value, part| super::merged::step(value, part))
}

/// Removes the value at `path`; returns false if there is none.
fn remove(values: &mut Dict, path: &[String]) -> bool {
    let Some((last, above)) = path.split_last() else { return false };
    let Some((first, above)) = above.split_first() else { return values.remove(last).is_some() };
    let table = values.get_mut(first);
    let table = above.iter().try_fold(table, |value, part| {
        Some(match value? {
            Value::Dict(_, dict) => dict.get_mut(part),
            Value::Array(_, items) => part.parse::<usize>().ok().and_then(|at| items.get_mut(at)),
            _ => None,
        })
    });
    match table.flatten() {
        Some(Value::Dict(_, dict)) => dict.remove(last).is_some(),
        Some(Value::Array(_, items)) => match last.parse::<usize>() {
            Ok(at) if at < items.len() => {
                items.remove(at);
                true
            }
            _ => false,
        },
        _ => false,
    }
}

impl ConfigError {
    /// Returns the location and the path of the value that the error is about.
    fn place(&self) -> Option<(&Location, Vec<String>)> {
        match self {
            Self::UnknownKey { key, location, .. } | Self::Value { key, location, .. } => {
                Some((location, key_path(key)))
            }
            _ => None,
        }
    }

    /// Returns the error with another key and location of its value.
    fn moved(self, path: &[String], to: Location) -> Self {
        match self {
            Self::Value { key, problem, location } => {
                let is_same = key_path(&key) == path;
                let location = if is_same { location } else { to };
                Self::Value { key: key_text(path), location, problem }
            }
            other => other,
        }
    }

    /// Returns whether the values of a whole layer are not known.
    fn hides_a_layer(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Syntax { .. })
    }
}
