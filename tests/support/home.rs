//! A user's home directory, for one test.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use super::agent::AgentCommand;

/// A new home with `.claude/projects` in it; gone when dropped.
pub(crate) struct Home(tempfile::TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(home.projects()).unwrap();
        home
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Where the agent keeps its state.
    pub(crate) fn state_dir(&self) -> PathBuf {
        let windows = "AppData/Local/ai-agent/state";
        self.path().join(if cfg!(windows) { windows } else { ".local/state/ai-agent" })
    }

    /// Where Claude Code writes.
    pub(crate) fn projects(&self) -> PathBuf {
        self.path().join(".claude/projects")
    }

    /// Writes a session file of `name` below the projects.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.projects().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Appends to a session file of `name` below the projects.
    pub(crate) fn append(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.projects().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        append_to(&path, bytes);
        path
    }

    /// Makes it another user's, with all that is in it; for root only.
    #[cfg(unix)]
    pub(crate) fn give_to(&self, user: u32) {
        let give = |path: &Path| std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
        let mut paths = vec![self.path().to_owned()];
        while let Some(path) = paths.pop() {
            give(&path);
            if path.is_dir() {
                paths.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
    }

    /// The agent, at work for this user.
    pub(crate) fn agent(&self, arguments: &[&str]) -> AgentCommand {
        AgentCommand::new(self.path(), arguments)
    }
}

/// Appends to a file in one write.
pub(crate) fn append_to(path: &Path, bytes: impl AsRef<[u8]>) {
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    file.write_all(bytes.as_ref()).unwrap();
}
