//! Location of a value: its layer, and the line in its file.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

/// Layer that a value comes from. Its `Display` follows the word `in`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Built-in defaults.
    Defaults,
    /// Configuration file.
    File(PathBuf),
    /// Environment variable.
    Variable(String),
    /// Argument of the command.
    Argument(String),
}

/// Origin and line of a value. Its `Display` follows the word `in`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueLocation {
    /// Layer.
    pub origin: Origin,
    /// Line, starting at 1, if the origin is a file.
    pub line: Option<usize>,
}

impl ValueLocation {
    /// Returns layer, file, line, variable and argument as members of an object, as far as the origin has
    /// them.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match &self.origin {
            Origin::Defaults => json!({ "layer": "defaults" }),
            Origin::File(path) => {
                json!({ "layer": "file", "file": path.to_string_lossy(), "line": self.line })
            }
            Origin::Variable(name) => json!({ "layer": "environment", "variable": name }),
            Origin::Argument(name) => json!({ "layer": "arguments", "argument": name }),
        }
    }
}

impl From<Origin> for ValueLocation {
    fn from(origin: Origin) -> Self {
        Self { origin, line: None }
    }
}

impl fmt::Display for ValueLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.origin, self.line) {
            (Origin::Defaults, _) => f.write_str("the built-in defaults"),
            (Origin::File(path), Some(line)) => write!(f, "`{}:{line}`", path.display()),
            (Origin::File(path), None) => write!(f, "`{}`", path.display()),
            (Origin::Variable(name), _) => write!(f, "the environment variable `{name}`"),
            (Origin::Argument(name), _) => write!(f, "the argument `{name}`"),
        }
    }
}
