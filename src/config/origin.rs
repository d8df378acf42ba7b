//! Origin of a value: its layer, and the line in its file.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde_json::json;

/// Layer that a value comes from. Its `Display` follows the word `in`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerOrigin {
    /// Built-in defaults.
    Defaults,
    /// Secret passed by systemd, with its name.
    Credential(String),
    /// File placed on the machine by an administrator.
    Machine(PathBuf),
    /// File of the user.
    User(PathBuf),
    /// File given with `--config`.
    Explicit(PathBuf),
    /// Environment variable.
    Environment(&'static str),
    /// Variable that the service was installed with, and the file that stores it.
    ServiceVariable(&'static str, PathBuf),
    /// Managed configuration of the server, with its revision.
    Managed(Option<String>),
}

impl LayerOrigin {
    /// Returns the path, if the origin is a file.
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

    /// Returns whether the layer overrides the user's file.
    #[must_use]
    pub fn is_above_user(&self) -> bool {
        match self {
            Self::Defaults | Self::Credential(_) | Self::Machine(_) | Self::User(_) => false,
            Self::Explicit(_)
            | Self::Environment(_)
            | Self::ServiceVariable(..)
            | Self::Managed(_) => true,
        }
    }

    /// Returns the name of the layer used in machine-readable output.
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
            Self::Explicit(path) => write!(f, "the file `{}` given with --config", file(path)),
            Self::Environment(name) => write!(f, "the environment variable `{name}`"),
            Self::ServiceVariable(name, path) => {
                write!(f, "the variable `{name}` stored in `{}`", path.display())
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

/// Origin and line of a value. Its `Display` follows the word `in`: the user's file
/// `config.toml:3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Layer.
    pub origin: LayerOrigin,
    /// Line, starting at 1, if the origin is a file.
    pub line: Option<usize>,
}

impl Location {
    /// Returns layer, file, line, variable, credential and revision as members of an object, as far
    /// as the origin has them.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let mut origin = json!({ "layer": self.origin.layer() });
        match &self.origin {
            LayerOrigin::Credential(name) => origin["credential"] = json!(name),
            LayerOrigin::Environment(variable) => origin["variable"] = json!(variable),
            LayerOrigin::ServiceVariable(variable, file) => {
                origin["variable"] = json!(variable);
                origin["file"] = json!(file.to_string_lossy());
            }
            LayerOrigin::Managed(revision) => origin["revision"] = json!(revision),
            file => {
                if let Some(path) = file.file() {
                    origin["file"] = json!(path.to_string_lossy());
                    origin["line"] = json!(self.line);
                }
            }
        }
        origin
    }
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
