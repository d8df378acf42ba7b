//! `ai-agent config`: what is in force, where it comes from, and what is wrong with it. None of it
//! needs a server, a secret or the store, and all of it works while an agent runs.

mod check;
mod explain;
mod init;
mod show;
mod try_out;

use std::path::Path;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Failure, print, setup::Surroundings};
use crate::{
    config::{self, LoadedConfig, StageSchema},
    pipeline::assembly,
    stages,
};

/// Shows, explains and checks the configuration.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Prints what is in force, all layers merged, with `***` for secrets.
    Show(show::Arguments),
    /// Says where a value comes from, what it overrides, and who may change it.
    Explain(explain::Arguments),
    /// Says what is wrong with the configuration, or with files that are to be rolled out.
    Check(check::Arguments),
    /// Shows what another configuration would do to the sessions on this machine.
    Try(try_out::Arguments),
    /// Prints a JSON Schema of the configuration file, with every stage that this program has.
    Schema,
    /// Writes a file with every option as a comment, to begin with.
    Init(init::Arguments),
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        match &self.action {
            Action::Show(show) => show.execute(explicit),
            Action::Explain(explain) => explain.execute(explicit),
            Action::Check(check) => check.execute(explicit),
            Action::Try(candidate) => candidate.execute(explicit),
            Action::Schema => print(format_args!("{:#}", schema())),
            Action::Init(init) => init.execute(),
        }
    }
}

/// The schema of a file for this program, with its own stages.
fn schema() -> Value {
    let stages = stages::all().into_iter().map(|stage| StageSchema {
        kind: stage.kind.as_str(),
        name: stage.name,
        summary: stage.summary,
        options: stage.schema(),
    });
    config::schema(&stages.collect::<Vec<_>>())
}

/// Refuses to show values of a configuration that is wrong: under a misspelt key a secret is not
/// known for one.
fn refuse_wrong(surroundings: &Surroundings, loaded: &LoadedConfig) -> Result<(), Failure> {
    let context = surroundings.context(loaded, None, true);
    let wrong = assembly::check(loaded, &context).into_iter().next();
    wrong.map_or(Ok(()), |error| Err(Failure::usage(error)))
}

/// A value as TOML writes it on one line.
fn inline(value: &figment::value::Value) -> String {
    toml::Value::try_from(value).map_or_else(|_| "?".to_owned(), |value| value.to_string())
}
