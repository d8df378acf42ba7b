//! Settings files of Claude Code, and the hooks in them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::client_settings::{self, HookSettings};
use crate::platform::{Environment, Paths, SystemClock, bounded::BoundedCalls};

/// Maximum size of a settings file.
const MOST: u64 = 16 << 20;

/// Paths of Claude Code's settings files.
#[derive(Clone, Debug)]
pub struct ClientSettingsFiles {
    /// Settings of the user.
    pub user: PathBuf,
    /// Managed settings of the machine.
    pub managed: PathBuf,
    /// Directory with more managed settings, which override that file.
    managed_more: PathBuf,
    calls: BoundedCalls,
}

/// Settings file that exists.
#[derive(Clone, Debug)]
pub struct ClientSettingsFile {
    /// Path of the file.
    pub path: PathBuf,
    /// True if the settings are managed.
    pub is_managed: bool,
    /// Parsed settings, or the reason why they cannot be read.
    pub hooks: Result<HookSettings, String>,
}

impl ClientSettingsFiles {
    /// Returns the paths for the user and the machine.
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
            calls: BoundedCalls::new(Arc::new(SystemClock)),
        }
    }

    /// Uses `calls` to read the files.
    #[must_use]
    pub fn with_calls(self, calls: &BoundedCalls) -> Self {
        Self { calls: calls.clone(), ..self }
    }

    /// Reads all settings files that exist, the managed ones first. A file that does not answer counts
    /// as one that cannot be read.
    #[must_use]
    pub fn read_all(&self) -> Vec<ClientSettingsFile> {
        let folder = self.managed_more.clone();
        let list = move || {
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            Ok(entries.map(|entry| entry.path()).collect())
        };
        let mut more: Vec<PathBuf> = self.calls.run(&self.managed_more, list).unwrap_or_default();
        more.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
        more.sort();
        let managed = [self.managed.clone()].into_iter().chain(more).map(|path| (path, true));
        let all = managed.chain([(self.user.clone(), false)]);
        all.filter_map(|(path, is_managed)| self.read_one(path, is_managed)).collect()
    }

    fn read_one(&self, path: PathBuf, is_managed: bool) -> Option<ClientSettingsFile> {
        let its_path = path.clone();
        let read = self.calls.run(&path, move || Ok(ClientSettingsFile::of(its_path, is_managed)));
        read.unwrap_or_else(|error| {
            let hooks = Err(format!("cannot read the file: it {error}"));
            Some(ClientSettingsFile { path, is_managed, hooks })
        })
    }

    /// Returns the shortest time after which the client deletes an unchanged session; a project's
    /// own settings may set a shorter one. <https://code.claude.com/docs/en/settings>
    #[must_use]
    pub fn cleanup_period(&self) -> Duration {
        const DEFAULT: u64 = 30;
        let seen = self.read_all();
        let hooks = seen.iter().filter_map(|seen| seen.hooks.as_ref().ok());
        let days = hooks.filter_map(|hooks| hooks.cleanup_period_days).min().unwrap_or(DEFAULT);
        Duration::from_secs(days.clamp(1, 36_500) * 86_400)
    }

    /// Returns whether any settings file contains a hook of this program.
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
            Err(error) => Err(format!("cannot read the file: {error}")),
        };
        Some(Self { path, is_managed, hooks })
    }
}

/// Reads a settings file; `None` if it does not exist.
///
/// # Errors
/// The file cannot be read, is not a regular file, or is too large.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::metadata(path) {
        Ok(file) if !file.is_file() => Err(io::Error::other("not a regular file")),
        Ok(file) if file.len() > MOST => Err(io::Error::other("too large for a settings file")),
        Ok(_) => fs::read_to_string(path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
