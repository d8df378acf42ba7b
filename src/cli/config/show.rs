//! `ai-agent config show`.

use std::{path::Path, time::Duration};

use clap::Args;
use serde_json::{Value, json};

use super::values::{inline, refuse_mistakes};
use crate::{
    agent::startable,
    cli::{
        context::CliContext,
        failure::Failure,
        output::{note, print},
    },
    config::{LoadedConfig, ShownValue, key_part},
    control::{self, Connection, Request, Response},
};

/// Longest time that a running agent may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(super) struct Arguments {
    /// Show the origin of each value: layer, file and line, variable or managed revision
    #[arg(long)]
    origin: bool,
    /// Show only values that differ from the built-in defaults, with their origin
    #[arg(long)]
    changed: bool,
    /// Print one JSON object, or with `--origin` or `--changed` one per value
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let cli = CliContext::new(explicit)?;
        let loaded = cli.load_in_force().and_then(|loaded| {
            refuse_mistakes(&cli, &loaded)?;
            Ok(loaded)
        });
        match loaded {
            Ok(loaded) => self.show(loaded.shown_values()),
            Err(error) => self.show_despite(&cli, error),
        }
    }

    /// Shows what is in force although the configuration has errors, and fails with all of them.
    fn show_despite(&self, cli: &CliContext, error: Failure) -> Result<(), Failure> {
        let checked = startable::check(&cli.sources);
        let running = running_agent(cli);
        let without_errors = checked.loaded.as_ref().filter(|loaded| is_safe(cli, loaded));
        let shown = match (running, without_errors) {
            (Some(values), _) => {
                self.explain("in force in the running agent, until the errors are fixed")?;
                values
            }
            (None, Some(loaded)) => {
                self.explain("no agent is running; without the values that have errors")?;
                loaded.shown_values()
            }
            (None, None) => Vec::new(),
        };
        self.show(shown)?;
        match checked.startable() {
            Err(errors) => Err(Failure::usage(errors)),
            Ok(_) => Err(error),
        }
    }

    /// Says which values are shown: in TOML as a comment.
    fn explain(&self, what: &str) -> Result<(), Failure> {
        if self.json {
            note(what);
            return Ok(());
        }
        print(format_args!("# {what}"))
    }

    fn show(&self, mut shown: Vec<ShownValue>) -> Result<(), Failure> {
        if self.changed {
            shown.retain(|shown| shown.is_changed);
        }
        match (self.json, self.origin || self.changed) {
            (false, origin) => as_toml(&shown, origin),
            (true, false) => print(format_args!("{:#}", as_json(&shown))),
            (true, true) => shown.into_iter().try_for_each(|it| {
                let mut line = json!({ "key": it.key(), "value": it.value });
                if let (Value::Object(line), Value::Object(origin)) = (&mut line, it.origin) {
                    line.extend(origin);
                }
                print(format_args!("{line}"))
            }),
        }
    }
}

/// Returns the values in force in the running agent; `None` if none answers.
fn running_agent(cli: &CliContext) -> Option<Vec<ShownValue>> {
    let Ok(Connection::Agent(client)) = control::connect(&cli.state_dir().ok()?) else {
        return None;
    };
    let mut values = None;
    let sent = client.send(&Request::Config, TIMEOUT, &mut |response| {
        if let Response::Config(shown) = response {
            values = Some(shown);
        }
        Ok(())
    });
    sent.ok().and(values)
}

/// Returns whether each option has a known name: one under another name may be a secret. Stages are not
/// checked while a file cannot be read.
fn is_safe(cli: &CliContext, loaded: &LoadedConfig) -> bool {
    refuse_mistakes(cli, loaded).is_ok()
}

fn as_toml(shown: &[ShownValue], with_origin: bool) -> Result<(), Failure> {
    let mut table: &[String] = &[];
    let lines: Vec<String> = shown.iter().map(line).collect();
    let width = lines.iter().map(|line| line.chars().count()).filter(|width| *width <= 60).max();
    let width = width.unwrap_or_default();
    for (shown, line) in shown.iter().zip(&lines) {
        let (_, own) = shown.path.split_last().expect("a key has a part");
        if own != table {
            let header: Vec<String> = own.iter().map(|part| key_part(part)).collect();
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

fn line(shown: &ShownValue) -> String {
    let name = shown.path.last().map(|part| key_part(part)).unwrap_or_default();
    format!("{name} = {}", inline(&shown.value))
}

fn as_json(shown: &[ShownValue]) -> Value {
    let mut root = json!({});
    for it in shown {
        let location = it.path.iter().fold(&mut root, |table, part| &mut table[part.as_str()]);
        *location = json!(it.value);
    }
    root
}
