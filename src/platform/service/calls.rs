//! Commands that control the service through the system's service manager.

use super::{
    super::os::Os,
    manager_command::ManagerCommand,
    user_service::{NAME, Service},
};

/// Name of the unit.
pub(super) const UNIT: &str = "ai-agent.service";

impl Service {
    /// Returns the command that checks, before anything is changed, whether the user can have
    /// services.
    #[must_use]
    pub fn probe(&self) -> Option<ManagerCommand> {
        match self.os {
            Os::Linux => Some(systemctl(&["show", "--property=Version"])),
            Os::Macos | Os::Windows => None,
        }
    }

    /// Returns the commands that load the definition and start the service at each login.
    #[must_use]
    pub fn register(&self) -> Vec<ManagerCommand> {
        let definition = self.installed.definition.to_string_lossy();
        match self.os {
            // A unit given by its path is found even if the manager uses other directories.
            Os::Linux => vec![systemctl(&["daemon-reload"]), systemctl(&["enable", &definition])],
            // A loaded service does not follow changes of its file.
            Os::Macos => vec![
                launchctl(&["bootout", &self.target()]).optional(),
                launchctl(&["enable", &self.target()]),
                // A loaded service takes a moment to disappear.
                launchctl(&["bootstrap", &self.domain(), &definition]).tried(10),
            ],
            Os::Windows => vec![schtasks(&["/Create", "/F", "/TN", NAME, "/XML", &definition])],
        }
    }

    /// Returns the commands that start the registered service, replacing a running one.
    #[must_use]
    pub fn launch(&self) -> Vec<ManagerCommand> {
        match self.os {
            Os::Linux | Os::Windows => self.restart(),
            Os::Macos => vec![launchctl(&["kickstart", &self.target()]).optional()],
        }
    }

    /// Returns the commands that start the service. With systemd it is ready afterwards.
    #[must_use]
    pub fn start(&self) -> Vec<ManagerCommand> {
        let definition = self.installed.definition.to_string_lossy();
        match self.os {
            Os::Linux => vec![systemctl(&["start", UNIT])],
            // A stopped service is not loaded; a loaded one is usually running already.
            Os::Macos => vec![
                launchctl(&["bootstrap", &self.domain(), &definition]).optional(),
                launchctl(&["kickstart", &self.target()]).optional(),
            ],
            Os::Windows => vec![
                schtasks(&["/Change", "/TN", NAME, "/ENABLE"]),
                schtasks(&["/Run", "/TN", NAME]),
            ],
        }
    }

    /// Returns the command that starts a service which has ended, if its manager does that only after
    /// minutes. It has no effect while the service runs, and fails for one that was stopped.
    #[must_use]
    pub fn resume(&self) -> Option<ManagerCommand> {
        (self.os == Os::Windows).then(|| schtasks(&["/Run", "/TN", NAME]))
    }

    /// Returns the commands that stop the service and prevent a restart.
    #[must_use]
    pub fn stop(&self) -> Vec<ManagerCommand> {
        match self.os {
            Os::Linux => vec![systemctl(&["stop", UNIT])],
            Os::Macos => vec![launchctl(&["bootout", &self.target()])],
            Os::Windows => vec![
                schtasks(&["/Change", "/TN", NAME, "/DISABLE"]),
                schtasks(&["/End", "/TN", NAME]),
            ],
        }
    }

    /// Returns the commands that restart the service.
    #[must_use]
    pub fn restart(&self) -> Vec<ManagerCommand> {
        match self.os {
            Os::Linux => vec![systemctl(&["restart", UNIT])],
            Os::Macos => vec![launchctl(&["kickstart", "-k", &self.target()])],
            Os::Windows => {
                let end = schtasks(&["/End", "/TN", NAME]).optional();
                [vec![end], self.start()].concat()
            }
        }
    }

    /// Returns the commands that restart the service, without effect on one that was stopped.
    #[must_use]
    pub fn restart_unless_stopped(&self) -> Vec<ManagerCommand> {
        match self.os {
            Os::Linux => vec![systemctl(&["try-restart", UNIT])],
            // A stopped service is not loaded.
            Os::Macos => self.restart(),
            Os::Windows => {
                let end = schtasks(&["/End", "/TN", NAME]).optional();
                [vec![end], self.resume().into_iter().collect()].concat()
            }
        }
    }

