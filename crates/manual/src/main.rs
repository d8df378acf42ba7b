//! Writes man pages and shell completions to a directory: `manual DIRECTORY`.

use std::{env, fs, io, path::Path, process::ExitCode};

use clap::ValueEnum as _;
use clap_complete::Shell;

fn main() -> ExitCode {
    let Some(directory) = env::args_os().nth(1) else {
        eprintln!("error: missing argument: `manual DIRECTORY`");
        return ExitCode::from(2);
    };
    match write(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot write to `{}`: {error}", Path::new(&directory).display());
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &Path) -> io::Result<()> {
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(ai_agent::command_line(), &man)?;
    for shell in Shell::value_variants() {
        let mut command = ai_agent::command_line();
        clap_complete::generate_to(*shell, &mut command, "ai-agent", &completions)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn pages_and_completions_are_written_for_every_command() {
        let directory = env::temp_dir().join(format!("ai-agent-manual-{}", std::process::id()));
        write(&directory).unwrap();
        let page = fs::read_to_string(directory.join("man/ai-agent-run.1")).unwrap();
        assert!(page.contains(r"ai\-agent\-run"), "{page}");
        for command in ai_agent::command_line().get_subcommands() {
            let page = directory.join(format!("man/ai-agent-{}.1", command.get_name()));
            assert!(page.is_file(), "{}", page.display());
        }
        for file in ["ai-agent.bash", "_ai-agent", "ai-agent.fish", "_ai-agent.ps1"] {
            let text = fs::read_to_string(directory.join("completions").join(file)).unwrap();
            assert!(text.contains("deadletter"), "{file}");
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
