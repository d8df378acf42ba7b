//! `ai-agent hooks`: the hooks in Claude Code's settings.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{Failure, print};
use crate::{
    compliance::{
        answer::Hook,
        client_settings::{self, Ours, Sight, program_of},
    },
    platform::{Environment, Paths, private},
};

/// A longer file is none of the client's.
const MOST: u64 = 16 << 20;

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
        let settings = Settings::new(&environment, &paths);
        match &self.action {
            Action::Install(place) => {
                let program = program(&paths)?;
                settings.edit(place, |text| client_settings::install(text, &program))
            }
            Action::Uninstall(place) => settings.edit(place, client_settings::uninstall),
            Action::Status => settings.tell(&paths.home),
        }
    }
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

/// Where Claude Code's settings lie.
struct Settings {
    user: PathBuf,
    managed: PathBuf,
    /// More managed settings, over that file.
    managed_more: PathBuf,
}

impl Settings {
    fn new(environment: &Environment, paths: &Paths) -> Self {
        let folder = match environment.get("CLAUDE_CONFIG_DIR") {
            Some(folder) => PathBuf::from(folder),
            None => paths.home.join(".claude"),
        };
        Self {
            user: folder.join("settings.json"),
            managed: paths.client_settings.join("managed-settings.json"),
            managed_more: paths.client_settings.join("managed-settings.d"),
        }
    }

    fn edit(
        &self,
        place: &Place,
        edit: impl FnOnce(&str) -> Result<String, client_settings::SettingsError>,
    ) -> Result<(), Failure> {
        let path = if place.managed { &self.managed } else { &self.user };
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
            private::replace(&backup, known.as_bytes())
                .map_err(|error| failed("is left as it is, since no copy could be made", &error))?;
            print(format_args!("What was in it is in `{}`", backup.display()))?;
        }
        private::replace_alike(path, edited.as_bytes())
            .map_err(|error| failed("cannot be written", &error))?;
        print(format_args!(
            "`{}` is changed: sessions that start from now on see it",
            path.display()
        ))
    }

    /// All settings files that are there, the managed ones first.
    fn look(&self) -> Vec<Seen> {
        let more = fs::read_dir(&self.managed_more).into_iter().flatten().flatten();
        let mut more: Vec<PathBuf> = more.map(|entry| entry.path()).collect();
        more.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
        more.sort();
        let managed = [self.managed.clone()].into_iter().chain(more).map(|path| (path, true));
        let all = managed.chain([(self.user.clone(), false)]);
        all.filter_map(|(path, is_managed)| Seen::of(path, is_managed)).collect()
    }

    fn tell(&self, home: &Path) -> Result<(), Failure> {
        let seen = self.look();
        let mut called = Vec::new();
        for file in &seen {
            let place = if file.is_managed { "managed" } else { "user" };
            let sight = match &file.sight {
                Ok(sight) => sight,
                Err(why) => {
                    print(format_args!("{place:<8} `{}`: {why}", file.path.display()))?;
                    continue;
                }
            };
            if sight.ours.is_empty() {
                print(format_args!("{place:<8} `{}`: no hook of ai-agent", file.path.display()))?;
            }
            for ours in &sight.ours {
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
}

/// A settings file that is there.
struct Seen {
    path: PathBuf,
    is_managed: bool,
    sight: Result<Sight, String>,
}

impl Seen {
    fn of(path: PathBuf, is_managed: bool) -> Option<Self> {
        let sight = match read(&path) {
            Ok(None) => return None,
            Ok(Some(text)) => client_settings::look(&text).map_err(|error| error.to_string()),
            Err(error) => Err(format!("it cannot be read: {error}")),
        };
        Some(Self { path, is_managed, sight })
    }
}

/// Why a hook that is named is not called, if it is not.
fn trouble(ours: &Ours, file: &Seen, all: &[Seen], home: &Path) -> Option<String> {
    let by = |says: fn(&Sight) -> bool, managed: bool| {
        let mut files = all.iter().filter(|seen| seen.is_managed == managed);
        files.find(|seen| seen.sight.as_ref().is_ok_and(says)).map(|seen| seen.path.display())
    };
    if let Some(path) = by(|sight| sight.disables_all, true) {
        return Some(format!("is not called: `{path}` says `disableAllHooks`"));
    }
    if !file.is_managed {
        if let Some(path) = by(|sight| sight.managed_only, true) {
            return Some(format!("is not called: `{path}` says `allowManagedHooksOnly`"));
        }
        if let Some(path) = by(|sight| sight.disables_all, false) {
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
    let below = ["$HOME/", "${HOME}/", "~/"].iter().find_map(|home| program.strip_prefix(home));
    let path = below.map_or_else(|| PathBuf::from(program), |below| home.join(below));
    if path.components().count() > 1 {
        return private::is_executable(&path);
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| private::is_executable(&folder.join(&path)))
}

fn backup_of(path: &Path) -> PathBuf {
    let mut backup = path.as_os_str().to_owned();
    backup.push(".before-ai-agent");
    backup.into()
}

/// What stands in a file; `None` where there is none.
fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::metadata(path) {
        Ok(file) if !file.is_file() => Err(io::Error::other("it is no file")),
        Ok(file) if file.len() > MOST => Err(io::Error::other("it is too long for settings")),
        Ok(_) => fs::read_to_string(path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
