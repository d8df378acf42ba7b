//! The agent as a service of one user: a systemd user unit, a LaunchAgent, or a scheduled task.
//!
//! The definition (`definition`) and the commands (`calls`) are values that can be created for any
//! system on any system; only running the commands depends on the system.

mod calls;
mod definition;
mod notify;
mod status;

use std::{
    io,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

pub use definition::Scope;
pub use notify::Notify;
pub use status::ServiceStatus;

use super::{Environment, InstalledPaths, Os};

/// Name of the service on every system.
pub const NAME: &str = "ai-agent";

/// The agent as a service of one user.
#[derive(Clone, Debug)]
pub struct Service {
    os: Os,
    installed: InstalledPaths,
    /// User as the system names it: the numeric id on macOS, `DOMAIN\user` on Windows.
    user: String,
}

impl Service {
    /// Creates the service of `user` on `os`.
    #[must_use]
    pub fn on(os: Os, installed: &InstalledPaths, user: &str) -> Self {
        Self { os, installed: installed.clone(), user: user.to_owned() }
    }

    /// Creates the service of this user.
    #[must_use]
    pub fn of_this_user(installed: &InstalledPaths, environment: &Environment) -> Self {
        Self::on(Os::CURRENT, installed, &this_user(environment))
    }

    /// Returns the paths of the installed files.
    #[must_use]
    pub fn installed(&self) -> &InstalledPaths {
        &self.installed
    }

    /// Returns whether a stopped service stays stopped at the next login.
    #[must_use]
    pub fn stays_stopped(&self) -> bool {
        self.os == Os::Windows
    }

    /// Returns the definition of a service for all users, if an administrator installed one.
    #[must_use]
    pub fn machine_definitions(&self) -> Option<&Path> {
        let mut paths = self.installed.machine_definitions.iter();
        paths.find(|path| path.try_exists().unwrap_or(false)).map(|path| &**path)
    }
}

/// Command that runs a program of the system's service manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerCommand {
    /// Name of the program.
    pub program: &'static str,
    /// Arguments.
    pub arguments: Vec<String>,
    /// Whether a failure is an error; other commands only clean up.
    pub is_required: bool,
    /// Number of attempts, if the system needs a moment after the previous command.
    tries: u32,
}

impl ManagerCommand {
    fn new(program: &'static str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Self { program, arguments, is_required: true, tries: 1 }
    }

    fn optional(self) -> Self {
        Self { is_required: false, ..self }
    }

    fn tried(self, tries: u32) -> Self {
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

fn this_user(environment: &Environment) -> String {
    match Os::CURRENT {
        Os::Linux => String::new(),
        Os::Macos => user_number(),
        Os::Windows => {
            let get = |name| environment.get(name).map(|value| value.to_string_lossy());
            let user = get("USERNAME").unwrap_or_default();
            get("USERDOMAIN").map_or_else(|| user.to_string(), |domain| format!(r"{domain}\{user}"))
        }
    }
}

#[cfg(unix)]
fn user_number() -> String {
    rustix::process::getuid().as_raw().to_string()
}

#[cfg(not(unix))]
fn user_number() -> String {
    String::new()
}
