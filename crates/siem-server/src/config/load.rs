//! Reading of all layers, and the search for all problems.
//!
//! A value with a problem is removed from its layer, so that the value of a lower layer takes its place,
//! and the rest is checked again. Problems that exist only because a value was removed are not reported.

use std::{
    io,
    path::{Path, PathBuf},
};

use figment::value::Value;
use serde_json::json;

use super::{
    ConfigProblem, DEFAULTS, Origin, Settings, ValueLocation,
    layer::{Layer, merge},
    problem::{explain, hint, key_text},
    schema::{KnownKey, PREFIX, known_keys},
};
use crate::regular_file::read_regular_file;
use config_text::toml_text::{self, ParsedToml};

/// Largest configuration file in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Number of problems after which the search ends.
const MAX_PROBLEMS: usize = 100;

/// Inputs of a configuration besides the defaults, each overriding those before it.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Configuration file.
    pub file: Option<PathBuf>,
    /// True if the file may be absent.
    pub is_file_optional: bool,
    /// Environment variables; those that do not start with `SIEM_SERVER_` are ignored.
    pub variables: Vec<(String, String)>,
    /// Names of the environment variables whose name or value is not UTF-8; others than those that start
    /// with `SIEM_SERVER_` are ignored.
    pub unreadable_variables: Vec<String>,
    /// Keys and values given as arguments, and the argument of each.
    pub arguments: Vec<(String, String, String)>,
}

/// A configuration that was read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub settings: Settings,
    layers: Vec<Layer>,
}

/// Reads the configuration.
///
/// # Errors
/// All problems of all layers.
pub fn load(inputs: &Inputs) -> Result<Loaded, Vec<ConfigProblem>> {
    match load_valid_values(inputs) {
        (Some(loaded), problems) if problems.is_empty() => Ok(loaded),
        (_, problems) => Err(problems),
    }
}

/// Reads the configuration without the values that have problems, and returns all problems. There is none
/// if a file cannot be read.
pub fn load_valid_values(inputs: &Inputs) -> (Option<Loaded>, Vec<ConfigProblem>) {
    let mut search = Search::default();
    search.read(inputs);
    let Some(settings) = search.deserialize() else { return (None, search.problems) };
    if search.lacks_file {
        return (None, search.problems);
    }
    settings.check(&mut Findings { search: &mut search });
    (Some(Loaded { settings, layers: search.layers }), search.problems)
}

impl Loaded {
    /// Returns the location of a dotted key.
    #[must_use]
    pub fn location(&self, key: &str) -> ValueLocation {
        location(&self.layers, &path_of(key))
    }

    /// Creates a problem of the value at a dotted key, found while it was used. `problem` is a predicate.
    #[must_use]
    pub fn problem(&self, code: &'static str, key: &str, problem: &str) -> ConfigProblem {
        ConfigProblem::of_value(code, key.to_owned(), self.location(key), problem)
    }

    /// Returns all keys that have a value: the key, its value as TOML, and its location.
    #[must_use]
    pub fn values(&self) -> Vec<(String, String, ValueLocation)> {
        let keys = known_keys().into_iter();
        keys.filter_map(|known| {
            let path = path_of(&known.key);
            let layer = self.layers.iter().rev().find(|layer| layer.get(&path).is_some())?;
            Some((known.key, text_of(layer.get(&path)?), layer.location(&path)))
        })
        .collect()
    }
}

/// Formats a value as TOML. The syntax of JSON is that of TOML for the values that are used here.
fn text_of(value: &Value) -> String {
    fn convert(value: &Value) -> serde_json::Value {
        match value {
            Value::String(_, text) => json!(text),
            Value::Bool(_, value) => json!(value),
            Value::Num(_, number) => match (number.to_u128(), number.to_i128()) {
                (Some(number), _) => json!(u64::try_from(number).unwrap_or(u64::MAX)),
                (_, Some(number)) => json!(i64::try_from(number).unwrap_or(i64::MIN)),
                _ => json!(number.to_f64()),
            },
            Value::Array(_, items) => items.iter().map(convert).collect(),
            Value::Dict(_, dict) => {
                dict.iter().map(|(key, value)| (key.clone(), convert(value))).collect()
            }
            Value::Char(_, letter) => json!(letter),
            Value::Empty(..) => json!(null),
        }
    }
    convert(value).to_string()
}

