//! `ai-agent config init`.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum as _};

use super::siem_file::Siem;
use crate::{
    cli::{context::CliContext, failure::Failure, output::print},
    config::template,
    platform::Paths,
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
        let cli = CliContext::new(explicit)?;
        let machine_config = cli.paths().machine_config.clone();
        let text = self.siem.map_or_else(template, |siem| siem.text(&machine_config));
        let path = match &self.file {
            Some(path) if path.as_os_str() == "-" => {
                return print(format_args!("{}", text.trim_end()));
            }
            Some(path) => path,
            None => &machine_config,
        };
        if is_standard(path, cli.paths())
            && let Some(directory) = path.parent()
        {
            // The error of the file names the directory.
            drop(fs::create_dir_all(directory));
        }
        let written = File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| self.failure(path, &error, cli.paths()))?;
        let path = path.display();
        match self.siem {
            Some(siem) => print(format_args!("wrote `{path}`; next: {}", siem.steps())),
            None => print(format_args!("wrote `{path}` with every option as a comment")),
        }
    }

    /// Returns the error of a file that cannot be written, with a name that can.
    fn failure(&self, path: &Path, error: &io::Error, paths: &Paths) -> Failure {
        let user_config = paths.user_config.display();
        let siem = self.siem.and_then(|siem| siem.to_possible_value());
        let siem = siem.map(|siem| format!("--for {} ", siem.get_name())).unwrap_or_default();
        let remedy = match error.kind() {
            ErrorKind::AlreadyExists => "name another file, or `-` to print the text".to_owned(),
            ErrorKind::NotFound if !is_standard(path, paths) => match path.parent() {
                Some(parent) => format!("create the directory `{}` first", parent.display()),
                None => "name another file".to_owned(),
            },
            _ if *path != paths.user_config => {
                let needs = if self.file.is_none() { "run it as root, or " } else { "" };
                format!("{needs}name the user's file: `ai-agent config init {siem}'{user_config}'`")
            }
            _ => "name another file, or `-` to print the text".to_owned(),
        };
        Failure::failed(format!("cannot write `{}`: {error}: {remedy}", path.display()))
    }
}

/// Returns whether the agent reads the file at `path` at its start.
fn is_standard(path: &Path, paths: &Paths) -> bool {
    *path == paths.machine_config || *path == paths.user_config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{Environment, Os};

    fn failure(file: Option<&str>, path: impl AsRef<Path>, kind: ErrorKind) -> String {
        let windows = ("USERPROFILE", r"C:\Users\dev");
        let home = if cfg!(windows) { windows } else { ("HOME", "/home/dev") };
        let environment: Environment = [home].into_iter().collect();
        let paths = Paths::on(Os::CURRENT, &environment).unwrap();
        let arguments = Arguments { file: file.map(PathBuf::from), siem: Some(Siem::Elastic) };
        arguments.failure(path.as_ref(), &kind.into(), &paths).message()
    }

    /// The error did not say how to write a file without the rights of root.
    #[test]
    fn init_without_rights_names_the_file_of_the_user() {
        let text = failure(None, "/etc/ai-agent/config.toml", ErrorKind::PermissionDenied);
        for words in
            ["run it as root, or", "`ai-agent config init --for elastic '", "config.toml'`"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
        let text = failure(Some("/srv/x.toml"), "/srv/x.toml", ErrorKind::ReadOnlyFilesystem);
        assert!(text.contains("name the user's file") && !text.contains("root"), "{text}");
    }

    #[test]
    fn init_into_a_missing_directory_or_over_a_file_says_what_to_do() {
        let text = failure(Some("/srv/new/x.toml"), "/srv/new/x.toml", ErrorKind::NotFound);
        assert!(text.ends_with(": create the directory `/srv/new` first"), "{text}");
        let text = failure(None, "/etc/ai-agent/config.toml", ErrorKind::AlreadyExists);
        assert!(text.ends_with("name another file, or `-` to print the text"), "{text}");
    }
}
