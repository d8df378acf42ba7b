//! Paths of the agent's files on Linux, macOS and Windows.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};

use super::{environment::Environment, os::Os, program_data::program_data};

/// Paths of this user's and this machine's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Home directory of the user.
    pub home: PathBuf,
    /// Configuration of the machine, written by an administrator.
    pub machine_config: PathBuf,
    /// Directory with more files of the machine's configuration, read in the order of their names.
    pub machine_config_dir: PathBuf,
    /// Configuration of the user.
    pub user_config: PathBuf,
    /// Default state directory.
    pub default_state_dir: PathBuf,
    /// Directory of Claude Desktop.
    pub claude_desktop: PathBuf,
    /// Directory of the packages of store apps, each in a directory with its name.
    pub store_packages: Option<PathBuf>,
    /// Directory of Claude Code's managed settings.
    pub client_settings: PathBuf,
    /// Pointer to the state directory; its path depends on the home directory only.
    pub pointer: PathBuf,
    /// Files of an installed service.
    pub installed: InstalledPaths,
}

/// Paths of the files that `install` creates for a service of the user. They depend on the home
/// directory only where the service may have other variables than a shell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstalledPaths {
    /// Program.
    pub program: PathBuf,
    /// Service definition.
    pub definition: PathBuf,
    /// Environment variables of the service, readable by the owner only.
    pub environment: PathBuf,
    /// Possible definitions of a service for all users, created by an administrator.
    pub machine_definitions: Vec<PathBuf>,
}

impl Paths {
    /// Returns the paths on this system, if the home directory exists.
    ///
    /// # Errors
    /// [`PathsError`] if the home directory is not set or not a directory: nothing can be read
    /// then, and the caller ends.
    pub fn from_environment(environment: &Environment) -> Result<Self, PathsError> {
        let paths = Self::on(Os::CURRENT, environment)?;
        let variable = Os::CURRENT.home_variable();
        match fs::metadata(&paths.home) {
            Ok(metadata) if metadata.is_dir() => Ok(paths),
            Ok(_) => Err(PathsError::HomeIsNoDirectory { variable, home: paths.home }),
            Err(source) => Err(PathsError::Home { variable, home: paths.home, source }),
        }
    }

    /// Returns the paths on `os` with `environment`; accesses no file.
    ///
    /// # Errors
    /// [`PathsError`] if the home directory is not set, or not an absolute path.
    pub fn on(os: Os, environment: &Environment) -> Result<Self, PathsError> {
        let variable = os.home_variable();
        let home = environment.get(variable).ok_or(PathsError::NoHome { variable })?;
        if !os.is_absolute(home) {
            return Err(PathsError::RelativeHome { variable, home: home.into() });
        }
        let base = BaseDirectories { os, environment, home };
        Ok(match os {
            Os::Linux => base.linux(),
            Os::Macos => base.macos(),
            Os::Windows => base.windows(),
        })
    }

    /// Replaces a leading `~` with the home directory.
    #[must_use]
    pub fn expand(&self, path: &Path) -> PathBuf {
        match path.strip_prefix("~") {
            Ok(rest) if rest.as_os_str().is_empty() => self.home.clone(),
            Ok(rest) => self.home.join(rest),
            Err(_) => path.to_owned(),
        }
    }
}

/// Directories that the paths are below.
struct BaseDirectories<'a> {
    os: Os,
    environment: &'a Environment,
    home: &'a OsStr,
}