/// Layers without the values that had problems.
#[derive(Debug, Default)]
struct Search {
    layers: Vec<Layer>,
    problems: Vec<ConfigProblem>,
    removed: Vec<Vec<String>>,
    /// True if the file cannot be read: values that others need may be in it.
    lacks_file: bool,
}

impl Search {
    fn read(&mut self, inputs: &Inputs) {
        self.add_text(Origin::Defaults, DEFAULTS);
        if let Some(path) = &inputs.file {
            match read_file(path) {
                Ok(text) => self.add_text(Origin::File(path.clone()), &text),
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && inputs.is_file_optional => {}
                Err(error) => {
                    let message = format!(
                        "cannot read the configuration file `{}`: {error} (name it with --config or \
                         {CONFIG_VARIABLE})",
                        path.display()
                    );
                    let location = Origin::File(path.clone()).into();
                    self.add_unreadable("file_unreadable", location, message);
                }
            }
        }
        let keys = known_keys();
        for (name, text) in &inputs.variables {
            self.add_variable(&keys, name, text);
        }
        for name in &inputs.unreadable_variables {
            self.add_unreadable_variable(&keys, name);
        }
        for (argument, key, text) in &inputs.arguments {
            self.add_argument(&keys, argument, key, text);
        }
    }

    fn add_text(&mut self, origin: Origin, text: &str) {
        match toml_text::parse(text) {
            Ok(ParsedToml { values, lines }) => self.layers.push(Layer { origin, values, lines }),
            Err(error) => {
                let location = ValueLocation { origin, line: Some(error.line) };
                let (column, reason) = (error.column, error.problem);
                let message = format!("{location} is not valid TOML, column {column}: {reason}");
                self.add_unreadable("syntax_invalid", location, message);
            }
        }
    }

    fn add_unreadable(&mut self, code: &'static str, location: ValueLocation, message: String) {
        self.lacks_file = true;
        self.problems.push(ConfigProblem { code, key: None, location: Some(location), message });
    }

    fn add_variable(&mut self, keys: &[KnownKey], name: &str, text: &str) {
        if !is_of_a_key(name) {
            return;
        }
        let origin = Origin::Variable(name.to_owned());
        if let Some(known) = keys.iter().find(|known| known.variable() == name) {
            self.layers.push(Layer::of_value(origin, &known.key, known.value(text)));
            return;
        }
        let names: Vec<String> = keys.iter().map(KnownKey::variable).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let message = format!("unknown environment variable `{name}`: {}", hint(name, &names));
        self.add_unknown(None, origin, message);
    }

    /// Adds the problem of a variable that is not text: without its value, another one would be in use.
    fn add_unreadable_variable(&mut self, keys: &[KnownKey], name: &str) {
        if !is_of_a_key(name) {
            return;
        }
        let known = keys.iter().find(|known| known.variable() == name);
        let key = known.map(|known| known.key.clone());
        let location = ValueLocation::from(Origin::Variable(name.to_owned()));
        let message = format!("{location} is not valid UTF-8");
        let location = Some(location);
        self.problems.push(ConfigProblem { code: "variable_unreadable", key, location, message });
    }

    fn add_argument(&mut self, keys: &[KnownKey], argument: &str, key: &str, text: &str) {
        let origin = Origin::Argument(argument.to_owned());
        if let Some(known) = keys.iter().find(|known| known.key == key) {
            self.layers.push(Layer::of_value(origin, &known.key, known.value(text)));
            return;
        }
        let names: Vec<&str> = keys.iter().map(|known| known.key.as_str()).collect();
        let hint = hint(key, &names);
        let message = format!("unknown key `{key}` in the argument `{argument}`: {hint}");
        self.add_unknown(Some(key.to_owned()), origin, message);
    }

