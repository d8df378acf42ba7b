//! `ai-agent config check`.

use std::path::Path;

use clap::Args;
use tracing::warn;

use super::{explain::known_keys, values::schema};
use crate::{
    cli::{
        context::{CliContext, ConfigFiles},
        failure::Failure,
        output::print,
    },
    config::did_you_mean,
    pipeline::{assembly, validate},
};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    files: ConfigFiles,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let cli = CliContext::new(explicit)?;
        // A mistake is a result of this command, so it exits 1.
        let loaded = cli.load_files(&self.files).map_err(Failure::into_failed)?;
        let context = cli.stage_context(&loaded);
        let mistakes = assembly::check(&loaded, &context);
        if !mistakes.is_empty() {
            let all: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            return Err(Failure::failed(all.join("\nerror: ")));
        }
        let known = known_keys(&loaded, &schema());
        let known: Vec<&str> = known.iter().map(|(key, _)| key.as_str()).collect();
        for lock in loaded.unmatched_locks(&known) {
            let hint = did_you_mean(&lock, &known)
                .map_or(String::new(), |near| format!(": did you mean `{near}`?"));
            warn!(
                code = "locked_key_unknown",
                "`locked` names `{lock}`, which is not a key of this configuration{hint}"
            );
        }
        validate::validate(&loaded, &context, validate::TestScope::Managed)
            .map_err(Failure::failed)?;
        print(format_args!("the configuration is valid"))
    }
}
