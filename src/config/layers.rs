//! Where values come from, lowest layer first.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use figment::{
    Figment, Metadata, Profile, Provider,
    value::{Dict, Map, Value},
};
use siem_protocol::ManagedConfig;

use super::{ConfigError, HTTP_SIEM, Inputs, KINDS, did_you_mean};
use crate::platform::Environment;

/// The configuration that the program carries.
pub(super) const DEFAULTS: &str = include_str!("../../config/default.toml");

/// The environment variables that set a value, and the key that they set.
pub(super) const VARIABLES: [(&str, &str); 4] = [
    ("CLAUDE_SIEM_ENDPOINT", "sink.siem.endpoint"),
    ("CLAUDE_SIEM_TOKEN", "sink.siem.token"),
    ("CLAUDE_SIEM_HMAC_SECRET", "sink.siem.hmac_secret"),
    ("CLAUDE_SIEM_POLL_INTERVAL", "agent.poll_interval"),
];

/// Where a value comes from. Reads on after `in`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The program itself.
    Defaults,
    /// A file that an administrator put on the machine.
    Machine(PathBuf),
    /// The user's own file.
    User(PathBuf),
    /// The file that the command line names.
    Explicit(PathBuf),
    /// An environment variable.
    Environment(&'static str),
    /// What the server manages.
    Managed,
}

impl Origin {
    /// The file, if it is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Machine(path) | Self::User(path) | Self::Explicit(path) => Some(path),
            Self::Defaults | Self::Environment(_) | Self::Managed => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Defaults => f.write_str("the built-in defaults"),
            Self::Machine(path) => write!(f, "the machine's file `{}`", path.display()),
            Self::User(path) => write!(f, "the user's file `{}`", path.display()),
            Self::Explicit(path) => write!(f, "the file `{}` of --config", path.display()),
            Self::Environment(name) => write!(f, "the environment variable `{name}`"),
            Self::Managed => f.write_str("the server's managed configuration"),
        }
    }
}

