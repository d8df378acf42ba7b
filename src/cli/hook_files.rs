//! Hooks of ai-agent in Claude Code's settings files: whether each is active, and why not.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::{
    compliance::{
        client_files::ClientSettingsFile,
        client_settings::{AgentHook, HookSettings, program_of},
        hook_response::Hook,
    },
    platform::secure_file,
};

/// A hook of ai-agent in a settings file.
pub(super) struct InstalledHook {
    pub(super) path: PathBuf,
    pub(super) is_managed: bool,
    pub(super) hook: Hook,
    /// Reason why the hook is not active; `None` when it is.
    pub(super) problem: Option<HookProblem>,
}

/// Reason why a hook is not active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HookProblem {
    /// The settings file switches off all hooks.
    AllDisabled(PathBuf),
    /// The settings file permits hooks of managed settings only.
    ManagedOnly(PathBuf),
    /// The command of the hook is not a program on this machine.
    ProgramMissing(String),
    /// The hook runs only for sessions that start as its matcher says.
    Matcher(String),
}

impl HookProblem {
    /// Stable code of the reason, as docs/scripts.md lists it.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::AllDisabled(_) => "all_disabled",
            Self::ManagedOnly(_) => "managed_only",
            Self::ProgramMissing(_) => "program_missing",
            Self::Matcher(_) => "matcher",
        }
    }
}

impl fmt::Display for HookProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllDisabled(path) => {
                write!(f, "is disabled: `{}` sets `disableAllHooks`", path.display())
            }
            Self::ManagedOnly(path) => {
                write!(f, "is disabled: `{}` sets `allowManagedHooksOnly`", path.display())
            }
            Self::ProgramMissing(program) => write!(
                f,
                "runs `{program}`, which is not a program on this machine: prompts are not checked"
            ),
            Self::Matcher(matcher) => write!(
                f,
                "runs for `{matcher}` only: without a matcher it also runs for sessions that are \
                 resumed, forked, cleared or compacted"
            ),
        }
    }
}

/// Finds the hooks of ai-agent in settings files.
pub(super) fn installed(files: &[ClientSettingsFile], home: &Path) -> Vec<InstalledHook> {
    let in_file = |file: &ClientSettingsFile| -> Vec<InstalledHook> {
        let hooks = file.hooks.iter().flat_map(|hooks| &hooks.ours);
        let installed = |hook: &AgentHook| InstalledHook {
            path: file.path.clone(),
            is_managed: file.is_managed,
            hook: hook.hook,
            problem: problem(hook, file, files, home),
        };
        hooks.map(installed).collect()
    };
    files.iter().flat_map(in_file).collect()
}

/// Reason why a hook is not active.
fn problem(
    hook: &AgentHook,
    file: &ClientSettingsFile,
    all: &[ClientSettingsFile],
    home: &Path,
) -> Option<HookProblem> {
    let file_with = |setting: fn(&HookSettings) -> bool, managed: bool| {
        let mut files = all.iter().filter(|file| file.is_managed == managed);
        let found = files.find(|file| file.hooks.as_ref().is_ok_and(setting));
        found.map(|file| file.path.clone())
    };
    if let Some(path) = file_with(|hooks| hooks.disables_all, true) {
        return Some(HookProblem::AllDisabled(path));
    }
    if !file.is_managed {
        if let Some(path) = file_with(|hooks| hooks.managed_only, true) {
            return Some(HookProblem::ManagedOnly(path));
        }
        if let Some(path) = file_with(|hooks| hooks.disables_all, false) {
            return Some(HookProblem::AllDisabled(path));
        }
    }
    let program = program_of(&hook.command);
    if !is_executable(program, home) {
        return Some(HookProblem::ProgramMissing(program.to_owned()));
    }
    let matcher = hook.matcher.as_ref().filter(|_| hook.hook == Hook::SessionStart)?;
    Some(HookProblem::Matcher(matcher.clone()))
}

/// Returns true if the program that a shell would run exists.
fn is_executable(program: &str, home: &Path) -> bool {
    let path = expand_home(program, home).unwrap_or_else(|| PathBuf::from(program));
    if path.components().count() > 1 {
        return secure_file::is_executable(&path);
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| secure_file::is_executable(&folder.join(&path)))
}

/// Expands a path below the home directory as a shell does.
pub(super) fn expand_home(program: &str, home: &Path) -> Option<PathBuf> {
    let below = ["$HOME/", "${HOME}/", "~/"].iter().find_map(|home| program.strip_prefix(home))?;
    Some(home.join(below))
}
