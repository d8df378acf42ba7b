//! Warnings about a configuration: parts that have no effect or look wrong.

use std::fmt;

use super::origin::Location;

/// Warning about a configuration. Its `Display` is one sentence, without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigWarning {
    /// Stable code: `config check --json` prints it.
    pub code: &'static str,
    /// Dotted key, if it is about one.
    pub key: Option<String>,
    /// Layer and line, if it is about a value in a layer.
    pub location: Option<Location>,
    message: String,
}

impl ConfigWarning {
    /// Code of the warning about a sink that sends unencrypted to another machine.
    pub const TRANSPORT_PLAIN: &'static str = "transport_plain";

    /// Creates a warning that is about no value.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, key: None, location: None, message: message.into() }
    }

    /// Names the key that the warning is about.
    #[must_use]
    pub fn about_key(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// Names the value that the warning is about.
    #[must_use]
    pub fn about(self, key: impl Into<String>, location: Location) -> Self {
        Self { key: Some(key.into()), location: Some(location), ..self }
    }
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