/// The values of one origin.
pub(super) struct Layer {
    pub(super) origin: Origin,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// Reads every layer that is there, lowest first.
pub(super) fn read(inputs: &Inputs, warnings: &mut Vec<String>) -> Result<Vec<Layer>, ConfigError> {
    let paths = inputs.paths;
    let mut layers = vec![from_text(Origin::Defaults, DEFAULTS)?];
    layers.extend(optional(Origin::Machine(paths.machine_config.clone()))?);
    for path in files_of(&paths.machine_config_dir)? {
        layers.push(required(Origin::Machine(path))?);
    }
    layers.extend(optional(Origin::User(paths.user_config.clone()))?);
    if let Some(path) = inputs.explicit {
        layers.push(required(Origin::Explicit(path.to_owned()))?);
    }
    let sends = type_in(&layers, "sink", "siem") == Some(HTTP_SIEM);
    for layer in from_environment(inputs.environment, warnings)? {
        if sends || !layer.values.contains_key("sink") {
            layers.push(layer);
        } else {
            let origin = layer.origin;
            warnings.push(format!("{origin} has no effect: the sink `siem` is no `{HTTP_SIEM}`"));
        }
    }
    layers.extend(inputs.managed.map(from_managed));
    forget_options_of_other_types(&mut layers);
    Ok(layers)
}

/// Merges layers: tables key by key, everything else by the highest.
pub(super) fn merge(layers: &[Layer]) -> Figment {
    layers.iter().fold(Figment::new(), |figment, layer| figment.merge(layer))
}

/// The files of a directory of files, in the order of their names; hidden ones are an editor's.
fn files_of(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Read { origin: Origin::Machine(dir.to_owned()), source };
    let entries = match fs::read_dir(dir) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn optional(origin: Origin) -> Result<Option<Layer>, ConfigError> {
    match required(origin) {
        Err(ConfigError::Read { source, .. }) if is_absent(&source) => Ok(None),
        layer => layer.map(Some),
    }
}

fn required(origin: Origin) -> Result<Layer, ConfigError> {
    match fs::read_to_string(origin.file().unwrap_or(Path::new(""))) {
        Ok(text) => from_text(origin, &text),
        Err(source) => Err(ConfigError::Read { origin, source }),
    }
}

fn from_text(origin: Origin, text: &str) -> Result<Layer, ConfigError> {
    match parse(text) {
        Ok(values) => Ok(Layer { origin, values }),
        Err(syntax) => Err(ConfigError::Syntax { origin, syntax }),
    }
}

/// Reads TOML.
pub(super) fn parse(text: &str) -> Result<Dict, SyntaxError> {
    match text.parse::<toml::Table>() {
        Ok(table) => Ok(dict(table)),
        Err(error) => Err(SyntaxError::new(text, &error)),
    }
}

fn dict(table: toml::Table) -> Dict {
    table.into_iter().map(|(key, item)| (key, value(item))).collect()
}

fn value(item: toml::Value) -> Value {
    match item {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(boolean) => boolean.into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(items) => items.into_iter().map(value).collect::<Vec<_>>().into(),
        toml::Value::Table(table) => dict(table).into(),
    }
}

/// Where and why a text is no TOML. It does not quote the text, which may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct SyntaxError {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong there.
    pub problem: String,
}

impl SyntaxError {
    fn new(text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = &text.as_bytes()[..start];
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let characters = before[line_start..].iter().filter(|b| (**b & 0xc0) != 0x80).count();
        Self {
            line: 1 + before.iter().filter(|b| **b == b'\n').count(),
            column: 1 + characters,
            problem: error.message().to_owned(),
        }
    }
}

/// One layer for each variable, so that an error names it.
fn from_environment(
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<Vec<Layer>, ConfigError> {
    const PREFIX: &str = "CLAUDE_SIEM_";
    let known = VARIABLES.map(|(name, _)| &name[PREFIX.len()..]);
    for name in environment.names().filter_map(|name| name.strip_prefix(PREFIX)) {
        if !known.contains(&name) {
            let hint = did_you_mean(name, &known)
                .map_or(String::new(), |known| format!(": did you mean `{PREFIX}{known}`?"));
            warnings.push(format!("the environment variable `{PREFIX}{name}` is unknown{hint}"));
        }
    }
    let mut layers = Vec::new();
    for (name, key) in VARIABLES {
        let Some(value) = environment.get(name) else { continue };
        let origin = Origin::Environment(name);
        let Some(value) = value.to_str() else {
            let problem = "is not valid UTF-8".to_owned();
            return Err(ConfigError::Value { key: key.to_owned(), origin, problem });
        };
        if !value.trim().is_empty() {
            let mut values = Dict::new();
            insert(&mut values, key, value.trim().into());
            layers.push(Layer { origin, values });
        }
    }
    Ok(layers)
}

/// What the server manages, under the keys that the files use.
///
/// Compliance, tables of stages and tests of the managed configuration are not taken yet.
fn from_managed(managed: &ManagedConfig) -> Layer {
    let filters = managed.filters.clone().unwrap_or_default();
    let shipping = managed.shipping.clone().unwrap_or_default();
    let seconds = |seconds: u64| Value::from(format!("{seconds}s"));
    let pairs = [
        ("filter.ignore-types.types", filters.ignore_types.map(Value::from)),
        ("filter.sidechain.enabled", filters.drop_sidechain.map(Value::from)),
        ("filter.meta.enabled", filters.drop_meta.map(Value::from)),
        ("filter.tool-call.enabled", filters.drop_tool_calls.map(Value::from)),
        ("shipping.batch_size", shipping.batch_size.map(Value::from)),
        ("shipping.flush_interval", shipping.flush_interval_seconds.map(seconds)),
    ];
    let mut values = Dict::new();
    for (key, value) in pairs {
        if let Some(value) = value {
            insert(&mut values, key, value);
        }
    }
    Layer { origin: Origin::Managed, values }
}

/// Inserts `value` under a dotted key.
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

/// Where layers differ about a stage's type, the highest decides, and what others said for another
/// type is forgotten: `[sink.siem] type = "stdout"` alone is right, though the defaults have
/// options for the `http-siem` that it was.
fn forget_options_of_other_types(layers: &mut [Layer]) {
    for kind in KINDS {
        let names = layers.iter().flat_map(|layer| tables(&layer.values, kind));
        let names: BTreeSet<String> = names.map(|(name, _)| name.to_owned()).collect();
        for name in names {
            let Some(last) = type_in(layers, kind, &name).map(str::to_owned) else { continue };
            let mut in_force = None;
            for layer in &mut *layers {
                let Some(Value::Dict(_, tables)) = layer.values.get_mut(kind) else { continue };
                let own = tables.get(&name).and_then(|table| type_of(table.as_dict()?));
                in_force = own.map(str::to_owned).or(in_force);
                if in_force.as_ref().is_some_and(|stage| *stage != last) {
                    tables.remove(&name);
                }
            }
        }
    }
}

fn tables<'a>(values: &'a Dict, kind: &str) -> impl Iterator<Item = (&'a str, &'a Dict)> {
    let tables = values.get(kind).and_then(Value::as_dict).into_iter().flatten();
    tables.filter_map(|(name, table)| Some((name.as_str(), table.as_dict()?)))
}

/// The type that the highest of `layers` that says so gives a stage.
fn type_in<'a>(layers: &'a [Layer], kind: &str, name: &str) -> Option<&'a str> {
    layers.iter().rev().find_map(|layer| {
        let (_, table) = tables(&layer.values, kind).find(|(other, _)| *other == name)?;
        type_of(table)
    })
}

fn type_of(table: &Dict) -> Option<&str> {
    table.get("type")?.as_str()
}
