//! Sessions for a demo: those of this machine, or samples.

use std::{
    env, fmt, fs,
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::{Failure, sh};

/// Sessions of Claude Code, below a home.
const PROJECTS: &str = ".claude/projects";
/// Project of the samples.
const PROJECT: &str = "-home-dev-shop";

/// Sessions to read.
pub(super) enum Sessions {
    /// All sessions below this directory.
    Below(PathBuf),
    /// Copies of the samples, in the home of the demo's agent.
    Samples(PathBuf),
}

impl Sessions {
    /// Selects the given directory, otherwise the sessions of this machine, otherwise samples in
    /// `home`.
    pub(super) fn choose(requested: Option<&Path>, home: &Path) -> Result<Self, Failure> {
        if let Some(root) = requested {
            let wrong = |error| format!("cannot read sessions from `{}`: {error}", root.display());
            let root = root.canonicalize().map_err(wrong)?;
            fs::read_dir(&root).map_err(wrong)?;
            return Ok(Self::Below(root));
        }
        if let Some(root) = own_roots().into_iter().find(|root| holds_sessions(root)) {
            return Ok(Self::Below(root));
        }
        let projects = home.join(PROJECTS);
        copy(&sh::workspace().join("samples/projects"), &projects)
            .map_err(|error| format!("cannot copy the samples: {error}"))?;
        Ok(Self::Samples(projects))
    }

    /// Directory to configure for an agent without sessions in its home.
    pub(super) fn root(&self) -> Option<&Path> {
        match self {
            Self::Below(root) => Some(root),
            Self::Samples(_) => None,
        }
    }

    /// Writer that keeps the samples growing.
    pub(super) fn player(&self) -> Option<Player> {
        match self {
            Self::Below(_) => None,
            Self::Samples(projects) => Some(Player::new(projects.join(PROJECT))),
        }
    }
}

impl fmt::Display for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Below(root) => write!(f, "{}", root.display()),
            Self::Samples(_) => f.write_str("samples: there are no sessions in ~/.claude/projects"),
        }
    }
}

/// Possible directories of this user's sessions.
fn own_roots() -> Vec<PathBuf> {
    let given = |name| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let moved = given("CLAUDE_CONFIG_DIR").map(|directory| directory.join("projects"));
    let usual = env::home_dir().map(|home| home.join(PROJECTS));
    moved.into_iter().chain(usual).collect()
}

/// Reports whether there is a session at any depth.
fn holds_sessions(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => holds_sessions(&entry.path()),
        Ok(_) => entry.path().extension().is_some_and(|extension| extension == "jsonl"),
        Err(_) => false,
    })
}

/// Copies a tree; existing files stay as they are.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else if !target.try_exists()? {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Writes sessions line by line, as Claude Code would: repeats the samples, each time in another
/// file.
pub(super) struct Player {
    directory: PathBuf,
    lines: Vec<Vec<u8>>,
    next: usize,
    session: Option<File>,
}

impl Player {
    fn new(directory: PathBuf) -> Self {
        Self { directory, lines: Vec::new(), next: 0, session: None }
    }

    /// Appends the next line.
    pub(super) fn play(&mut self) -> io::Result<()> {
        let Some(line) = self.lines.get(self.next) else { return self.begin() };
        if let Some(session) = &mut self.session {
            session.write_all(line)?;
        }
        self.next += 1;
        Ok(())
    }

    /// Starts a new session.
    fn begin(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            self.lines = lines(&self.directory)?;
        }
        self.next = 0;
        for number in 1.. {
            let name = format!("{number:08x}-0000-4000-8000-000000000000.jsonl");
            match File::create_new(self.directory.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                opened => {
                    self.session = Some(opened?);
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Lines of the longest session, with their endings.
fn lines(directory: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut longest = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            let session = fs::read(path)?;
            if session.len() > longest.len() {
                longest = session;
            }
        }
    }
    Ok(longest.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn sessions_are_played_line_by_line() {
        let folder = folder("play");
        fs::write(folder.join("a.jsonl"), "{\"n\":1}\n{\"n\":2}\n").unwrap();
        let mut player = Player::new(folder.clone());
        for _ in 0..5 {
            player.play().unwrap();
        }
        let read = |number| {
            let name = format!("0000000{number}-0000-4000-8000-000000000000.jsonl");
            fs::read_to_string(folder.join(name)).unwrap()
        };
        assert_eq!(read(1), "{\"n\":1}\n{\"n\":2}\n");
        assert_eq!(read(2), "{\"n\":1}\n");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn samples_are_copied_without_overwriting() {
        let folder = folder("copy");
        copy(&sh::workspace().join("samples/projects"), &folder).unwrap();
        assert!(holds_sessions(&folder));
        let odd = folder.join(PROJECT).join("odd.jsonl");
        fs::write(&odd, "grown").unwrap();
        copy(&sh::workspace().join("samples/projects"), &folder).unwrap();
        assert_eq!(fs::read_to_string(odd).unwrap(), "grown");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn missing_directory_is_named() {
        let requested = Path::new("/nowhere/at-all");
        let error = Sessions::choose(Some(requested), requested).err().unwrap().to_string();
        assert!(error.starts_with("cannot read sessions from `/nowhere/at-all`: "), "{error}");
    }
}
