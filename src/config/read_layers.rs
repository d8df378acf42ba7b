//! Reading of all layers, in the order in which they override each other.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use figment::value::{Dict, Value};
use siem_protocol::{Digest, agent_event::LayerHash, managed::STAGE_KINDS};

use super::{
    credentials,
    error::{ConfigError, did_you_mean},
    hashes,
    inline_tests::{self, InlineTest},
    inputs::ConfigInputs,
    layer::{Layer, insert, tables},
    locks::{LockedOverride, Locks},
    managed::{ManagedAllowlist, ManagedSettings},
    on_error::OnError,
    origin::{LayerOrigin, Location},
    pipeline::{BUILT_IN_FILTERS, KINDS},
    sink::{HTTP_SIEM, has_option},
    warning::ConfigWarning,
};
use crate::platform::{Environment, PROXY_VARIABLES, call_scope::in_scope, file};
use config_text::toml_text::{self, ParsedToml};

/// Maximum size of a configuration file. Its parser takes up to 70 bytes of memory for each byte.
pub(super) const MAX_FILE_BYTES: u64 = 1 << 20;

/// Built-in configuration.
pub(super) const DEFAULTS: &str = include_str!("../../config/default.toml");

/// Environment variables that set a value, with their keys.
pub(super) const VARIABLES: [(&str, &str); 5] = [
    ("CLAUDE_SIEM_ENDPOINT", "sink.siem.endpoint"),
    ("CLAUDE_SIEM_TOKEN", "sink.siem.token"),
    ("CLAUDE_SIEM_HMAC_SECRET", "sink.siem.hmac_secret"),
    ("CLAUDE_SIEM_ENROLL_TOKEN", "sink.siem.enroll_token"),
    ("CLAUDE_SIEM_POLL_INTERVAL", "agent.poll_interval"),
];

/// Layers after locked and unused values were removed.
#[derive(Clone)]
pub(super) struct LayerSet {
    /// Layers in the order in which they override each other.
    pub(super) layers: Vec<Layer>,
    /// Locked keys.
    pub(super) locks: Locks,
    /// Values that were ignored because their key is locked.
    pub(super) locked_overrides: Vec<LockedOverride>,
    /// Tests of every layer.
    pub(super) tests: Vec<InlineTest>,
    /// Hash of each layer, as it was read.
    pub(super) hashes: Vec<LayerHash>,
    /// Tables of stages that were left out, since a higher layer sets another type.
    pub(super) retyped: Vec<(Vec<String>, Location)>,
}

/// Reads the files of layers, each once, and identifies their contents.
#[derive(Default)]
pub(super) struct LayerReader {
    /// Paths and digests of the files that were read.
    contents: Vec<u8>,
}

/// Reads every layer that exists.
pub(super) fn read(
    inputs: &ConfigInputs,
    reader: &mut LayerReader,
    warnings: &mut Vec<ConfigWarning>,
    on_error: &mut OnError<'_>,
) -> Result<LayerSet, ConfigError> {
    let paths = inputs.paths;
    let mut layers = vec![from_text(LayerOrigin::Defaults, DEFAULTS)?];
    let machine = reader.optional(LayerOrigin::Machine(paths.machine_config.clone()));
    layers.extend(on_error.handle(machine)?.flatten());
    for path in on_error.handle(files_of(&paths.machine_config_dir))?.unwrap_or_default() {
        layers.extend(on_error.handle(reader.required(LayerOrigin::Machine(path)))?);
    }
    let user = reader.optional(LayerOrigin::User(paths.user_config.clone()));
    layers.extend(on_error.handle(user)?.flatten());
    if let Some(path) = inputs.explicit {
        let explicit = reader.required(LayerOrigin::Explicit(path.to_owned()));
        layers.extend(on_error.handle(explicit)?);
    }
    let sinks: BTreeSet<&str> = layers
        .iter()
        .flat_map(|layer| tables(&layer.values, "sink").map(|(name, _)| name))
        .collect();
    let with_type =
        |name: &str| Some((name.to_owned(), type_in(&layers, "sink", name)?.to_owned()));
    let sinks: Vec<(String, String)> = sinks.into_iter().filter_map(with_type).collect();
    // Credentials override the defaults only.
    layers.splice(1..1, credentials::read(inputs.environment, &sinks, warnings));
    let environment = from_environment(inputs.environment, warnings, on_error)?;
    merge_layers(layers, environment, inputs.managed, warnings, on_error)
}

/// Reads `files` as the only files of a machine.
pub(super) fn read_files(
    files: &[PathBuf],
    managed: Option<&ManagedSettings>,
    warnings: &mut Vec<ConfigWarning>,
    on_error: &mut OnError<'_>,
) -> Result<LayerSet, ConfigError> {
    let mut layers = vec![from_text(LayerOrigin::Defaults, DEFAULTS)?];
    let mut reader = LayerReader::default();
    for path in files {
        let file = reader.required(LayerOrigin::Machine(path.clone()));
        layers.extend(on_error.handle(file)?);
    }
    merge_layers(layers, Vec::new(), managed, warnings, on_error)
}

