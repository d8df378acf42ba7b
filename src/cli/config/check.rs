//! `ai-agent config check`: what is wrong, where, and what would be right.

use std::path::Path;

use clap::Args;
use tracing::warn;

use super::{explain, schema};
use crate::{
    cli::{
        Failure, print,
        setup::{Files, Surroundings},
    },
    config::did_you_mean,
    pipeline::{assembly, validate},
};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    files: Files,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let surroundings = Surroundings::look()?;
        // What is wrong is what was looked for: exit code 1.
        let loaded =
            surroundings.load_files(&self.files, explicit).map_err(Failure::into_failed)?;
        let context = surroundings.context(&loaded, None, true);
        let wrong = assembly::check(&loaded, &context);
        if !wrong.is_empty() {
            let all: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            return Err(Failure::failed(all.join("\nerror: ")));
        }
        let known = explain::known(&loaded, &schema());
        let known: Vec<&str> = known.iter().map(|(key, _)| key.as_str()).collect();
        for lock in loaded.unmatched_locks(&known) {
            let hint = did_you_mean(&lock, &known)
                .map_or(String::new(), |near| format!(": did you mean `{near}`?"));
            warn!(
                code = "locked_key_unknown",
                "`locked` names `{lock}`, which is no key of this configuration{hint}"
            );
        }
        validate::validate(&loaded, &context, validate::TestScope::Managed)
            .map_err(Failure::failed)?;
        print(format_args!("the configuration is right"))
    }
}
