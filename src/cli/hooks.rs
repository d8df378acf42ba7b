//! `ai-agent hooks`: installs, removes and shows the hooks in Claude Code's settings.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{
    context::CliContext, failure::Failure, hook_files::expand_home, hook_status, output::print,
};
use crate::{
    compliance::{
        client_files::{ClientSettingsFiles, read},
        client_settings::{self, program_of},
    },
    platform::{Environment, Paths, secure_file},
};

/// Install, remove or show the hooks in Claude Code's settings
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Add the hooks; other settings stay unchanged
    Install(Location),
    /// Remove the hooks; other settings stay unchanged
    Uninstall(Location),
    Status(hook_status::Arguments),
}

#[derive(Args)]
struct Location {
    /// Edit the user's settings (default)
    #[arg(long, conflicts_with = "managed")]
    user: bool,
    /// Edit the machine's settings, for all users; needs administrator rights
    #[arg(long)]
    managed: bool,
}

impl Location {
    fn path<'a>(&self, settings: &'a ClientSettingsFiles) -> &'a Path {
        if self.managed { &settings.managed } else { &settings.user }
    }
}

impl Arguments {
    /// Returns true if the command changes nothing.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(self.action, Action::Status(_))
    }

    pub(super) fn execute(&self) -> Result<(), Failure> {
        let environment = Environment::from_process();
        let paths = Paths::from_environment(&environment).map_err(Failure::usage)?;
        let settings = ClientSettingsFiles::new(&environment, &paths);
        match &self.action {
            Action::Install(location) => install(location.path(&settings), &program(&paths)?),
            Action::Uninstall(location) => uninstall(location.path(&settings)),
            Action::Status(status) => status.execute(&settings, &paths.home),
        }
    }
}

/// Returns true if hooks in the user's settings run the program at `program`.
pub(super) fn run_program(context: &CliContext, program: &Path) -> bool {
    let paths = context.paths();
    let files = ClientSettingsFiles::new(context.environment(), paths).read_all();
    let hooks = files.iter().filter(|file| !file.is_managed).flat_map(|file| &file.hooks);
    let mut programs = hooks.flat_map(|hooks| &hooks.ours).map(|hook| program_of(&hook.command));
    programs.any(|named| {
        Path::new(named) == program
            || expand_home(named, &paths.home).is_some_and(|path| path == program)
    })
}

/// Prints that [`remove`] would remove the hooks.
pub(super) fn preview_removal(context: &CliContext) -> Result<(), Failure> {
    let settings = ClientSettingsFiles::new(context.environment(), context.paths());
    print(format_args!("would remove the hooks from `{}`", settings.user.display()))
}

/// Removes the hooks from the user's settings.
pub(super) fn remove(context: &CliContext) -> Result<(), Failure> {
    uninstall(&ClientSettingsFiles::new(context.environment(), context.paths()).user)
}

/// Command with which Claude Code runs this program: relative to the home directory if it is inside,
/// since machine settings apply to all users.
fn program(paths: &Paths) -> Result<String, Failure> {
    let program = std::env::current_exe().and_then(|path| path.canonicalize());
    let program = program.map_err(|error| {
        Failure::failed(format!("cannot determine the path of this program: {error}"))
    })?;
    let home = paths.home.canonicalize().unwrap_or_else(|_| paths.home.clone());
    command_text(&program, &home).map_err(Failure::failed)
}

/// Returns the text with which a shell runs `program`, a path without links.
fn command_text(program: &Path, home: &Path) -> Result<String, String> {
    let shown = program.display();
    if !client_settings::is_known_name(program) {
        return Err(format!(
            "`{shown}` must be named `ai-agent`, by which its hooks are recognized: rename the program"
        ));
    }
    let (prefix, path) = match program.strip_prefix(home) {
        Ok(below) if cfg!(unix) => ("$HOME/", below),
        _ => ("", program),
    };
    // Within quotes, a shell replaces variables and commands.
    let special: &[char] =
        if cfg!(unix) { &['"', '`', '\n', '$', '\\'] } else { &['"', '`', '\n'] };
    let path = path.to_str().filter(|path| !path.contains(special));
    let path = path.ok_or_else(|| {
        format!("the path `{shown}` cannot be used in a shell command: move the program")
    })?;
    // Another user's home directory may contain spaces.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte);
    let is_quoted = !prefix.is_empty() || !path.bytes().all(is_plain);
    Ok(if is_quoted { format!("\"{prefix}{path}\"") } else { format!("{prefix}{path}") })
}