fn merge_layers(
    mut layers: Vec<Layer>,
    environment: Vec<Layer>,
    managed: Option<&ManagedSettings>,
    warnings: &mut Vec<ConfigWarning>,
    on_error: &mut OnError<'_>,
) -> Result<LayerSet, ConfigError> {
    let mut hashes = hashes::of_layers(layers.iter().chain(&environment));
    let locks = Locks::read(&layers);
    let mut locked_overrides = Vec::new();
    for layer in &mut layers {
        locked_overrides.extend(locks.enforce(layer));
    }
    let sends = type_in(&layers, "sink", "siem") == Some(HTTP_SIEM);
    for mut layer in environment {
        if sends || !layer.values.contains_key("sink") {
            locked_overrides.extend(locks.enforce(&mut layer));
            layers.push(layer);
        } else {
            let origin = layer.origin;
            let message =
                format!("{origin} has no effect: the sink `siem` is not of type `{HTTP_SIEM}`");
            let warning = ConfigWarning::new("variable_without_effect", message);
            warnings.push(warning.about("sink.siem.type", origin.into()));
        }
    }
    if let Some(managed) = managed {
        let mut layer = managed.layer(&ManagedAllowlist::read(&layers), on_error)?;
        hashes.extend(hashes::of_layers([&layer]));
        locked_overrides.extend(locks.enforce(&mut layer));
        append_new_stages(&mut layer, &layers, &locks);
        layers.push(layer);
    }
    let mut tests = Vec::new();
    for layer in &mut layers {
        for test in inline_tests::extract(layer) {
            tests.extend(on_error.handle(test)?);
        }
    }
    let retyped = remove_options_of_other_types(&mut layers);
    warnings.extend(locked_overrides.iter().map(LockedOverride::warning));
    Ok(LayerSet { layers, locks, locked_overrides, tests, hashes, retyped })
}

/// Appends stages that only the server defines to the lists of this machine, sorted by name.
fn append_new_stages(managed: &mut Layer, below: &[Layer], locks: &Locks) {
    for kind in STAGE_KINDS {
        let list = format!("{kind}s");
        if locks.refusal(&managed.origin, &["pipeline".to_owned(), list.clone()]).is_some() {
            continue;
        }
        let in_list = |layer: &Layer| {
            layer.values.get("pipeline")?.as_dict()?.get(&list)?.as_array().map(<[Value]>::to_vec)
        };
        let Some(mut names) = below.iter().rev().find_map(in_list) else { continue };
        let is_known = |name: &str| {
            names.iter().any(|listed| listed.as_str() == Some(name))
                || BUILT_IN_FILTERS.contains(&name)
                || below.iter().any(|layer| tables(&layer.values, kind).any(|(it, _)| it == name))
        };
        let new = tables(&managed.values, kind).map(|(name, _)| name.to_owned());
        let new: Vec<String> = new.filter(|name| !is_known(name)).collect();
        if !new.is_empty() {
            names.extend(new.into_iter().map(Value::from));
            insert(&mut managed.values, &format!("pipeline.{list}"), names.into());
        }
    }
}

/// Returns the TOML files of a directory, sorted by name. Hidden files are skipped: editors create
/// them.
pub(super) fn files_of(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let of_call = dir.to_owned();
    match in_scope(dir, move || list(&of_call)) {
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        listed => listed.map_err(|source| ConfigError::Read {
            origin: LayerOrigin::Machine(dir.to_owned()),
            source,
        }),
    }
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

impl LayerReader {
    /// Returns a digest of the files that were read so far, with their paths.
    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.contents)
    }

    fn optional(&mut self, origin: LayerOrigin) -> Result<Option<Layer>, ConfigError> {
        match self.required(origin) {
            Err(ConfigError::Read { source, .. }) if is_absent(&source) => Ok(None),
            layer => layer.map(Some),
        }
    }

    fn required(&mut self, origin: LayerOrigin) -> Result<Layer, ConfigError> {
        match self.text(origin.file().unwrap_or(Path::new(""))) {
            Ok(text) => from_text(origin, &text),
            Err(source) => Err(ConfigError::Read { origin, source }),
        }
    }

    fn text(&mut self, path: &Path) -> io::Result<String> {
        let bytes = file::read_bounded(path, MAX_FILE_BYTES);
        let digest = bytes.as_deref().map(Digest::of).unwrap_or_default();
        self.contents.extend_from_slice(path.as_os_str().as_encoded_bytes());
        self.contents.extend_from_slice(digest.as_bytes());
        String::from_utf8(bytes?).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }
}

