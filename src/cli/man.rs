//! `ai-agent man`.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, Command};
use clap_mangen::Man;

use super::{command_line, failure::Failure};

/// Print a man page
///
/// For example `ai-agent man | man -l -`, or `ai-agent man config show` for a command.
#[derive(Args)]
pub(super) struct Arguments {
    /// Command to print the page of, such as `status` or `config show`
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Write the pages of all commands to this directory
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "command")]
    to: Option<PathBuf>,
}

impl Arguments {
    pub(super) fn execute(&self) -> Result<(), Failure> {
        if let Some(directory) = &self.to {
            return write_all(directory).map_err(|error| {
                Failure::failed(format!("cannot write to `{}`: {error}", directory.display()))
            });
        }
        let page = page(&self.command)?;
        match io::stdout().write_all(&page) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(error)),
            _ => Ok(()),
        }
    }
}

fn write_all(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut program = command_line().disable_help_subcommand(true);
    // Gives commands their full names, and the global options.
    program.build();
    write_with_commands(&program, directory)
}

/// Writes the page of a command, and those of the commands below it.
fn write_with_commands(command: &Command, directory: &Path) -> io::Result<()> {
    manual(command.clone()).generate_to(directory)?;
    let mut below = command.get_subcommands().filter(|it| !it.is_hide_set());
    below.try_for_each(|below| write_with_commands(below, directory))
}

/// Returns the page of a command; its footer names the program and its version, also for a command that
/// has no version of its own.
fn manual(command: Command) -> Man {
    Man::new(command).source(format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")))
}

/// Returns the page of a command, or of the program.
fn page(path: &[String]) -> Result<Vec<u8>, Failure> {
    let mut program = command_line().disable_help_subcommand(true);
    // Gives commands their full names, and the global options.
    program.build();
    let command = path.iter().try_fold(&program, |command, name| {
        let found = command.find_subcommand(name);
        found.ok_or_else(|| {
            Failure::usage(format!(
                "there is no command `{}`: see `ai-agent --help`",
                path.join(" ")
            ))
        })
    })?;
    let command: Command = command.clone();
    let mut page = Vec::new();
    manual(command).render(&mut page).map_err(Failure::failed)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the commands below `command`, with those before them.
    fn paths(command: &Command, before: &[String]) -> Vec<Vec<String>> {
        let below = command.get_subcommands().filter(|it| it.get_name() != "help");
        below
            .flat_map(|below| {
                let path = [before, &[below.get_name().to_owned()]].concat();
                [vec![path.clone()], paths(below, &path)].concat()
            })
            .collect()
    }

    #[test]
    fn every_command_has_a_page_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        write_all(directory.path()).unwrap();
        let all = paths(&command_line(), &[]);
        assert!(all.len() > 30, "{all:?}");
        for path in all {
            let text = String::from_utf8(page(&path).unwrap()).unwrap();
            let name = format!("ai-agent-{}", path.join("-"));
            assert!(text.contains(&name.replace('-', r"\-")), "{name}: {text}");
            let written = directory.path().join(format!("{name}.1"));
            assert_eq!(fs::read_to_string(written).unwrap(), text, "{name}");
        }
        assert!(page(&["walk".to_owned()]).is_err());
    }

    #[test]
    fn page_of_the_program_lists_exit_codes() {
        let text = String::from_utf8(page(&[]).unwrap()).unwrap();
        assert!(text.contains("Exit codes"), "{text}");
    }
}
