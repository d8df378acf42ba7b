//! Test data outside of the workspace: `../shared`.

use std::{env, path::PathBuf};

use crate::sh;

/// Variable with another path of it.
pub(crate) const VARIABLE: &str = "AI_AGENT_SHARED";

/// Returns the directory, or the reason why it is missing.
pub(crate) fn find() -> Result<PathBuf, String> {
    let (path, named) = match env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => (PathBuf::from(path), true),
        None => (sh::workspace().join("..").join("shared"), false),
    };
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) if named => Err(format!("`{}` of {VARIABLE}: {error}", path.display())),
        Err(_) => Err(format!("../shared is missing, and {VARIABLE} is not set")),
    }
}

/// Reports whether this runs in CI, where a missing tool is a failure.
pub(crate) fn in_ci() -> bool {
    env::var_os("CI").is_some_and(|value| value == "true")
}