impl BaseDirectories<'_> {
    fn linux(&self) -> Paths {
        let config = self.variable_or_home("XDG_CONFIG_HOME", &[".config"]);
        let state = self.variable_or_home("XDG_STATE_HOME", &[".local", "state"]);
        let unit_below = |dir: &OsStr| self.os.below(dir, &["systemd", "user", "ai-agent.service"]);
        Paths {
            home: self.home.into(),
            machine_config: "/etc/ai-agent/config.toml".into(),
            machine_config_dir: "/etc/ai-agent/config.d".into(),
            user_config: self.os.below(&config, &["ai-agent", "config.toml"]),
            default_state_dir: self.os.below(&state, &["ai-agent"]),
            claude_desktop: self.os.below(&config, &["Claude"]),
            store_packages: None,
            client_settings: self.os.client_settings().into(),
            pointer: self.below_home(&[".local", "state", "ai-agent", "state-dir"]),
            installed: InstalledPaths {
                program: self.below_home(&[".local", "bin", "ai-agent"]),
                definition: unit_below(&config),
                environment: self.below_home(&[".config", "ai-agent", "environment"]),
                machine_definitions: ["/etc", "/usr/local/lib", "/usr/lib"]
                    .map(|dir| unit_below(OsStr::new(dir)))
                    .into(),
            },
        }
    }

    fn macos(&self) -> Paths {
        let support = self.below_home(&["Library", "Application Support"]);
        let below_support = |parts: &[&str]| self.os.below(support.as_os_str(), parts);
        Paths {
            home: self.home.into(),
            machine_config: "/Library/Application Support/ai-agent/config.toml".into(),
            machine_config_dir: "/Library/Application Support/ai-agent/config.d".into(),
            user_config: below_support(&["ai-agent", "config.toml"]),
            default_state_dir: below_support(&["ai-agent", "state"]),
            claude_desktop: below_support(&["Claude"]),
            store_packages: None,
            client_settings: self.os.client_settings().into(),
            pointer: below_support(&["ai-agent", "state", "state-dir"]),
            installed: InstalledPaths {
                program: below_support(&["ai-agent", "bin", "ai-agent"]),
                definition: self.below_home(&["Library", "LaunchAgents", "ai-agent.plist"]),
                environment: below_support(&["ai-agent", "environment"]),
                machine_definitions: vec!["/Library/LaunchAgents/ai-agent.plist".into()],
            },
        }
    }

    fn windows(&self) -> Paths {
        let data = program_data().into_os_string();
        let roaming = self.variable_or_home("APPDATA", &["AppData", "Roaming"]);
        let local = self.variable_or_home("LOCALAPPDATA", &["AppData", "Local"]);
        let pointer = ["AppData", "Local", "ai-agent", "state", "state-dir"];
        Paths {
            home: self.home.into(),
            machine_config: self.os.below(&data, &["ai-agent", "config.toml"]),
            machine_config_dir: self.os.below(&data, &["ai-agent", "config.d"]),
            user_config: self.os.below(&roaming, &["ai-agent", "config.toml"]),
            default_state_dir: self.os.below(&local, &["ai-agent", "state"]),
            claude_desktop: self.os.below(&roaming, &["Claude"]),
            store_packages: Some(self.os.below(&local, &["Packages"])),
            client_settings: self.os.client_settings().into(),
            pointer: self.below_home(&pointer),
            // A task of the machine has the same name, and only an administrator may change it.
            installed: InstalledPaths {
                program: self.os.below(&local, &["ai-agent", "ai-agent.exe"]),
                definition: self.os.below(&local, &["ai-agent", "task.xml"]),
                environment: self.below_home(&["AppData", "Local", "ai-agent", "environment"]),
                machine_definitions: Vec::new(),
            },
        }
    }

    /// Returns an absolute path from a variable. The XDG base directory specification requires
    /// relative paths to be ignored: <https://specifications.freedesktop.org/basedir-spec/latest/>
    fn variable(&self, name: &str) -> Option<&OsStr> {
        self.environment.get(name).filter(|path| self.os.is_absolute(path))
    }

    /// Returns the path from a variable, or else a directory below the home directory.
    fn variable_or_home(&self, name: &str, parts: &[&str]) -> OsString {
        match self.variable(name) {
            Some(path) => path.to_owned(),
            None => self.below_home(parts).into_os_string(),
        }
    }

    fn below_home(&self, parts: &[&str]) -> PathBuf {
        self.os.below(self.home, parts)
    }
}

