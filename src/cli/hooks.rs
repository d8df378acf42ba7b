//! `ai-agent hooks`: the hooks in Claude Code's settings.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{Failure, print, setup::Surroundings};
use crate::{
    compliance::{
        client_files::{ClientSettingsFile, ClientSettingsFiles, read},
        client_settings::{self, AgentHook, HookSettings, program_of},
        hook_response::Hook,
    },
    platform::{Environment, Paths, secure_file},
};

/// The hooks in Claude Code's settings: installs, removes, shows them.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Adds the hooks, and changes nothing else.
    Install(Place),
    /// Takes the hooks out again, and changes nothing else.
    Uninstall(Place),
    /// Which settings name the hooks, and whether they are called. Exit code 1 when one is not.
    Status,
}

#[derive(Args)]
struct Place {
    /// In the user's settings: the default.
    #[arg(long, conflicts_with = "managed")]
    user: bool,
    /// In the machine's settings, for all users; takes an administrator.
    #[arg(long)]
    managed: bool,
}

impl Arguments {
    pub(super) fn execute(&self) -> Result<(), Failure> {
        let environment = Environment::from_process();
        let paths = Paths::from_environment(&environment).map_err(Failure::usage)?;
        let settings = ClientSettingsFiles::new(&environment, &paths);
        match &self.action {
            Action::Install(place) => {
                let program = program(&paths)?;
                edit(&settings, place, |text| client_settings::install(text, &program))
            }
            Action::Uninstall(place) => edit(&settings, place, client_settings::uninstall),
            Action::Status => tell(&settings, &paths.home),
        }
    }
}

/// Takes the hooks out of the user's settings that name the program at `program`, which is about to
/// go; says so, or with `is_preview` that it would.
pub(super) fn forget(
    surroundings: &Surroundings,
    program: &Path,
    is_preview: bool,
) -> Result<(), Failure> {
    let paths = surroundings.paths();
    let settings = ClientSettingsFiles::new(surroundings.environment(), paths);
    let seen = settings.read_all();
    let ours = seen.iter().filter(|seen| !seen.is_managed).flat_map(|seen| &seen.hooks);
    let mut programs = ours.flat_map(|hooks| &hooks.ours).map(|ours| program_of(&ours.command));
    let is_it = |named: &str| below_home(named, &paths.home).is_some_and(|path| path == program);
    if !programs.any(|named| is_it(named) || Path::new(named) == program) {
        return Ok(());
    }
    if is_preview {
        let path = settings.user.display();
        return print(format_args!("would take the hooks out of `{path}`"));
    }
    edit(&settings, &Place { user: true, managed: false }, client_settings::uninstall)
}

/// How the client runs this program: below the home directory of whoever runs it, or where it is.
fn program(paths: &Paths) -> Result<String, Failure> {
    let program = std::env::current_exe().and_then(|path| path.canonicalize());
    let program = program.map_err(|error| {
        Failure::failed(format!("cannot find out where this program lies: {error}"))
    })?;
    let home = paths.home.canonicalize().unwrap_or_else(|_| paths.home.clone());
    let text = match program.strip_prefix(&home) {
        Ok(below) if cfg!(unix) => format!("$HOME/{}", below.display()),
        _ => program.display().to_string(),
    };
    // A home directory may have a space in it, whatever this one is called.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte);
    if text.contains(['"', '`', '\n']) {
        return Err(Failure::failed(format!(
            "`{text}` is a path that no shell takes: move the program"
        )));
    }
    Ok(if text.bytes().all(is_plain) { text } else { format!("\"{text}\"") })
}

fn edit(
    settings: &ClientSettingsFiles,
    place: &Place,
    edit: impl FnOnce(&str) -> Result<String, client_settings::SettingsError>,
) -> Result<(), Failure> {
    let path = if place.managed { &settings.managed } else { &settings.user };
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure::failed(format!("`{}` {what}: {error}", path.display()))
    };
    let known = read(path).map_err(|error| failed("cannot be read", &error))?;
    let text = known.clone().unwrap_or_default();
    let edited = edit(&text).map_err(|error| failed("is left as it is", &error))?;
    if edited == text {
        return print(format_args!("`{}` stays as it is", path.display()));
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| failed("has no folder", &error))?;
    }
    if let Some(known) = known {
        let backup = backup_of(path);
        secure_file::replace(&backup, known.as_bytes())
            .map_err(|error| failed("is left as it is, since no copy could be made", &error))?;
        print(format_args!("What was in it is in `{}`", backup.display()))?;
    }
    secure_file::replace_preserving_mode(path, edited.as_bytes())
        .map_err(|error| failed("cannot be written", &error))?;
    print(format_args!("`{}` is changed: sessions that start from now on see it", path.display()))
}

