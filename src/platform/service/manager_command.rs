//! Commands that run a program of the system's service manager.

use std::{
    io,
    process::{Command, Stdio},
    time::Duration,
};

/// Command that runs a program of the system's service manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerCommand {
    /// Name of the program.
    pub program: &'static str,
    /// Arguments.
    pub arguments: Vec<String>,
    /// True if a failure is an error; other commands only clean up.
    pub is_required: bool,
    /// Number of attempts, if the system needs a moment after the previous command.
    tries: u32,
}

impl ManagerCommand {
    pub(super) fn new(program: &'static str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Self { program, arguments, is_required: true, tries: 1 }
    }

    pub(super) fn optional(self) -> Self {
        Self { is_required: false, ..self }
    }

    pub(super) fn tried(self, tries: u32) -> Self {
        Self { tries, ..self }
    }

    /// Runs the command and returns its output.
    ///
    /// # Errors
    /// [`ManagerCommandError`]: the command had no effect.
    pub fn run(&self) -> Result<String, ManagerCommandError> {
        const PAUSE: Duration = Duration::from_secs(1);

        let mut tried = self.run_once();
        for _ in 1..self.tries {
            if tried.is_ok() {
                break;
            }
            std::thread::sleep(PAUSE);
            tried = self.run_once();
        }
        tried
    }

    fn run_once(&self) -> Result<String, ManagerCommandError> {
        let mut command = Command::new(self.program);
        command.args(&self.arguments).stdin(Stdio::null());
        // The output is parsed by this program: in one language, and without a pager.
        command.env("LC_ALL", "C.UTF-8").env("SYSTEMD_PAGER", "").env("SYSTEMD_COLORS", "0");
        let output = command
            .output()
            .map_err(|source| ManagerCommandError::NotStarted { program: self.program, source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let texts = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes));
        let text = texts.iter().map(|text| text.trim()).find(|text| !text.is_empty());
        let text = text.unwrap_or("no output").lines().collect::<Vec<_>>().join(" ");
        Err(ManagerCommandError::Failed { command: self.to_string(), output: text })
    }
}

/// Formats the command as typed in a shell.
impl std::fmt::Display for ManagerCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.program)?;
        for argument in &self.arguments {
            let quote = if argument.contains(' ') { "\"" } else { "" };
            write!(f, " {quote}{argument}{quote}")?;
        }
        Ok(())
    }
}

/// Reason why a command of the service manager failed.
#[derive(Debug, thiserror::Error)]
pub enum ManagerCommandError {
    /// The program cannot be run.
    #[error("cannot run `{program}`, the service manager of this system")]
    NotStarted {
        /// Name of the program.
        program: &'static str,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
    /// The command failed.
    #[error("`{command}` failed: {output}")]
    Failed {
        /// Command.
        command: String,
        /// Output of the command.
        output: String,
    },
}
