//! `ai-agent config init`.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::Args;

use crate::{
    cli::{context::CliContext, failure::Failure, output::print},
    config::template,
};

#[derive(Args)]
pub(super) struct Arguments {
    /// New file to write, by default the machine's file; `-` is standard output
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let path = match &self.file {
            Some(path) if path.as_os_str() == "-" => {
                return print(format_args!("{}", template().trim_end()));
            }
            Some(path) => path.clone(),
            None => CliContext::new(explicit)?.paths().machine_config.clone(),
        };
        let written =
            File::create_new(&path).and_then(|mut file| file.write_all(template().as_bytes()));
        let path = path.display();
        written.map_err(|error| Failure::failed(format!("cannot write `{path}`: {error}")))?;
        print(format_args!("wrote `{path}` with every option as a comment"))
    }
}
