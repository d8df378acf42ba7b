//! Secrets passed by systemd: files in `$CREDENTIALS_DIRECTORY`.
//!
//! A credential is named after the option that it sets: `ai-agent.siem.token` stands for
//! `token_file` of `[sink.siem]`, with the same rules and errors. Every other layer overrides it.
//! <https://systemd.io/CREDENTIALS/>

use std::{fs, io, path::Path};

use figment::value::Dict;

use super::{
    error::did_you_mean,
    layer::{Layer, insert},
    origin::LayerOrigin,
    sink::{SECRETS, has_option},
    warning::ConfigWarning,
};
use crate::platform::{Environment, call_scope::in_scope};

/// Variable that names the directory.
const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// Prefix of the agent's credentials; a unit may have others.
const PREFIX: &str = "ai-agent.";

/// Returns whether systemd passed a credential directory to this process.
pub(super) fn are_given(environment: &Environment) -> bool {
    environment.get(DIRECTORY).is_some()
}

/// Returns the name of the credential that sets `option` of `[sink.SINK]`.
pub(super) fn name(sink: &str, option: &str) -> Option<String> {
    let secret = SECRETS.iter().find(|secret| secret.file == option)?;
    Some(format!("{PREFIX}{sink}.{}", secret.credential))
}

/// Returns one layer for each credential of `sinks`, which are names and types, so that an error can
/// name the credential.
pub(super) fn read(
    environment: &Environment,
    sinks: &[(String, String)],
    warnings: &mut Vec<ConfigWarning>,
) -> Vec<Layer> {
    let Some(directory) = environment.get(DIRECTORY).map(Path::new) else { return Vec::new() };
    let of_call = directory.to_owned();
    let names = match in_scope(directory, move || names_in(&of_call)) {
        Ok(names) => names,
        Err(error) => {
            let message = format!(
                "cannot read the systemd credentials in `{}`: {error}",
                directory.display()
            );
            warnings.push(ConfigWarning::new("credentials_unreadable", message));
            return Vec::new();
        }
    };
    let mut known = Vec::new();
    for (sink, stage) in sinks {
        let options = SECRETS.iter().map(|secret| secret.file);
        for option in options.filter(|option| has_option(stage, option)) {
            let key = format!("sink.{sink}.{option}");
            known.extend(name(sink, option).map(|name| (name, key)));
        }
    }
    let mut layers = Vec::new();
    for name in names {
        let path = directory.join(&name);
        match (known.iter().find(|(known, _)| *known == name), path.to_str()) {
            (Some((_, key)), Some(path)) => {
                let mut values = Dict::new();
                insert(&mut values, key, path.into());
                layers.push(Layer::new(LayerOrigin::Credential(name), values));
            }
            _ => {
                let message = unknown(&name, &known);
                warnings.push(ConfigWarning::new("credential_without_effect", message));
            }
        }
    }
    layers
}

/// Returns the names of the agent's credentials, sorted.
fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        names.extend(name.to_str().filter(|name| name.starts_with(PREFIX)).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn unknown(name: &str, known: &[(String, String)]) -> String {
    // The common prefix would make every name look similar.
    let own = |name: &'_ str| name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let names: Vec<String> = known.iter().map(|(name, _)| own(name)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let hint = match did_you_mean(&own(name), &names) {
        Some(near) => format!("did you mean `{PREFIX}{near}`?"),
        None => {
            let secrets = SECRETS.map(|secret| format!("`.{}`", secret.credential)).join(", ");
            format!(
                "the name must be `{PREFIX}SINK` and one of {secrets}, where SINK is a sink with \
                 that secret"
            )
        }
    };
    format!("the systemd credential `{name}` has no effect: {hint}")
}
