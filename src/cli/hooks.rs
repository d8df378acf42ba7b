//! `ai-agent hooks`: installs, removes and shows the hooks in Claude Code's settings.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{
    context::CliContext,
    failure::Failure,
    hook_files::{expand_home, installed},
    output::print,
};
use crate::{
    compliance::{
        client_files::{ClientSettingsFiles, read},
        client_settings::{self, program_of},
        hook_response::Hook,
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
    /// Show which settings files contain the hooks, and whether they are active
    ///
    /// Exits 1 if a hook is not active.
    Status,
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

impl Arguments {
    pub(super) fn execute(&self) -> Result<(), Failure> {
        let environment = Environment::from_process();
        let paths = Paths::from_environment(&environment).map_err(Failure::usage)?;
        let settings = ClientSettingsFiles::new(&environment, &paths);
        match &self.action {
            Action::Install(location) => {
                let program = program(&paths)?;
                edit(&settings, location, |text| client_settings::install(text, &program))
            }
            Action::Uninstall(location) => edit(&settings, location, client_settings::uninstall),
            Action::Status => status(&settings, &paths.home),
        }
    }
}

/// Removes the hooks that run the program at `program`, which is about to be removed, from the user's
/// settings. With `is_preview`, only prints the changes.
pub(super) fn remove_for(
    context: &CliContext,
    program: &Path,
    is_preview: bool,
) -> Result<(), Failure> {
    let paths = context.paths();
    let settings = ClientSettingsFiles::new(context.environment(), paths);
    let files = settings.read_all();
    let hooks = files.iter().filter(|file| !file.is_managed).flat_map(|file| &file.hooks);
    let mut programs = hooks.flat_map(|hooks| &hooks.ours).map(|hook| program_of(&hook.command));
    let is_it = |named: &str| {
        Path::new(named) == program
            || expand_home(named, &paths.home).is_some_and(|path| path == program)
    };
    if !programs.any(is_it) {
        return Ok(());
    }
    if is_preview {
        let path = settings.user.display();
        return print(format_args!("would remove the hooks from `{path}`"));
    }
    edit(&settings, &Location { user: true, managed: false }, client_settings::uninstall)
}

/// Command with which Claude Code runs this program: relative to the home directory if it is inside,
/// since machine settings apply to all users.
fn program(paths: &Paths) -> Result<String, Failure> {
    let program = std::env::current_exe().and_then(|path| path.canonicalize());
    let program = program.map_err(|error| {
        Failure::failed(format!("cannot determine the path of this program: {error}"))
    })?;
    let home = paths.home.canonicalize().unwrap_or_else(|_| paths.home.clone());
    let text = match program.strip_prefix(&home) {
        Ok(below) if cfg!(unix) => format!("$HOME/{}", below.display()),
        _ => program.display().to_string(),
    };
    // Another user's home directory may contain spaces.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte);
    if text.contains(['"', '`', '\n']) {
        return Err(Failure::failed(format!(
            "the path `{text}` cannot be used in a shell command: move the program"
        )));
    }
    Ok(if text.bytes().all(is_plain) { text } else { format!("\"{text}\"") })
}

fn edit(
    settings: &ClientSettingsFiles,
    location: &Location,
    edit: impl FnOnce(&str) -> Result<String, client_settings::SettingsError>,
) -> Result<(), Failure> {
    let path = if location.managed { &settings.managed } else { &settings.user };
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure::failed(format!("`{}` {what}: {error}", path.display()))
    };
    let known = read(path).map_err(|error| failed("cannot be read", &error))?;
    let text = known.clone().unwrap_or_default();
    let edited = edit(&text).map_err(|error| failed("is unchanged", &error))?;
    if edited == text {
        return print(format_args!("`{}` is up to date", path.display()));
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| failed("has no directory", &error))?;
    }
    if let Some(known) = known {
        let backup = backup_of(path);
        secure_file::replace(&backup, known.as_bytes())
            .map_err(|error| failed("is unchanged, since it cannot be backed up", &error))?;
        print(format_args!("saved the previous version as `{}`", backup.display()))?;
    }
    secure_file::replace_preserving_mode(path, edited.as_bytes())
        .map_err(|error| failed("cannot be written", &error))?;
    print(format_args!(
        "changed `{}`: it applies to sessions that start from now on",
        path.display()
    ))
}

fn status(settings: &ClientSettingsFiles, home: &Path) -> Result<(), Failure> {
    let files = settings.read_all();
    let hooks = installed(&files, home);
    for file in &files {
        let owner = owner(file.is_managed);
        let path = file.path.display();
        match &file.hooks {
            Err(error) => print(format_args!("{owner:<8} `{path}`: {error}"))?,
            Ok(hooks) if hooks.ours.is_empty() => {
                print(format_args!("{owner:<8} `{path}`: no hooks of ai-agent"))?;
            }
            Ok(_) => {}
        }
        for hook in hooks.iter().filter(|hook| hook.path == file.path) {
            let (owner, name) = (self::owner(hook.is_managed), hook.hook.name());
            let state = hook.problem.as_deref().unwrap_or("is active");
            print(format_args!("{owner:<8} `{path}`: {name} {state}"))?;
        }
    }
    let is_active = |hook: &Hook| hooks.iter().any(|it| it.hook == *hook && it.problem.is_none());
    let inactive: Vec<_> = Hook::ALL.into_iter().filter(|hook| !is_active(hook)).collect();
    if inactive.is_empty() {
        return Ok(());
    }
    let names = inactive.iter().map(|hook| hook.name()).collect::<Vec<_>>().join(" and ");
    Err(Failure::failed(format!(
        "Claude Code does not run ai-agent for {names}: `ai-agent hooks install` adds the hooks to the \
         user's settings, or with `--managed` to the machine's"
    )))
}

fn owner(is_managed: bool) -> &'static str {
    if is_managed { "managed" } else { "user" }
}

fn backup_of(path: &Path) -> PathBuf {
    let mut backup = path.as_os_str().to_owned();
    backup.push(".before-ai-agent");
    backup.into()
}
