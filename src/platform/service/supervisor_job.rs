//! Process outside of the agent's service that survives its restart: the supervisor of an update.
//!
//! With systemd it is a transient unit; after a restart of the machine, the guard in the agent's unit starts
//! another one. launchd and the task scheduler get a definition of their own until it has ended, so that
//! they start it again at the next login.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    super::{os::Os, own_program},
    manager_command::ManagerCommand,
    user_service::Service,
    xml,
};

/// Name of the job.
const NAME: &str = "ai-agent-update";
/// Description of the scheduled task.
const DESCRIPTION: &str = "Brings the previous ai-agent back if an update of it does not run";

/// Process that survives a restart of the agent's service.
pub struct SupervisorJob<'a> {
    program: &'a Path,
    arguments: &'a [OsString],
    service: Option<&'a Service>,
}

impl<'a> SupervisorJob<'a> {
    /// Creates the job that runs `program`; `service` is that of this user.
    #[must_use]
    pub fn new(program: &'a Path, arguments: &'a [OsString], service: Option<&'a Service>) -> Self {
        Self { program, arguments, service: service.filter(|service| service.is_defined()) }
    }

    /// Starts the process.
    ///
    /// # Errors
    /// The error of the system or of the service manager: the process does not run.
    pub fn start(&self) -> io::Result<()> {
        match (Os::CURRENT, self.service) {
            (Os::Linux, _) => self.start_transient(None),
            (_, None) => self.start_detached(),
            (Os::Macos | Os::Windows, Some(service)) => self.start_defined(service),
        }
    }

    /// Starts the process, unless one that this function has started still runs.
    ///
    /// # Errors
    /// As [`Self::start`], or one runs already.
    pub fn start_if_none(&self) -> io::Result<()> {
        match Os::CURRENT {
            Os::Linux => self.start_transient(Some(NAME)),
            // The definition has a name, too.
            Os::Macos | Os::Windows => self.start(),
        }
    }

    /// Starts a transient unit; only one can have a `name`.
    fn start_transient(&self, name: Option<&str>) -> io::Result<()> {
        let mut command = Command::new("systemd-run");
        command.args(["--user", "--collect", "--quiet"]);
        command.args(name.map(|name| format!("--unit={name}")));
        command.arg("--").arg(self.program).stdin(std::process::Stdio::null());
        command.args(self.arguments.iter().map(unexpanded));
        let failure = match command.output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        // A restart of the service would end a process of the service.
        match std::env::var_os("INVOCATION_ID") {
            Some(_) => Err(io::Error::other(format!("`systemd-run --user` failed: {failure}"))),
            None => self.start_detached(),
        }
    }

    fn start_detached(&self) -> io::Result<()> {
        let mut command = Command::new(self.program);
        own_program::detach(command.args(self.arguments));
        command.spawn().map(drop)
    }

