//! Version of the program.

use std::sync::OnceLock;

static OWN: OnceLock<&str> = OnceLock::new();

/// Sets the version of a program with stages of its own, in place of that of this crate. The first call
/// counts.
pub(crate) fn set(version: &'static str) {
    OWN.get_or_init(|| version);
}

/// Returns the version of this program.
#[must_use]
pub(crate) fn version() -> &'static str {
    OWN.get().copied().unwrap_or(env!("CARGO_PKG_VERSION"))
}
