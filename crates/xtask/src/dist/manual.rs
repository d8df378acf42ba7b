//! Man pages and completions, which the agent prints.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use crate::{Failure, sh};

/// Shells with the names of their completion files.
const COMPLETIONS: [(&str, &str); 5] = [
    ("bash", "ai-agent.bash"),
    ("elvish", "ai-agent.elv"),
    ("fish", "ai-agent.fish"),
    ("powershell", "_ai-agent.ps1"),
    ("zsh", "_ai-agent"),
];

/// Writes the man pages to `directory/man` and the completions to `directory/completions`, with the
/// program that `agent` calls.
pub(super) fn write(directory: &Path, agent: impl Fn() -> Command) -> Result<(), Failure> {
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    for folder in [&man, &completions] {
        if folder.try_exists()? {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder)?;
    }
    sh::succeed(agent().args(["man", "--to"]).arg(&man))?;
    for (shell, name) in COMPLETIONS {
        let file = File::create(completions.join(name))?;
        sh::succeed(agent().args(["completions", shell]).stdout(file))?;
    }
    Ok(())
}

/// Returns a call of the agent of this machine, which also prints the texts for others.
pub(super) fn agent() -> Command {
    sh::cargo(["run", "--quiet", "--package", "ai-agent", "--bin", "ai-agent", "--"])
}
