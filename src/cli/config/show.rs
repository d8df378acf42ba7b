//! `ai-agent config show`.

use std::path::Path;

use clap::Args;
use serde_json::{Value, json};

use super::values::{inline, refuse_mistakes};
use crate::{
    cli::{context::CliContext, failure::Failure, output::print},
    config::{ConfigValue, Location},
};

#[derive(Args)]
pub(super) struct Arguments {
    /// Show the origin of each value: layer, file and line, variable or managed revision
    #[arg(long)]
    origin: bool,
    /// Print one JSON object, or with `--origin` one per value
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let cli = CliContext::new(explicit)?;
        let loaded = cli.load_in_force()?;
        refuse_mistakes(&cli, &loaded)?;
        let shown = loaded.effective_values();
        match (self.json, self.origin) {
            (false, origin) => as_toml(&shown, origin),
            (true, false) => print(format_args!("{:#}", as_json(&shown))),
            (true, true) => shown.iter().try_for_each(|it| {
                let mut line = json!({ "key": it.key(), "value": it.value });
                if let (Value::Object(line), Value::Object(location)) =
                    (&mut line, origin(&it.location))
                {
                    line.extend(location);
                }
                print(format_args!("{line}"))
            }),
        }
    }
}

fn as_toml(shown: &[ConfigValue], with_origin: bool) -> Result<(), Failure> {
    let mut table: &[String] = &[];
    let lines: Vec<String> = shown.iter().map(line).collect();
    let width = lines.iter().map(|line| line.chars().count()).filter(|width| *width <= 60).max();
    let width = width.unwrap_or_default();
    for (shown, line) in shown.iter().zip(&lines) {
        let (_, own) = shown.path.split_last().expect("a key has a part");
        if own != table {
            let header: Vec<String> = own.iter().map(|part| key(part)).collect();
            print(format_args!("\n[{}]", header.join(".")))?;
            table = own;
        }
        match with_origin {
            true => print(format_args!("{line:<width$}  # {}", shown.location))?,
            false => print(format_args!("{line}"))?,
        }
    }
    Ok(())
}

fn line(shown: &ConfigValue) -> String {
    let name = shown.path.last().map(|part| key(part)).unwrap_or_default();
    format!("{name} = {}", inline(&shown.value))
}

/// Formats a part of a key, quoted if TOML requires it.
fn key(part: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    match !part.is_empty() && part.chars().all(is_bare) {
        true => part.to_owned(),
        false => toml::Value::from(part).to_string(),
    }
}

fn as_json(shown: &[ConfigValue]) -> Value {
    let mut root = json!({});
    for it in shown {
        let location = it.path.iter().fold(&mut root, |table, part| &mut table[part.as_str()]);
        *location = json!(it.value);
    }
    root
}

pub(super) fn origin(location: &Location) -> Value {
    use crate::config::LayerOrigin;

    let mut origin = json!({ "layer": location.origin.layer() });
    match &location.origin {
        LayerOrigin::Credential(name) => origin["credential"] = json!(name),
        LayerOrigin::Environment(variable) => origin["variable"] = json!(variable),
        LayerOrigin::ServiceVariable(variable, file) => {
            origin["variable"] = json!(variable);
            origin["file"] = json!(file.to_string_lossy());
        }
        LayerOrigin::Managed(revision) => origin["revision"] = json!(revision),
        file => {
            if let Some(path) = file.file() {
                origin["file"] = json!(path.to_string_lossy());
                origin["line"] = json!(location.line);
            }
        }
    }
    origin
}
