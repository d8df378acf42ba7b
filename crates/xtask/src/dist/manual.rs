//! Man pages and completions, which the agent prints.

use std::{
    ffi::OsStr,
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

/// Writes the man pages to `directory/man` and the completions to `directory/completions`.
pub(super) fn write(directory: &Path) -> Result<(), Failure> {
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    for folder in [&man, &completions] {
        if folder.try_exists()? {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder)?;
    }
    sh::succeed(&mut agent([OsStr::new("man"), OsStr::new("--to"), man.as_os_str()]))?;
    for (shell, name) in COMPLETIONS {
        let file = File::create(completions.join(name))?;
        sh::succeed(agent(["completions", shell]).stdout(file))?;
    }
    Ok(())
}

/// The agent of this machine, which also prints the texts for others.
fn agent<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut run = sh::cargo(["run", "--quiet", "--package", "ai-agent", "--bin", "ai-agent", "--"]);
    run.args(arguments);
    run
}
