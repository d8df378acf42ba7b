//! Finds and runs the programs of the audit system.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::{
    cli::failure::Failure,
    platform::{Environment, is_root, root_program, secure_file},
};

/// Directory of the rules that `augenrules` loads.
pub(super) const RULES_FOLDER: &str = "/etc/audit/rules.d";
/// Our rules.
pub(super) const RULES: &str = "/etc/audit/rules.d/claude-hooks-docker.rules";

/// Finds a program in the directories of the system. The user's PATH does not count, because the
/// program runs as root.
///
/// # Errors
/// [`Failure::Usage`] if another user could replace the program.
pub(super) fn find(name: &str) -> Result<Option<PathBuf>, Failure> {
    let mut all = root_program::DIRECTORIES.iter().map(|folder| Path::new(folder).join(name));
    let Some(program) = all.find(|program| secure_file::is_executable(program)) else {
        return Ok(None);
    };
    root_program::check(&program).map_err(Failure::usage)?;
    Ok(Some(program))
}

/// Finds docker on the PATH, or in the directories of the system, and returns its path without links.
/// A rule records the calls of this file, so no other user may replace it.
///
/// # Errors
/// [`Failure::Usage`] if another user could replace the program.
pub(super) fn find_docker(environment: &Environment) -> Result<Option<PathBuf>, Failure> {
    let path = environment.get("PATH").map(OsStr::to_owned).unwrap_or_default();
    let mut all = std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .chain(root_program::DIRECTORIES.iter().map(PathBuf::from))
        .map(|folder| folder.join("docker"));
    let Some(docker) = all.find(|program| secure_file::is_executable(program)) else {
        return Ok(None);
    };
    let checked = root_program::check(&docker);
    let refused =
        |error| Failure::usage(format!("no rule can record `{}`: {error}", docker.display()));
    checked.map(Some).map_err(refused)
}

/// Runs programs as root.
pub(super) struct Root {
    sudo: Option<PathBuf>,
}

impl Root {
    /// Runs programs directly if this process is root, and with sudo otherwise.
    pub(super) fn get() -> Result<Self, Failure> {
        if is_root() {
            return Ok(Self { sudo: None });
        }
        match find("sudo")? {
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
        let output = command(&line).stdin(Stdio::inherit()).output();
        output.map_err(|error| cannot_run(&line, &error))
    }

    /// Runs a program that must succeed, with `input` as its standard input.
    pub(super) fn run_with_input(
        &self,
        program: &Path,
        arguments: &[&OsStr],
        input: &[u8],
    ) -> Result<(), Failure> {
        let line = self.line(program, arguments);
        let output =
            output_for(command(&line), input).map_err(|error| cannot_run(&line, &error))?;
        if output.status.success() { Ok(()) } else { Err(failed(&line, &output)) }
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
        Err(failed(&self.line(program, arguments), &output))
    }
}

/// Returns a command whose own children are found in the directories of the system only.
fn command(line: &[OsString]) -> Command {
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).env("PATH", root_program::DIRECTORIES.join(":"));
    command
}

fn output_for(mut command: Command, input: &[u8]) -> io::Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(input));
    let output = child.wait_with_output()?;
    match written {
        // A program that fails without reading its input says why.
        Some(Err(error)) if output.status.success() => Err(error),
        _ => Ok(output),
    }
}

fn cannot_run(line: &[OsString], error: &io::Error) -> Failure {
    Failure::failed(format!("cannot run `{}`: {error}", Path::new(&line[0]).display()))
}

fn failed(line: &[OsString], output: &Output) -> Failure {
    let (line, detail) = (command_text(line), output_line(output));
    Failure::failed(format!("`{line}` failed, {}: {detail}", output.status))
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