/// Adds the hooks to a settings file. The text of the file without them is kept beside it, so that
/// [`uninstall`] can restore it.
fn install(path: &Path, program: &str) -> Result<(), Failure> {
    let known = read(path).map_err(|error| failed(path, "cannot be read", &error))?;
    let text = known.clone().unwrap_or_default();
    let edited = client_settings::install(&text, program)
        .map_err(|error| failed(path, "is unchanged", &error))?;
    if edited == text {
        return print(format_args!("`{}` is up to date", path.display()));
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| failed(path, "has no directory", &error))?;
    }
    // A file that already has hooks is not the one to restore.
    let has_hooks = client_settings::inspect(&text).is_ok_and(|it| !it.ours.is_empty());
    if let Some(known) = known.filter(|_| !has_hooks) {
        back_up(path, &known)?;
    }
    write(path, &edited)
}

/// Removes the hooks from a settings file, and leaves it as [`install`] found it: a file that did not
/// exist is deleted, and one that was not changed in other respects gets its former text.
fn uninstall(path: &Path) -> Result<(), Failure> {
    let known = read(path).map_err(|error| failed(path, "cannot be read", &error))?;
    let text = known.unwrap_or_default();
    let edited =
        client_settings::uninstall(&text).map_err(|error| failed(path, "is unchanged", &error))?;
    if edited == text {
        return print(format_args!("`{}` has no hooks of ai-agent", path.display()));
    }
    let backup = backup_of(path);
    let before = read(&backup).ok().flatten();
    if let Some(before) = before.filter(|before| client_settings::is_without_ours(before, &text)) {
        write(path, &before)?;
        return fs::remove_file(&backup)
            .map_err(|error| failed(&backup, "cannot be deleted", &error));
    }
    if client_settings::is_only_ours(&text) {
        fs::remove_file(path).map_err(|error| failed(path, "cannot be deleted", &error))?;
        return print(format_args!("deleted `{}`, which had only the hooks", path.display()));
    }
    back_up(path, &text)?;
    write(path, &edited)
}

fn back_up(path: &Path, text: &str) -> Result<(), Failure> {
    let backup = backup_of(path);
    secure_file::replace(&backup, text.as_bytes())
        .map_err(|error| failed(path, "is unchanged, since it cannot be backed up", &error))?;
    print(format_args!("saved the previous version as `{}`", backup.display()))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    secure_file::replace_preserving_mode(path, text.as_bytes())
        .map_err(|error| failed(path, "cannot be written", &error))?;
    print(format_args!(
        "changed `{}`: it applies to sessions that start from now on",
        path.display()
    ))
}

fn failed(path: &Path, what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::failed(format!("`{}` {what}: {error}", path.display()))
}

fn backup_of(path: &Path) -> PathBuf {
    let mut backup = path.as_os_str().to_owned();
    backup.push(".before-ai-agent");
    backup.into()
}

#[cfg(all(test, unix))]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

    use super::*;

    fn text(program: &[u8]) -> Result<String, String> {
        command_text(Path::new(OsStr::from_bytes(program)), Path::new("/home/u"))
    }

    #[test]
    fn command_of_hooks_is_relative_to_the_home_directory() {
        let own = text(b"/home/u/.local/bin/ai-agent");
        assert_eq!(own.as_deref(), Ok("\"$HOME/.local/bin/ai-agent\""));
        assert_eq!(text(b"/usr/bin/ai-agent").as_deref(), Ok("/usr/bin/ai-agent"));
        assert_eq!(text(b"/opt/a b/ai-agent").as_deref(), Ok("\"/opt/a b/ai-agent\""));
    }

    /// With another name the hooks were not recognized, and the error blamed the settings. A shell
    /// would have run another program than one with such a path.
    #[test]
    fn program_that_hooks_cannot_run_is_refused_with_the_reason() {
        let renamed = text(b"/opt/ai-agent-linux-x64").unwrap_err();
        assert!(renamed.contains("must be named `ai-agent`"), "{renamed}");
        for path in [
            &b"/opt/$x/ai-agent"[..],
            b"/opt/\\x/ai-agent",
            b"/opt/`x`/ai-agent",
            b"/opt/\xff/ai-agent",
        ] {
            assert!(text(path).unwrap_err().ends_with("move the program"), "{path:?}");
        }
    }
}
