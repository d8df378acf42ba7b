//! `ai-agent stages`.

use clap::{Args, Subcommand};

use super::{failure::Failure, output::print};
use crate::{
    config::{SINK_OPTIONS, did_you_mean},
    stages::{self, StageKind},
};

/// List all stages, or show one with its options
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    show: Option<Show>,
}

#[derive(Subcommand)]
enum Show {
    /// Show what a stage does, and all its options
    Show {
        /// Type of the stage, such as `ignore-types`
        #[arg(value_name = "TYPE")]
        name: String,
    },
}

impl Arguments {
    pub(super) fn execute(&self) -> Result<(), Failure> {
        match &self.show {
            None => list(),
            Some(Show::Show { name }) => show(name),
        }
    }
}

fn list() -> Result<(), Failure> {
    let all = stages::all();
    let width = all.iter().map(|stage| stage.name.len()).max().unwrap_or_default();
    for stage in &all {
        print(format_args!("{:<8}  {:<width$}  {}", stage.kind, stage.name, stage.summary))?;
    }
    Ok(())
}

fn show(name: &str) -> Result<(), Failure> {
    let all = stages::all();
    let found: Vec<_> = all.iter().filter(|stage| stage.name == name).collect();
    if found.is_empty() {
        let names: Vec<&str> = all.iter().map(|stage| stage.name).collect();
        let hint = match did_you_mean(name, &names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`ai-agent stages` lists them".to_owned(),
        };
        return Err(Failure::usage(format!("there is no stage of type `{name}`: {hint}")));
    }
    for stage in found {
        print(format_args!("{} {}: {}\n", stage.kind, stage.name, stage.summary))?;
        print(format_args!("[{}.{}]", stage.kind, stage.name))?;
        let sample = stage.sample.trim();
        let sample = if sample.is_empty() { "# no options" } else { sample };
        print(format_args!("{}", sample.replace("## ", "# ")))?;
        if stage.kind == StageKind::Sink {
            print(format_args!("\n# options of every sink"))?;
            print(format_args!("{}", SINK_OPTIONS.trim().replace("## ", "# ")))?;
        }
    }
    Ok(())
}
