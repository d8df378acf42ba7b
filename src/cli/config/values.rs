//! Values and schema of the configuration, as the `config` commands print them.

use serde::Serialize;
use serde_json::Value;

use crate::{
    cli::{context::CliContext, failure::Failure},
    config::{self, LoadedConfig, StageSchema},
    pipeline::assembly,
    stages,
};

/// Schema of the configuration file, with all stages of this program.
pub(super) fn schema() -> Value {
    let stages = stages::all().into_iter().map(|stage| StageSchema {
        kind: stage.kind.to_string(),
        name: stage.name,
        summary: stage.summary,
        options: (stage.schema)(),
    });
    config::schema(&stages.collect::<Vec<_>>())
}

/// Fails if the configuration has a mistake: under a misspelt key, a secret would not be recognised
/// and be printed.
pub(super) fn refuse_mistakes(cli: &CliContext, loaded: &LoadedConfig) -> Result<(), Failure> {
    let context = cli.stage_context(loaded);
    let mistake = assembly::check(loaded, &context).into_iter().next();
    mistake.map_or(Ok(()), |error| Err(Failure::usage(error)))
}

/// Formats a value as TOML, on one line.
pub(super) fn inline(value: &impl Serialize) -> String {
    toml::Value::try_from(value).map_or_else(|_| "?".to_owned(), |value| value.to_string())
}
