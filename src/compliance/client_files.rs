//! Where Claude Code's settings lie, and what they say of hooks.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::client_settings::{self, HookSettings};
use crate::platform::{Environment, Paths};

/// A longer file is none of the client's.
const MOST: u64 = 16 << 20;

/// Where Claude Code's settings lie.
#[derive(Clone, Debug)]
pub struct ClientSettingsFiles {
    /// The user's.
    pub user: PathBuf,
    /// The machine's.
    pub managed: PathBuf,
    /// More of the machine's, over that file.
    managed_more: PathBuf,
}

/// A settings file that is there.
#[derive(Clone, Debug)]
pub struct ClientSettingsFile {
    /// The file.
    pub path: PathBuf,
    /// Whether it is the machine's.
    pub is_managed: bool,
    /// What it says, or why nobody knows.
    pub hooks: Result<HookSettings, String>,
}

impl ClientSettingsFiles {
    /// Those of the user, and of the machine.
    #[must_use]
    pub fn new(environment: &Environment, paths: &Paths) -> Self {
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

    /// All settings files that are there, the managed ones first.
    #[must_use]
    pub fn read_all(&self) -> Vec<ClientSettingsFile> {
        let more = fs::read_dir(&self.managed_more).into_iter().flatten().flatten();
        let mut more: Vec<PathBuf> = more.map(|entry| entry.path()).collect();
        more.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
        more.sort();
        let managed = [self.managed.clone()].into_iter().chain(more).map(|path| (path, true));
        let all = managed.chain([(self.user.clone(), false)]);
        all.filter_map(|(path, is_managed)| ClientSettingsFile::of(path, is_managed)).collect()
    }

    /// After how long without a change the client deletes a session, at the earliest: a project's own
    /// settings may say less. <https://code.claude.com/docs/en/settings>
    #[must_use]
    pub fn cleanup_period(&self) -> Duration {
        const DEFAULT: u64 = 30;
        let seen = self.read_all();
        let hooks = seen.iter().filter_map(|seen| seen.hooks.as_ref().ok());
        let days = hooks.filter_map(|hooks| hooks.cleanup_period_days).min().unwrap_or(DEFAULT);
        Duration::from_secs(days.clamp(1, 36_500) * 86_400)
    }

    /// Whether one of them names a hook of ours.
    #[must_use]
    pub fn has_agent_hooks(&self) -> bool {
        self.read_all()
            .iter()
            .any(|seen| seen.hooks.as_ref().is_ok_and(|hooks| !hooks.ours.is_empty()))
    }
}

impl ClientSettingsFile {
    fn of(path: PathBuf, is_managed: bool) -> Option<Self> {
        let hooks = match read(&path) {
            Ok(None) => return None,
            Ok(Some(text)) => client_settings::inspect(&text).map_err(|error| error.to_string()),
            Err(error) => Err(format!("it cannot be read: {error}")),
        };
        Some(Self { path, is_managed, hooks })
    }
}

/// What stands in a settings file; `None` where there is none.
///
/// # Errors
/// What the system says, or that it can be no settings file.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::metadata(path) {
        Ok(file) if !file.is_file() => Err(io::Error::other("it is no file")),
        Ok(file) if file.len() > MOST => Err(io::Error::other("it is too long for settings")),
        Ok(_) => fs::read_to_string(path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
