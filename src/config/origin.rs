//! Where a value comes from: its layer, and the line in its file.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Where a value comes from. Reads on after `in`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerOrigin {
    /// The program itself.
    Defaults,
    /// A secret that systemd hands over, by its name.
    Credential(String),
    /// A file that an administrator put on the machine.
    Machine(PathBuf),
    /// The user's own file.
    User(PathBuf),
    /// The file that the command line names.
    Explicit(PathBuf),
    /// An environment variable.
    Environment(&'static str),
    /// A variable that the service was installed with, and the file that keeps it.
    ServiceVariable(&'static str, PathBuf),
    /// What the server manages, under this revision.
    Managed(Option<String>),
}

impl LayerOrigin {
    /// The file, if it is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Machine(path) | Self::User(path) | Self::Explicit(path) => Some(path),
            Self::Defaults
            | Self::Credential(_)
            | Self::Environment(_)
            | Self::ServiceVariable(..)
            | Self::Managed(_) => None,
        }
    }

    /// The layer's word, for programs that read what the agent prints.
    #[must_use]
    pub fn layer(&self) -> &'static str {
        match self {
            Self::Defaults => "defaults",
            Self::Credential(_) => "credential",
            Self::Machine(_) => "machine",
            Self::User(_) => "user",
            Self::Explicit(_) => "command-line",
            Self::Environment(_) | Self::ServiceVariable(..) => "environment",
            Self::Managed(_) => "managed",
        }
    }

    fn write(&self, line: Option<usize>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = |path: &Path| match line {
            Some(line) => format!("{}:{line}", path.display()),
            None => path.display().to_string(),
        };
        match self {
            Self::Defaults => f.write_str("the built-in defaults"),
            Self::Credential(name) => write!(f, "the systemd credential `{name}`"),
            Self::Machine(path) => write!(f, "the machine's file `{}`", file(path)),
            Self::User(path) => write!(f, "the user's file `{}`", file(path)),
            Self::Explicit(path) => write!(f, "the file `{}` of --config", file(path)),
            Self::Environment(name) => write!(f, "the environment variable `{name}`"),
            Self::ServiceVariable(name, path) => {
                write!(f, "the variable `{name}` that `{}` keeps", path.display())
            }
            Self::Managed(None) => f.write_str("the server's managed configuration"),
            Self::Managed(Some(revision)) => {
                write!(f, "the server's managed configuration `{revision}`")
            }
        }
    }
}

impl fmt::Display for LayerOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(None, f)
    }
}

/// An origin, and the line in it. Reads on after `in`: the user's file `config.toml:3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The layer.
    pub origin: LayerOrigin,
    /// The line, from 1, where the origin is a file.
    pub line: Option<usize>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.origin.write(self.line, f)
    }
}

impl From<LayerOrigin> for Location {
    fn from(origin: LayerOrigin) -> Self {
        Self { origin, line: None }
    }
}
