//! `ai-agent completions`.

use std::io::{self, Write as _};

use clap::Args;
use clap_complete::Shell;

use super::{command_line, failure::Failure};

/// Print a completion script for a shell
///
/// For example `ai-agent completions bash > ~/.local/share/bash-completion/completions/ai-agent`.
#[derive(Args)]
pub(super) struct Arguments {
    shell: Shell,
}

impl Arguments {
    pub(super) fn execute(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command_line(), "ai-agent", &mut script);
        match io::stdout().write_all(&script) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn completions_of_each_shell_contain_every_command() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command_line(), "ai-agent", &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in command_line().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
        }
    }
}
