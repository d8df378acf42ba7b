//! A home directory for one test.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use super::agent::AgentCommand;

/// A new home directory with `.claude/projects`, removed when dropped.
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

    /// State directory of the agent.
    pub(crate) fn state_dir(&self) -> PathBuf {
        let windows = r"AppData\Local\ai-agent\state";
        self.path().join(if cfg!(windows) { windows } else { ".local/state/ai-agent" })
    }

    /// Directory that Claude Code writes to.
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

    /// Changes the owner of the directory and everything in it. Requires root.
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

    /// The command line of an agent of this user.
    pub(crate) fn agent(&self, arguments: &[&str]) -> AgentCommand {
        AgentCommand::new(self.path(), arguments)
    }
}

/// Appends to a file in one write.
pub(crate) fn append_to(path: &Path, bytes: impl AsRef<[u8]>) {
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    file.write_all(bytes.as_ref()).unwrap();
}