    fn add_unknown(&mut self, key: Option<String>, origin: Origin, message: String) {
        let location = Some(origin.into());
        self.problems.push(ConfigProblem { code: "key_unknown", key, location, message });
    }

    /// Deserializes the layers, without the values that have another type than their keys.
    fn deserialize(&mut self) -> Option<Settings> {
        while self.problems.len() < MAX_PROBLEMS {
            let error = match merge(&self.layers).extract::<Settings>() {
                Ok(settings) => return Some(settings),
                Err(error) => error,
            };
            let mut is_removed = false;
            // Each error is about another value.
            for error in error {
                let path = error.path;
                let location = location(&self.layers, &path);
                let removed = self.remove(&path);
                let is_derived = self.removed.iter().any(|removed| removed.starts_with(&path));
                if removed.is_some() || !is_derived {
                    self.problems.push(explain(&path, location, error.kind));
                }
                if let Some(removed) = removed {
                    self.removed.push(removed);
                    is_removed = true;
                }
            }
            if !is_removed {
                return None;
            }
        }
        None
    }

    /// Removes a value, or the list that it is in, from the highest layer that has it. Returns the path
    /// of what was removed; `None` if only the defaults have it.
    fn remove(&mut self, path: &[String]) -> Option<Vec<String>> {
        let is_item = |part: &String| part.parse::<usize>().is_ok();
        let length = path.iter().position(is_item).unwrap_or(path.len());
        let path = &path[..length];
        let layer = self.layers.iter_mut().skip(1).rev().find(|layer| layer.get(path).is_some())?;
        layer.remove(path).then(|| path.to_owned())
    }
}

/// Collects the problems that the tables find.
#[derive(Debug)]
pub(crate) struct Findings<'a> {
    search: &'a mut Search,
}

impl Findings<'_> {
    /// Adds a problem of the values at dotted keys, the first of which is named. `problem` is a predicate
    /// that says what is wrong, and how to fix it. Ignored if one of the values had another problem.
    pub(crate) fn add(&mut self, keys: &[&str], problem: &str) {
        let paths: Vec<_> = keys.iter().map(|key| path_of(key)).collect();
        // A whole table may have been removed.
        let is_removed = |path: &Vec<String>| {
            self.search.removed.iter().any(|removed| path.starts_with(removed))
        };
        if paths.iter().any(is_removed) {
            return;
        }
        let Some(path) = paths.first() else { return };
        let location = location(&self.search.layers, path);
        let problem = ConfigProblem::of_value("value_invalid", key_text(path), location, problem);
        self.search.problems.push(problem);
    }

    /// Adds a problem if the value at `key` is not in `range`; `expected` names the range.
    pub(crate) fn expect(&mut self, key: &str, is_valid: bool, expected: &str) {
        if !is_valid {
            self.add(&[key], &format!("is out of range, expected {expected}"));
        }
    }
}

/// Returns the location of the value at `path`, or of the nearest table above it, in the highest layer
/// that has it.
fn location(layers: &[Layer], path: &[String]) -> ValueLocation {
    for length in (1..=path.len()).rev() {
        let part = &path[..length];
        if let Some(layer) = layers.iter().rev().find(|layer| layer.get(part).is_some()) {
            return layer.location(path);
        }
    }
    Origin::Defaults.into()
}

fn path_of(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

fn read_file(path: &Path) -> io::Result<String> {
    let bytes = read_regular_file(path, MAX_FILE_BYTES)?;
    String::from_utf8(bytes).map_err(|_| io::Error::other("not UTF-8"))
}

/// Variable that names the configuration file.
const CONFIG_VARIABLE: &str = "SIEM_SERVER_CONFIG";

/// Returns whether a variable sets a key, if there is one of this name.
fn is_of_a_key(name: &str) -> bool {
    name.starts_with(PREFIX) && name != CONFIG_VARIABLE && !is_service_link(name)
}

/// Returns whether Kubernetes sets the variable, for a service that is called `siem-server`.
fn is_service_link(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).unwrap_or_default();
    rest == "PORT" || rest.starts_with("PORT_") || rest.starts_with("SERVICE_")
}
