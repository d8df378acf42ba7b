//! `ai-agent config init`.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::Args;

use super::siem_file::Siem;
use crate::{
    cli::{context::CliContext, failure::Failure, output::print},
    config::template,
};

#[derive(Args)]
pub(super) struct Arguments {
    /// New file to write, by default the machine's file; `-` is standard output
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Write a file that sends to this SIEM or protocol, instead of one with every option
    #[arg(long = "for", value_name = "SIEM")]
    siem: Option<Siem>,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let machine_config = CliContext::new(explicit)?.paths().machine_config.clone();
        let text = self.siem.map_or_else(template, |siem| siem.text(&machine_config));
        let path = match &self.file {
            Some(path) if path.as_os_str() == "-" => {
                return print(format_args!("{}", text.trim_end()));
            }
            Some(path) => path,
            None => &machine_config,
        };
        let written = File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
        let path = path.display();
        written.map_err(|error| Failure::failed(format!("cannot write `{path}`: {error}")))?;
        match self.siem {
            Some(siem) => print(format_args!("wrote `{path}`; next: {}", siem.steps())),
            None => print(format_args!("wrote `{path}` with every option as a comment")),
        }
    }
}
