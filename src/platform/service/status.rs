//! Status of the service, as reported by its manager.

use serde::Serialize;

use super::{super::os::Os, manager_command::ManagerCommandError, user_service::Service};
use crate::text::counted;

/// Status of the service, in the terms of the platform.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServiceStatus {
    /// True if the service is registered with the manager.
    pub is_installed: bool,
    /// Start at login: `enabled`, `disabled`; empty if unknown.
    pub enabled: String,
    /// State: `active (running)`, `Ready`; empty if unknown.
    pub active: String,
    /// True if the service is running; `None` if the manager reports it in the language of the system
    /// only.
    pub is_active: Option<bool>,
    /// True if the manager reports that a person has stopped the service; false if it ended and is
    /// started again.
    #[serde(skip)]
    pub is_stopped: bool,
    /// PID, if the manager reports it.
    pub pid: Option<u32>,
    /// Number of restarts after a failure, if the manager counts them.
    pub restarts: Option<u32>,
}

impl ServiceStatus {
    /// Formats the status on one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut summary = match self.active.as_str() {
            "" => "installed".to_owned(),
            active => active.to_owned(),
        };
        if !self.enabled.is_empty() {
            summary += &format!(", {}", self.enabled);
        }
        if let Some(restarts @ 1..) = self.restarts {
            summary += &format!(", restarted {}", counted(restarts.into(), "time", "times"));
        }
        summary
    }
}

impl Service {
    /// Queries the status from the manager, which takes some milliseconds.
    ///
    /// # Errors
    /// [`ManagerCommandError`] if the manager does not answer.
    pub fn status(&self) -> Result<ServiceStatus, ManagerCommandError> {
        match (self.os, self.query_status().run()) {
            (os, Ok(output)) => Ok(read(os, &output)),
            // These managers fail for an unknown service; launchd does not know a stopped one.
            (Os::Macos | Os::Windows, Err(ManagerCommandError::Failed { .. })) => {
                let is_stopped = self.os == Os::Macos && self.installed.definition.is_file();
                Ok(ServiceStatus { is_stopped, ..ServiceStatus::default() })
            }
            (_, Err(error)) => Err(error),
        }
    }
}

fn read(os: Os, output: &str) -> ServiceStatus {
    match os {
        Os::Linux => read_systemd(output),
        Os::Macos => read_launchd(output),
        Os::Windows => read_scheduler(output),
    }
}

fn read_systemd(output: &str) -> ServiceStatus {
    let get = |name: &str| {
        let mut pairs = output.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value).unwrap_or_default()
    };
    let number = |name| get(name).parse().ok();
    let active = get("ActiveState");
    ServiceStatus {
        is_installed: get("LoadState") != "not-found",
        enabled: get("UnitFileState").to_owned(),
        active: format!("{active} ({})", get("SubState")),
        is_active: Some(active == "active"),
        is_stopped: active == "inactive" && get("LoadState") == "loaded",
        pid: number("MainPID").filter(|pid| *pid != 0),
        restarts: number("NRestarts"),
    }
}

fn read_launchd(output: &str) -> ServiceStatus {
    let get = |name: &str| {
        let mut lines = output.lines().map(str::trim);
        lines.find_map(|line| line.strip_prefix(name)?.trim().strip_prefix('=')).map(str::trim)
    };
    let active = get("state").unwrap_or_default();
    ServiceStatus {
        is_installed: true,
        enabled: "loaded".to_owned(),
        active: active.to_owned(),
        is_active: Some(active == "running"),
        is_stopped: false,
        pid: get("pid").and_then(|pid| pid.parse().ok()),
        restarts: None,
    }
}

/// Parses `"\ai-agent","11/23/2026 8:00:00 AM","Running"`, in the language of the system.
fn read_scheduler(output: &str) -> ServiceStatus {
    let line = output.lines().map(str::trim).find(|line| line.starts_with('"')).unwrap_or_default();
    let active = line.rsplit("\",\"").next().unwrap_or_default().trim_matches('"');
    ServiceStatus {
        is_installed: !line.is_empty(),
        enabled: String::new(),
        active: active.to_owned(),
        // The lock of the state directory gives the exact answer.
        is_active: (active == "Running").then_some(true),
        is_stopped: false,
        pid: None,
        restarts: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_status_is_parsed() {
        let output = "MainPID=4711\nNRestarts=2\nLoadState=loaded\nActiveState=active\n\
                    SubState=running\nUnitFileState=enabled\n";
        let expected = ServiceStatus {
            is_installed: true,
            enabled: "enabled".to_owned(),
            active: "active (running)".to_owned(),
            is_active: Some(true),
            is_stopped: false,
            pid: Some(4711),
            restarts: Some(2),
        };
        assert_eq!(read(Os::Linux, output), expected);
        let state = |state: &str| read(Os::Linux, &output.replace("=active", state)).is_stopped;
        assert!(state("=inactive") && !state("=activating") && !state("=failed"));
        let output = "MainPID=0\nNRestarts=0\nLoadState=not-found\nActiveState=inactive\n\
                    SubState=dead\nUnitFileState=\n";
        let none = read(Os::Linux, output);
        assert!(
            !none.is_installed && none.is_active == Some(false) && none.pid.is_none(),
            "{none:?}"
        );
    }

    #[test]
    fn launchd_status_is_parsed() {
        let output = "gui/501/ai-agent = {\n\tactive count = 1\n\tpath = /Users/u/Library/\n\
                    \tstate = running\n\n\tprogram = /x\n\tpid = 815\n\texecs = 1\n}\n";
        let status = read(Os::Macos, output);
        assert_eq!((status.active.as_str(), status.pid), ("running", Some(815)));
        assert!(status.is_installed && status.is_active == Some(true));
    }

    #[test]
    fn task_scheduler_status_is_parsed() {
        let status = read(Os::Windows, "\"\\ai-agent\",\"N/A\",\"Running\"\r\n");
        assert!(status.is_installed && status.is_active == Some(true), "{status:?}");
        let status = read(Os::Windows, "\"\\ai-agent\",\"N/A\",\"Bereit\"\r\n");
        assert_eq!((status.active.as_str(), status.is_active), ("Bereit", None));
    }
}
