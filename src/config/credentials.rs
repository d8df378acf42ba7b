//! Secrets that systemd hands to a unit: files in `$CREDENTIALS_DIRECTORY`.
//!
//! One is named after what it gives, `ai-agent.siem.token` for `[sink.siem]`, and counts as the file
//! that `token_file` names: the same rules, the same errors. Whatever else says it is above it.
//! <https://systemd.io/CREDENTIALS/>

use std::{fs, io, path::Path};

use figment::value::Dict;

use super::{
    LayerOrigin, did_you_mean,
    layer::{Layer, insert},
};
use crate::platform::Environment;

/// The variable that names their directory.
const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// What the agent's begin with: a unit may have others.
const PREFIX: &str = "ai-agent.";
/// How they end, and the option that they set.
const SECRETS: [(&str, &str); 3] = [
    ("token", "token_file"),
    ("hmac-secret", "hmac_secret_file"),
    ("proxy-password", "proxy_password_file"),
];

/// Whether this process was given a directory of them.
pub(super) fn are_given(environment: &Environment) -> bool {
    environment.get(DIRECTORY).is_some()
}

/// The name of the one that gives `option` of `[sink.SINK]` as a file.
pub(super) fn name(sink: &str, option: &str) -> Option<String> {
    let (ending, _) = SECRETS.iter().find(|(_, known)| *known == option)?;
    Some(format!("{PREFIX}{sink}.{ending}"))
}

/// One layer for each that is there for one of `sinks`, so that an error names it.
pub(super) fn read(
    environment: &Environment,
    sinks: &[String],
    warnings: &mut Vec<String>,
) -> Vec<Layer> {
    let Some(directory) = environment.get(DIRECTORY).map(Path::new) else { return Vec::new() };
    let names = match names_in(directory) {
        Ok(names) => names,
        Err(error) => {
            warnings.push(format!(
                "the systemd credentials in `{}` cannot be read: {error}",
                directory.display()
            ));
            return Vec::new();
        }
    };
    let known: Vec<(String, String)> = sinks
        .iter()
        .flat_map(|sink| SECRETS.map(|(_, option)| (sink, option)))
        .filter_map(|(sink, option)| Some((name(sink, option)?, format!("sink.{sink}.{option}"))))
        .collect();
    let mut layers = Vec::new();
    for name in names {
        let path = directory.join(&name);
        match (known.iter().find(|(known, _)| *known == name), path.to_str()) {
            (Some((_, key)), Some(path)) => {
                let mut values = Dict::new();
                insert(&mut values, key, path.into());
                layers.push(Layer::new(LayerOrigin::Credential(name), values));
            }
            _ => warnings.push(unknown(&name, &known)),
        }
    }
    layers
}

/// The agent's own, in the order of their names.
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
    // What all of them begin with makes none of them likely.
    let own = |name: &'_ str| name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let names: Vec<String> = known.iter().map(|(name, _)| own(name)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let hint = match did_you_mean(&own(name), &names) {
        Some(near) => format!("did you mean `{PREFIX}{near}`?"),
        None => {
            let [(one, _), (other, _), (third, _)] = SECRETS;
            format!(
                "its name is `{PREFIX}SINK.{one}`, `.{other}` or `.{third}`, where SINK is a sink \
                 of type `{}`",
                super::HTTP_SIEM
            )
        }
    };
    format!("the systemd credential `{name}` has no effect: {hint}")
}
