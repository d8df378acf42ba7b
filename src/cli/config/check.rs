//! `ai-agent config check`: what is wrong, where, and what would be right.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    cli::{Failure, print, setup::Surroundings},
    pipeline::{assembly, candidate},
};

#[derive(Args)]
pub(super) struct Arguments {
    /// Files that are to be rolled out, as the machine's and those of its `config.d`, the lowest
    /// first; one that ends in `.json` is a managed configuration. By default what is in force.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
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
        candidate::accept(&loaded, &context).map_err(Failure::failed)?;
        print(format_args!("the configuration is right"))
    }
}