    fn start_defined(&self, service: &Service) -> io::Result<()> {
        let path = service.job_definition();
        let text = self.definition(service)?;
        fs::write(&path, text)?;
        for command in service.job_commands(&path) {
            match command.run() {
                Err(error) if command.is_required => return Err(io::Error::other(error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn definition(&self, service: &Service) -> io::Result<Vec<u8>> {
        let words = std::iter::once(self.program.as_os_str())
            .chain(self.arguments.iter().map(OsString::as_os_str))
            .map(std::ffi::OsStr::to_str);
        let words: Option<Vec<&str>> = words.collect();
        let words = words.ok_or_else(|| io::Error::other("the path of the program is no text"))?;
        Ok(service.job(&words))
    }

    /// Removes the definition of the job, if it has one. Called by the process itself, as its last act:
    /// launchd ends it.
    pub fn remove(service: Option<&Service>) {
        let Some(service) = service.filter(|service| service.job_definition().is_file()) else {
            return;
        };
        drop(fs::remove_file(service.job_definition()));
        service.job_removal().iter().for_each(|command| drop(command.run()));
    }

    /// Ends the process, if it runs, and removes its definition. With systemd it ends by itself once the record
    /// of the update is removed.
    pub fn stop(service: &Service) {
        if service.job_definition().is_file() {
            service.job_end().iter().for_each(|command| drop(command.run()));
        }
        Self::remove(Some(service));
    }
}

/// Escapes an argument, in which systemd would replace variables.
fn unexpanded(argument: &OsString) -> OsString {
    match argument.to_str() {
        Some(text) => text.replace('$', "$$").into(),
        // systemd refuses it.
        None => argument.clone(),
    }
}

impl Service {
    fn is_defined(&self) -> bool {
        self.installed.definition.is_file() || self.machine_definitions().is_some()
    }

    fn job_definition(&self) -> PathBuf {
        let name = if self.os == Os::Macos { "ai-agent-update.plist" } else { "task-update.xml" };
        self.installed.definition.with_file_name(name)
    }

    /// Returns the definition of the job that runs `words`, a program and its arguments.
    fn job(&self, words: &[&str]) -> Vec<u8> {
        match self.os {
            Os::Linux | Os::Macos => xml::property_list(NAME, words, "", "").into_bytes(),
            Os::Windows => xml::utf16(&xml::task(NAME, DESCRIPTION, &self.user, words)),
        }
    }

    /// Returns the commands that define the job and start it.
    fn job_commands(&self, definition: &Path) -> Vec<ManagerCommand> {
        let definition = definition.to_string_lossy();
        match self.os {
            Os::Linux => Vec::new(),
            Os::Macos => {
                let (domain, target) = self.job_target();
                vec![
                    ManagerCommand::new("launchctl", &["bootout", &target]).optional(),
                    ManagerCommand::new("launchctl", &["bootstrap", &domain, &definition])
                        .tried(10),
                ]
            }
            Os::Windows => vec![
                ManagerCommand::new(
                    "schtasks.exe",
                    &["/Create", "/F", "/TN", NAME, "/XML", &definition],
                ),
                ManagerCommand::new("schtasks.exe", &["/Run", "/TN", NAME]),
            ],
        }
    }

    /// Returns the command that ends the process; on macOS, the removal does.
    fn job_end(&self) -> Option<ManagerCommand> {
        (self.os == Os::Windows)
            .then(|| ManagerCommand::new("schtasks.exe", &["/End", "/TN", NAME]))
    }

    fn job_removal(&self) -> Vec<ManagerCommand> {
        match self.os {
            Os::Linux => Vec::new(),
            Os::Macos => {
                vec![ManagerCommand::new("launchctl", &["bootout", &self.job_target().1])]
            }
            Os::Windows => {
                vec![ManagerCommand::new("schtasks.exe", &["/Delete", "/F", "/TN", NAME])]
            }
        }
    }

    fn job_target(&self) -> (String, String) {
        (format!("gui/{}", self.user), format!("gui/{}/{NAME}", self.user))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::{Environment, Paths},
        *,
    };

    fn job(os: Os, home: &str, program: &str) -> (String, Vec<String>) {
        let variables = [("HOME", home), ("USERPROFILE", home)];
        let paths = Paths::on(os, &Environment::from_iter(variables)).unwrap();
        let service = Service::on(os, &paths.installed, "501");
        let arguments = ["supervise-update".into(), "/a & b/ai-agent".into()];
        let job = SupervisorJob {
            program: Path::new(program),
            arguments: &arguments,
            service: Some(&service),
        };
        let bytes = job.definition(&service).unwrap();
        let definition = String::from_utf8_lossy(&bytes).replace('\0', "");
        let mut commands = service.job_commands(&service.job_definition());
        commands.extend(service.job_end());
        commands.extend(service.job_removal());
        (definition, commands.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn job_is_defined_for_launchd_until_it_has_ended() {
        let (definition, commands) = job(Os::Macos, "/Users/u", "/b/ai-agent.previous");
        let words = "<string>/b/ai-agent.previous</string>\n\t\t<string>supervise-update</string>\n\
                     \t\t<string>/a &amp; b/ai-agent</string>\n";
        assert!(definition.contains(words), "{definition}");
        let plist = "/Users/u/Library/LaunchAgents/ai-agent-update.plist";
        // On Windows this test builds the path with its separator.
        let commands: Vec<_> = commands.iter().map(|line| line.replace('\\', "/")).collect();
        assert_eq!(
            commands,
            [
                "launchctl bootout gui/501/ai-agent-update".to_owned(),
                format!("launchctl bootstrap gui/501 {plist}"),
                "launchctl bootout gui/501/ai-agent-update".to_owned(),
            ]
        );
    }

    #[test]
    fn job_is_a_task_of_windows_until_it_has_ended() {
        let (definition, commands) = job(Os::Windows, r"C:\Users\u", r"C:\b\ai-agent.previous.exe");
        let line = r#"<Arguments>--headless "C:\b\ai-agent.previous.exe" supervise-update "/a &amp; b/ai-agent"</Arguments>"#;
        assert!(definition.contains(line), "{definition}");
        let create = "schtasks.exe /Create /F /TN ai-agent-update /XML ";
        assert!(commands[0].starts_with(create), "{}", commands[0]);
        assert_eq!(commands[1], "schtasks.exe /Run /TN ai-agent-update");
        assert_eq!(commands[2], "schtasks.exe /End /TN ai-agent-update");
        assert_eq!(commands[3], "schtasks.exe /Delete /F /TN ai-agent-update");
    }
}
