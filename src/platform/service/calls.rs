//! What the system is told of the service.

use super::{ManagerCommand, NAME, Os, Service};

/// The unit's name.
pub(super) const UNIT: &str = "ai-agent.service";

impl Service {
    /// Asks whether services of a user can be had at all, before anything is changed.
    #[must_use]
    pub fn probe(&self) -> Option<ManagerCommand> {
        match self.os {
            Os::Linux => Some(systemctl(&["show", "--property=Version"])),
            Os::Macos | Os::Windows => None,
        }
    }

    /// Makes the system read the definition, and start the service at each login from now on.
    #[must_use]
    pub fn register(&self) -> Vec<ManagerCommand> {
        let definition = self.installed.definition.to_string_lossy();
        match self.os {
            // By its path, a unit is found also where the manager was told of other directories.
            Os::Linux => vec![systemctl(&["daemon-reload"]), systemctl(&["enable", &definition])],
            // What is loaded does not follow its file.
            Os::Macos => vec![
                launchctl(&["bootout", &self.target()]).optional(),
                launchctl(&["enable", &self.target()]),
                // It takes a moment until one that was loaded is gone.
                launchctl(&["bootstrap", &self.domain(), &definition]).tried(10),
            ],
            Os::Windows => vec![schtasks(&["/Create", "/F", "/TN", NAME, "/XML", &definition])],
        }
    }

    /// Starts it once it is registered, in place of one that runs.
    #[must_use]
    pub fn launch(&self) -> Vec<ManagerCommand> {
        match self.os {
            Os::Linux | Os::Windows => self.restart(),
            Os::Macos => vec![launchctl(&["kickstart", &self.target()]).optional()],
        }
    }

    /// Starts it. With systemd it is ready afterwards.
    #[must_use]
    pub fn start(&self) -> Vec<ManagerCommand> {
        let definition = self.installed.definition.to_string_lossy();
        match self.os {
            Os::Linux => vec![systemctl(&["start", UNIT])],
            // One that was stopped is not loaded; what is loaded runs by itself, mostly.
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

    /// Stops it, and what would bring it back.
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

    /// Stops it and starts it again.
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

    /// Stops it and takes it out of what starts at login; to be called while its definition lies
    /// where it did.
    #[must_use]
    pub fn unregister(&self) -> Vec<ManagerCommand> {
        let calls = match self.os {
            Os::Linux => vec![systemctl(&["disable", "--now", UNIT])],
            Os::Macos => vec![launchctl(&["bootout", &self.target()])],
            Os::Windows => {
                vec![schtasks(&["/End", "/TN", NAME]), schtasks(&["/Delete", "/F", "/TN", NAME])]
            }
        };
        // It may have been taken away by hand, in part.
        calls.into_iter().map(ManagerCommand::optional).collect()
    }

    /// What is left to say once the definition is gone.
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

    /// Asks how it stands.
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

    /// Lets the user's services run without a login; `None` where they never do.
    #[must_use]
    pub fn enable_linger(&self) -> Option<ManagerCommand> {
        (self.os == Os::Linux).then(|| ManagerCommand::new("loginctl", &["enable-linger"]))
    }

    /// Asks whether they do.
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

    /// What each system is told, one call in a line.
    fn all(os: Os, home: &str, user: &str) -> String {
        let variables = [("HOME", home), ("USERPROFILE", home)];
        let paths = Paths::on(os, &Environment::from_iter(variables)).unwrap();
        let service = Service::on(os, &paths.installed, user);
        let lists = [
            ("probe", service.probe().into_iter().collect()),
            ("register", service.register()),
            ("launch", service.launch()),
            ("start", service.start()),
            ("stop", service.stop()),
            ("restart", service.restart()),
            ("unregister", service.unregister()),
            ("forget", service.clean_up()),
            ("ask", vec![service.query_status()]),
            (
                "linger",
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
    fn each_system_is_told_in_its_own_words() {
        for (os, home, user, expected) in [
            (Os::Linux, "/home/u", "", include_str!("cases/linux.txt")),
            (Os::Macos, "/Users/u", "501", include_str!("cases/macos.txt")),
            (Os::Windows, r"C:\Users\u", r"CORP\u", include_str!("cases/windows.txt")),
        ] {
            assert_eq!(all(os, home, user), expected, "{os:?}");
        }
    }
}
