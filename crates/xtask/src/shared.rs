//! The test data that lies beside a workspace and not in it: `../shared`.

use std::{env, path::PathBuf};

use crate::sh;

/// Names another place for it.
pub(crate) const VARIABLE: &str = "AI_AGENT_SHARED";

/// The directory, or why it is not there.
pub(crate) fn find() -> Result<PathBuf, String> {
    let (path, named) = match env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => (PathBuf::from(path), true),
        None => (sh::workspace().join("..").join("shared"), false),
    };
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) if named => Err(format!("`{}` of {VARIABLE}: {error}", path.display())),
        Err(_) => Err(format!("../shared is not there, and {VARIABLE} names no other place")),
    }
}

/// Whether this runs in CI, where a missing tool is a failure.
pub(crate) fn in_ci() -> bool {
    env::var_os("CI").is_some_and(|value| value == "true")
}
