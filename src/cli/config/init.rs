//! `ai-agent config init`: a file to begin with.

use std::{fs::File, io::Write as _, path::PathBuf};

use clap::Args;

use crate::{
    cli::{Failure, print, setup::Surroundings},
    config::template,
};

#[derive(Args)]
pub(super) struct Arguments {
    /// The file, by default the machine's; it must not be there yet. `-` is standard output.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Arguments {
    pub(super) fn execute(&self) -> Result<(), Failure> {
        let path = match &self.file {
            Some(path) if path.as_os_str() == "-" => {
                return print(format_args!("{}", template().trim_end()));
            }
            Some(path) => path.clone(),
            None => Surroundings::look()?.machine_config(),
        };
        let written =
            File::create_new(&path).and_then(|mut file| file.write_all(template().as_bytes()));
        let path = path.display();
        written.map_err(|error| Failure::failed(format!("cannot write `{path}`: {error}")))?;
        print(format_args!("wrote {path}: every option is a comment in it"))
    }
}
