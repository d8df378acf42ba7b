//! Operating systems, and how each of them writes paths.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

/// Supported operating systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Os {
    /// Linux, and systems similar to it.
    Linux,
    /// macOS.
    Macos,
    /// Windows.
    Windows,
}

impl Os {
    /// System that this program was built for.
    pub const CURRENT: Self = if cfg!(target_os = "macos") {
        Self::Macos
    } else if cfg!(windows) {
        Self::Windows
    } else {
        Self::Linux
    };

    /// Returns the name used in the protocol.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Macos => "macos",
            Self::Windows => "windows",
        }
    }

    /// Returns the variable that contains the user's home directory.
    pub(super) const fn home_variable(self) -> &'static str {
        match self {
            Self::Linux | Self::Macos => "HOME",
            Self::Windows => "USERPROFILE",
        }
    }

    /// Returns the directory of Claude Code's managed settings.
    pub(super) const fn client_settings(self) -> &'static str {
        match self {
            Self::Linux => "/etc/claude-code",
            Self::Macos => "/Library/Application Support/ClaudeCode",
            Self::Windows => r"C:\Program Files\ClaudeCode",
        }
    }

    /// Returns whether `path` is absolute on this system, independent of the system that the program
    /// runs on.
    pub(super) fn is_absolute(self, path: &OsStr) -> bool {
        let bytes = path.as_encoded_bytes();
        match self {
            Self::Linux | Self::Macos => bytes.starts_with(b"/"),
            Self::Windows => {
                bytes.starts_with(br"\\") || matches!(bytes, [_, b':', b'\\' | b'/', ..])
            }
        }
    }

    /// Returns whether `path` is absolute on any system.
    #[must_use]
    pub fn is_absolute_on_any(path: &OsStr) -> bool {
        [Self::Linux, Self::Windows].into_iter().any(|os| os.is_absolute(path))
    }

    /// Joins `base` and `parts` with this system's separator.
    pub(super) fn below(self, base: &OsStr, parts: &[&str]) -> PathBuf {
        let separator = if self == Self::Windows { "\\" } else { "/" };
        let mut path = OsString::from(base);
        for part in parts {
            path.push(separator);
            path.push(part);
        }
        path.into()
    }
}