fn tell(settings: &ClientSettingsFiles, home: &Path) -> Result<(), Failure> {
    let seen = settings.read_all();
    let mut called = Vec::new();
    for file in &seen {
        let place = if file.is_managed { "managed" } else { "user" };
        let hooks = match &file.hooks {
            Ok(hooks) => hooks,
            Err(why) => {
                print(format_args!("{place:<8} `{}`: {why}", file.path.display()))?;
                continue;
            }
        };
        if hooks.ours.is_empty() {
            print(format_args!("{place:<8} `{}`: no hook of ai-agent", file.path.display()))?;
        }
        for ours in &hooks.ours {
            let trouble = trouble(ours, file, &seen, home);
            let path = file.path.display();
            let name = ours.hook.name();
            match &trouble {
                None => {
                    called.push(ours.hook);
                    print(format_args!("{place:<8} `{path}`: {name} is called"))?;
                }
                Some(why) => print(format_args!("{place:<8} `{path}`: {name} {why}"))?,
            }
        }
    }
    let missing: Vec<_> = Hook::ALL.into_iter().filter(|hook| !called.contains(hook)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.into_iter().map(Hook::name).collect();
    Err(Failure::failed(format!(
        "Claude Code does not call ai-agent for {}: `ai-agent hooks install` adds what is missing, \
         in the user's settings, or with `--managed` in the machine's",
        names.join(" and ")
    )))
}

/// A hook that a settings file names: the file, the hook, and why it is not called, if it is not.
pub(super) type Named = (PathBuf, Hook, Option<String>);

/// The hooks that settings files name.
pub(super) fn named(seen: &[ClientSettingsFile], home: &Path) -> Vec<Named> {
    let of = |file: &ClientSettingsFile| -> Vec<Named> {
        let ours = file.hooks.iter().flat_map(|hooks| &hooks.ours);
        let named =
            |ours: &AgentHook| (file.path.clone(), ours.hook, trouble(ours, file, seen, home));
        ours.map(named).collect()
    };
    seen.iter().flat_map(of).collect()
}

/// Why a hook that is named is not called, if it is not.
fn trouble(
    ours: &AgentHook,
    file: &ClientSettingsFile,
    all: &[ClientSettingsFile],
    home: &Path,
) -> Option<String> {
    let by = |says: fn(&HookSettings) -> bool, managed: bool| {
        let mut files = all.iter().filter(|seen| seen.is_managed == managed);
        files.find(|seen| seen.hooks.as_ref().is_ok_and(says)).map(|seen| seen.path.display())
    };
    if let Some(path) = by(|hooks| hooks.disables_all, true) {
        return Some(format!("is not called: `{path}` says `disableAllHooks`"));
    }
    if !file.is_managed {
        if let Some(path) = by(|hooks| hooks.managed_only, true) {
            return Some(format!("is not called: `{path}` says `allowManagedHooksOnly`"));
        }
        if let Some(path) = by(|hooks| hooks.disables_all, false) {
            return Some(format!("is not called: `{path}` says `disableAllHooks`"));
        }
    }
    let program = program_of(&ours.command);
    if !is_program(program, home) {
        return Some(format!(
            "runs `{program}`, which is no program here: prompts go through unseen"
        ));
    }
    let matcher = ours.matcher.as_ref().filter(|_| ours.hook == Hook::SessionStart)?;
    Some(format!(
        "is called for `{matcher}` only: without a matcher it sees sessions that are resumed, forked, \
         cleared and compacted too"
    ))
}

/// Whether what a shell would run is there.
fn is_program(program: &str, home: &Path) -> bool {
    let path = below_home(program, home).unwrap_or_else(|| PathBuf::from(program));
    if path.components().count() > 1 {
        return secure_file::is_executable(&path);
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| secure_file::is_executable(&folder.join(&path)))
}

/// The path that a shell makes of one below the home directory.
fn below_home(program: &str, home: &Path) -> Option<PathBuf> {
    let below = ["$HOME/", "${HOME}/", "~/"].iter().find_map(|home| program.strip_prefix(home))?;
    Some(home.join(below))
}

fn backup_of(path: &Path) -> PathBuf {
    let mut backup = path.as_os_str().to_owned();
    backup.push(".before-ai-agent");
    backup.into()
}
