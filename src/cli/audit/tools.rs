//! Finds and runs the programs of the audit system.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{
    cli::failure::Failure,
    platform::{Environment, is_root, secure_file},
};

/// Directory of the rules that `augenrules` loads.
pub(super) const RULES_FOLDER: &str = "/etc/audit/rules.d";
/// Our rules.
pub(super) const RULES: &str = "/etc/audit/rules.d/claude-hooks-docker.rules";

/// Finds a program on the PATH, or in the administrator's directories, which are not on every user's
/// PATH.
pub(super) fn find(name: &str, environment: &Environment) -> Option<PathBuf> {
    let path = environment.get("PATH").map(OsStr::to_owned).unwrap_or_default();
    let administrators = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .chain(administrators)
        .map(|folder| folder.join(name))
        .find(|program| secure_file::is_executable(program))
}

/// Runs programs as root.
pub(super) struct Root {
    sudo: Option<PathBuf>,
}

impl Root {
    /// Runs programs directly if this process is root, and with sudo otherwise.
    pub(super) fn get(environment: &Environment) -> Result<Self, Failure> {
        if is_root() {
            return Ok(Self { sudo: None });
        }
        match find("sudo", environment) {
            Some(sudo) => Ok(Self { sudo: Some(sudo) }),
            None => Err(Failure::usage("this needs root, and sudo was not found: run it as root")),
        }
    }

    /// Returns the command line that would be run.
    pub(super) fn line(&self, program: &Path, arguments: &[&OsStr]) -> Vec<OsString> {
        let sudo = self.sudo.iter().map(|sudo| sudo.as_os_str());
        let words = sudo.chain([program.as_os_str()]).chain(arguments.iter().copied());
        words.map(OsStr::to_owned).collect()
    }

    /// Runs a program until it ends. sudo asks for the password on the terminal.
    pub(super) fn run(&self, program: &Path, arguments: &[&OsStr]) -> Result<Output, Failure> {
        let line = self.line(program, arguments);
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).stdin(std::process::Stdio::inherit());
        command.output().map_err(|error| {
            Failure::failed(format!("cannot run `{}`: {error}", Path::new(&line[0]).display()))
        })
    }

    /// Runs a program that must succeed, and returns its output.
    pub(super) fn run_checked(
        &self,
        program: &Path,
        arguments: &[&OsStr],
    ) -> Result<String, Failure> {
        let output = self.run(program, arguments)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let (line, detail) = (command_text(&self.line(program, arguments)), output_line(&output));
        Err(Failure::failed(format!("`{line}` failed, {}: {detail}", output.status)))
    }
}

/// Output of a program in one line.
pub(super) fn output_line(output: &Output) -> String {
    let both = [&output.stderr[..], &output.stdout[..]].concat();
    let text = String::from_utf8_lossy(&both);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { "no output".to_owned() } else { lines.join("; ") }
}

/// Formats a command line.
pub(super) fn command_text(line: &[OsString]) -> String {
    line.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
