//! The agent as a service of one user: a systemd user unit, a LaunchAgent, a scheduled task.
//!
//! What describes it (`definition`) and what the system is told of it (`calls`) are values, made for
//! any system on any system; running the calls is all that is left.

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

/// What it is called, whatever the system.
pub const NAME: &str = "ai-agent";

/// The agent as a service of one user.
#[derive(Clone, Debug)]
pub struct Service {
    os: Os,
    installed: InstalledPaths,
    /// Who the user is, in the system's summary: the number of a user on macOS, `DOMAIN\user` on
    /// Windows.
    user: String,
}

impl Service {
    /// The service of `user` on `os`.
    #[must_use]
    pub fn on(os: Os, installed: &InstalledPaths, user: &str) -> Self {
        Self { os, installed: installed.clone(), user: user.to_owned() }
    }

    /// The service of this user.
    #[must_use]
    pub fn of_this_user(installed: &InstalledPaths, environment: &Environment) -> Self {
        Self::on(Os::CURRENT, installed, &this_user(environment))
    }

    /// Where its parts lie.
    #[must_use]
    pub fn installed(&self) -> &InstalledPaths {
        &self.installed
    }

    /// Whether stopping it lasts beyond the next login.
    #[must_use]
    pub fn stays_stopped(&self) -> bool {
        self.os == Os::Windows
    }

    /// The service of all users that an administrator has laid down, if there is one.
    #[must_use]
    pub fn machine_definitions(&self) -> Option<&Path> {
        let mut places = self.installed.machine_definitions.iter();
        places.find(|path| path.try_exists().unwrap_or(false)).map(|path| &**path)
    }
}

/// One call of a program of the system's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerCommand {
    /// The program.
    pub program: &'static str,
    /// What it is told.
    pub arguments: Vec<String>,
    /// Whether nothing goes on without it: the others only tidy up, mostly what is not there.
    pub is_required: bool,
    /// How often it is tried, where the system takes a moment for what came before.
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

    /// Runs it; what it prints.
    ///
    /// # Errors
    /// [`ManagerCommandError`]: what it is for has not happened.
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
        // Read by this program, not by a person: in one language, and without a pager.
        command.env("LC_ALL", "C.UTF-8").env("SYSTEMD_PAGER", "").env("SYSTEMD_COLORS", "0");
        let output = command
            .output()
            .map_err(|source| ManagerCommandError::NotStarted { program: self.program, source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes));
        let said = said.iter().map(|text| text.trim()).find(|text| !text.is_empty());
        let said = said.unwrap_or("it says nothing").lines().collect::<Vec<_>>().join(" ");
        Err(ManagerCommandError::Failed { call: self.to_string(), said })
    }
}

/// As a person would type it.
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

/// Why the system was not told.
#[derive(Debug, thiserror::Error)]
pub enum ManagerCommandError {
    /// The program can't be run.
    #[error("`{program}` cannot be run, which takes care of services on this system")]
    NotStarted {
        /// The program.
        program: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It ran, and failed.
    #[error("`{call}` failed: {said}")]
    Failed {
        /// The whole call.
        call: String,
        /// What it printed.
        said: String,
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