fn from_text(origin: LayerOrigin, text: &str) -> Result<Layer, ConfigError> {
    match toml_text::parse(text) {
        Ok(ParsedToml { values, lines }) => Ok(Layer { origin, values, lines }),
        Err(syntax) => Err(ConfigError::Syntax { origin, syntax }),
    }
}

/// Returns one layer for each variable, so that an error can name the variable.
fn from_environment(
    environment: &Environment,
    warnings: &mut Vec<ConfigWarning>,
    on_error: &mut OnError<'_>,
) -> Result<Vec<Layer>, ConfigError> {
    const PREFIX: &str = "CLAUDE_SIEM_";
    let known = VARIABLES.map(|(name, _)| &name[PREFIX.len()..]);
    for name in environment.names().filter_map(|name| name.strip_prefix(PREFIX)) {
        if !known.contains(&name) {
            let hint = did_you_mean(name, &known)
                .map_or(String::new(), |known| format!(": did you mean `{PREFIX}{known}`?"));
            warnings.push(ConfigWarning::new(
                "variable_unknown",
                format!("the environment variable `{PREFIX}{name}` is unknown{hint}"),
            ));
        }
    }
    for name in environment.unreadable_names() {
        let proxy = PROXY_VARIABLES.into_iter().find(|known| *known == name);
        let location = proxy.map(|name| Location::from(LayerOrigin::Environment(name)));
        // One that is known is an error below, and another one whose name is text is unknown.
        let is_unnamed = name.starts_with(PREFIX) && environment.names().all(|known| known != name);
        if location.is_some() || is_unnamed {
            let message =
                format!("the environment variable `{name}` is not valid UTF-8 and has no effect");
            let mut warning = ConfigWarning::new("variable_unreadable", message);
            warning.location = location;
            warnings.push(warning);
        }
    }
    let mut layers = Vec::new();
    for (name, key) in VARIABLES {
        let Some(value) = environment.get(name) else { continue };
        let origin = match environment.service_file_of(name) {
            Some(file) => LayerOrigin::ServiceVariable(name, file.to_owned()),
            None => LayerOrigin::Environment(name),
        };
        let Some(value) = value.to_str() else {
            let (key, location) = (key.to_owned(), origin.into());
            let problem = "is not valid UTF-8".to_owned();
            on_error.handle::<()>(Err(ConfigError::Value { key, location, problem }))?;
            continue;
        };
        if !value.trim().is_empty() {
            let mut values = Dict::new();
            insert(&mut values, key, in_seconds(key, value.trim()).into());
            layers.push(Layer::new(origin, values));
        }
    }
    Ok(layers)
}

/// Adds the unit to an interval that is a number: unlike in files, the variable may have none.
fn in_seconds(key: &str, value: &str) -> String {
    let is_number = key.ends_with("_interval") && value.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { format!("{value}s") } else { value.to_owned() }
}

/// Removes the options of a stage that were written for another type than the last layer sets. This
/// makes `[sink.siem] type = "stdout"` valid on its own, although the defaults have options of
/// `http-siem` in this table. A credential is named after an option, and is for any type that has it.
/// Returns the tables that were removed.
fn remove_options_of_other_types(layers: &mut [Layer]) -> Vec<(Vec<String>, Location)> {
    let mut removed = Vec::new();
    for kind in KINDS {
        let names = layers.iter().flat_map(|layer| tables(&layer.values, kind));
        let names: BTreeSet<String> = names.map(|(name, _)| name.to_owned()).collect();
        for name in names {
            let Some(last) = type_in(layers, kind, &name).map(str::to_owned) else { continue };
            let mut in_force = None;
            for layer in &mut *layers {
                let path = [kind.to_owned(), name.clone()];
                let location = layer.location(&path);
                let Some(Value::Dict(_, tables)) = layer.values.get_mut(kind) else { continue };
                let own = tables.get(&name).and_then(|table| type_of(table.as_dict()?));
                in_force = own.map(str::to_owned).or(in_force);
                let is_credential = matches!(layer.origin, LayerOrigin::Credential(_));
                let is_of_type = |table: &Value| {
                    let table = table.as_dict();
                    table.is_some_and(|table| table.keys().all(|option| has_option(&last, option)))
                };
                if in_force.as_ref().is_some_and(|stage| *stage != last)
                    && !(is_credential && tables.get(&name).is_some_and(is_of_type))
                    && tables.remove(&name).is_some()
                {
                    removed.push((path.to_vec(), location));
                }
            }
        }
    }
    removed
}

/// Returns the type that the last layer that sets one gives a stage.
fn type_in<'a>(layers: &'a [Layer], kind: &str, name: &str) -> Option<&'a str> {
    layers.iter().rev().find_map(|layer| {
        let (_, table) = tables(&layer.values, kind).find(|(other, _)| *other == name)?;
        type_of(table)
    })
}

fn type_of(table: &Dict) -> Option<&str> {
    table.get("type")?.as_str()
}