    /// Returns the commands that stop the service and remove it from those started at login. They
    /// must run before the definition is deleted.
    #[must_use]
    pub fn unregister(&self) -> Vec<ManagerCommand> {
        let calls = match self.os {
            Os::Linux => vec![systemctl(&["disable", "--now", UNIT])],
            Os::Macos => vec![launchctl(&["bootout", &self.target()])],
            Os::Windows => {
                vec![schtasks(&["/End", "/TN", NAME]), schtasks(&["/Delete", "/F", "/TN", NAME])]
            }
        };
        // Parts may have been removed manually.
        calls.into_iter().map(ManagerCommand::optional).collect()
    }

    /// Returns the commands that clean up after the definition was deleted.
    #[must_use]
    pub fn clean_up(&self) -> Vec<ManagerCommand> {
        match self.os {
            Os::Linux => vec![
                systemctl(&["daemon-reload"]).optional(),
                systemctl(&["reset-failed", UNIT]).optional(),
            ],
            Os::Macos | Os::Windows => Vec::new(),
        }
    }

    /// Returns the command that queries the status.
    pub(super) fn query_status(&self) -> ManagerCommand {
        match self.os {
            Os::Linux => systemctl(&[
                "show",
                "--property=LoadState,UnitFileState,ActiveState,SubState,MainPID,NRestarts",
                UNIT,
            ]),
            Os::Macos => launchctl(&["print", &self.target()]),
            Os::Windows => schtasks(&["/Query", "/FO", "CSV", "/NH", "/TN", NAME]),
        }
    }

    /// Returns the command that lets the user's services run without a login; `None` if the system
    /// cannot do that.
    #[must_use]
    pub fn enable_linger(&self) -> Option<ManagerCommand> {
        (self.os == Os::Linux).then(|| ManagerCommand::new("loginctl", &["enable-linger"]))
    }

    /// Returns the command that queries whether services run without a login.
    #[must_use]
    pub fn query_linger(&self, user: &str) -> Option<ManagerCommand> {
        let ask = ["show-user", user, "--property=Linger", "--value"];
        (self.os == Os::Linux).then(|| ManagerCommand::new("loginctl", &ask))
    }

    fn domain(&self) -> String {
        format!("gui/{}", self.user)
    }

    fn target(&self) -> String {
        format!("gui/{}/{NAME}", self.user)
    }
}

fn systemctl(arguments: &[&str]) -> ManagerCommand {
    ManagerCommand::new("systemctl", &[&["--user"], arguments].concat())
}

fn launchctl(arguments: &[&str]) -> ManagerCommand {
    ManagerCommand::new("launchctl", arguments)
}

fn schtasks(arguments: &[&str]) -> ManagerCommand {
    ManagerCommand::new("schtasks.exe", arguments)
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::{Environment, Paths},
        *,
    };

    /// Formats all commands, one per line.
    fn all(os: Os, home: &str, user: &str) -> String {
        let variables = [("HOME", home), ("USERPROFILE", home)];
        let paths = Paths::on(os, &Environment::from_iter(variables)).unwrap();
        let service = Service::on(os, &paths.installed, user);
        let lists = [
            ("probe", service.probe().into_iter().collect()),
            ("register", service.register()),
            ("launch", service.launch()),
            ("start", service.start()),
            ("resume", service.resume().into_iter().collect()),
            ("stop", service.stop()),
            ("restart", service.restart()),
            ("restart_unless_stopped", service.restart_unless_stopped()),
            ("unregister", service.unregister()),
            ("clean_up", service.clean_up()),
            ("query_status", vec![service.query_status()]),
            (
                "enable_linger",
                service.enable_linger().into_iter().chain(service.query_linger("u")).collect(),
            ),
        ];
        let mut text = String::new();
        for (name, calls) in lists {
            text.push_str(&format!("{name}\n"));
            for call in calls {
                let may_fail = if call.is_required { "" } else { "    (may fail)" };
                text.push_str(&format!("  {call}{may_fail}\n"));
            }
        }
        text
    }

    #[test]
    fn commands_of_each_system() {
        for (os, home, user, expected) in [
            (Os::Linux, "/home/u", "", include_str!("cases/linux.txt")),
            (Os::Macos, "/Users/u", "501", include_str!("cases/macos.txt")),
            (Os::Windows, r"C:\Users\u", r"CORP\u", include_str!("cases/windows.txt")),
        ] {
            assert_eq!(all(os, home, user), expected, "{os:?}");
        }
    }
}
