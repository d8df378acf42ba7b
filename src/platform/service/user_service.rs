//! Service of one user, on any system.

use std::path::Path;

use super::super::{environment::Environment, os::Os, paths::InstalledPaths};

/// Name of the service on every system.
pub(super) const NAME: &str = "ai-agent";

/// The agent as a service of one user.
#[derive(Clone, Debug)]
pub struct Service {
    pub(super) os: Os,
    pub(super) installed: InstalledPaths,
    /// User as the system names it: the numeric id on macOS, `DOMAIN\user` on Windows.
    pub(super) user: String,
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