/// Reason why the paths are unknown.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// No variable contains the home directory.
    #[error(
        "{variable} is not set: set it to the home directory of the user whose sessions are \
         read, as in `{variable}={}`",
        if *variable == "HOME" { "/home/you" } else { r"C:\Users\you" }
    )]
    NoHome {
        /// Name of the variable.
        variable: &'static str,
    },
    /// The home directory is a relative path.
    #[error("{variable} is `{}`, which is not an absolute path", home.display())]
    RelativeHome {
        /// Name of the variable.
        variable: &'static str,
        /// Value of the variable.
        home: PathBuf,
    },
    /// The home directory is not a directory.
    #[error("{variable} is `{}`, which is not a directory", home.display())]
    HomeIsNoDirectory {
        /// Name of the variable.
        variable: &'static str,
        /// Value of the variable.
        home: PathBuf,
    },
    /// The home directory cannot be accessed.
    #[error("{variable} is `{}`, which cannot be accessed", home.display())]
    Home {
        /// Name of the variable.
        variable: &'static str,
        /// Value of the variable.
        home: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(os: Os, variables: &[(&str, &str)]) -> Paths {
        Paths::on(os, &variables.iter().copied().collect()).unwrap()
    }

    fn as_text(paths: &Paths) -> [&str; 5] {
        [
            &paths.home,
            &paths.machine_config,
            &paths.machine_config_dir,
            &paths.user_config,
            &paths.default_state_dir,
        ]
        .map(|path| path.to_str().unwrap())
    }

    #[test]
    fn paths_on_linux() {
        let expected = [
            "/home/u",
            "/etc/ai-agent/config.toml",
            "/etc/ai-agent/config.d",
            "/home/u/.config/ai-agent/config.toml",
            "/home/u/.local/state/ai-agent",
        ];
        assert_eq!(as_text(&paths(Os::Linux, &[("HOME", "/home/u")])), expected);
    }

    #[test]
    fn paths_on_linux_with_xdg_directories() {
        let variables =
            [("HOME", "/home/u"), ("XDG_CONFIG_HOME", "/c"), ("XDG_STATE_HOME", "relative")];
        let paths = paths(Os::Linux, &variables);
        assert_eq!(as_text(&paths)[3], "/c/ai-agent/config.toml");
        assert_eq!(as_text(&paths)[4], "/home/u/.local/state/ai-agent");
    }

    #[test]
    fn paths_on_macos() {
        let expected = [
            "/Users/u",
            "/Library/Application Support/ai-agent/config.toml",
            "/Library/Application Support/ai-agent/config.d",
            "/Users/u/Library/Application Support/ai-agent/config.toml",
            "/Users/u/Library/Application Support/ai-agent/state",
        ];
        assert_eq!(as_text(&paths(Os::Macos, &[("HOME", "/Users/u")])), expected);
    }

    #[test]
    fn paths_on_windows() {
        let variables = [
            ("USERPROFILE", r"C:\Users\u"),
            // A user must not move the configuration of the machine.
            ("ProgramData", r"C:\Users\u\none"),
            ("APPDATA", r"C:\Users\u\AppData\Roaming"),
        ];
        let expected = [
            r"C:\Users\u",
            r"C:\ProgramData\ai-agent\config.toml",
            r"C:\ProgramData\ai-agent\config.d",
            r"C:\Users\u\AppData\Roaming\ai-agent\config.toml",
            r"C:\Users\u\AppData\Local\ai-agent\state",
        ];
        assert_eq!(as_text(&paths(Os::Windows, &variables)), expected);
    }

    fn refusal(os: Os, variables: &[(&str, &str)]) -> String {
        Paths::on(os, &variables.iter().copied().collect()).unwrap_err().to_string()
    }

    #[test]
    fn missing_or_relative_home_is_an_error() {
        let expected = "HOME is not set: set it to the home directory of the user whose \
                        sessions are read, as in `HOME=/home/you`";
        assert_eq!(refusal(Os::Linux, &[]), expected);
        assert_eq!(refusal(Os::Linux, &[("HOME", "")]), expected);
        assert!(refusal(Os::Windows, &[("HOME", "/u")]).starts_with("USERPROFILE is not set: "));
        let relative = refusal(Os::Linux, &[("HOME", "u")]);
        assert_eq!(relative, "HOME is `u`, which is not an absolute path");
    }

    #[cfg(unix)]
    #[test]
    fn home_that_is_not_a_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "").unwrap();
        let home = |path: &Path| Environment::from_iter([("HOME", path.as_os_str())]);

        assert!(Paths::from_environment(&home(dir.path())).is_ok());
        let error = Paths::from_environment(&home(&file)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("HOME is `{}`, which is not a directory", file.display())
        );
        let error = Paths::from_environment(&home(&dir.path().join("none"))).unwrap_err();
        assert!(matches!(error, PathsError::Home { .. }), "{error}");
    }

    #[test]
    fn expand_replaces_a_leading_tilde() {
        let paths = paths(Os::Linux, &[("HOME", "/home/u")]);
        assert_eq!(paths.expand(Path::new("~/x")), Path::new("/home/u/x"));
        assert_eq!(paths.expand(Path::new("~")), Path::new("/home/u"));
        assert_eq!(paths.expand(Path::new("/x/~")), Path::new("/x/~"));
        assert_eq!(paths.expand(Path::new("~x")), Path::new("~x"));
    }
}
