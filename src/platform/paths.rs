//! Where things lie on Linux, macOS and Windows.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};

use super::Environment;

/// The systems that the agent is at home on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Os {
    /// Linux, and what is close to it.
    Linux,
    /// macOS.
    Macos,
    /// Windows.
    Windows,
}

impl Os {
    /// The system that this program was built for.
    pub const CURRENT: Self = if cfg!(target_os = "macos") {
        Self::Macos
    } else if cfg!(windows) {
        Self::Windows
    } else {
        Self::Linux
    };

    /// Its name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Macos => "macos",
            Self::Windows => "windows",
        }
    }

    /// The variable that names the user's home directory.
    pub(super) const fn home_variable(self) -> &'static str {
        match self {
            Self::Linux | Self::Macos => "HOME",
            Self::Windows => "USERPROFILE",
        }
    }

    /// The folder of Claude Code's managed settings.
    const fn client_settings(self) -> &'static str {
        match self {
            Self::Linux => "/etc/claude-code",
            Self::Macos => "/Library/Application Support/ClaudeCode",
            Self::Windows => r"C:\Program Files\ClaudeCode",
        }
    }

    /// Whether `path` is absolute on this system, whatever system the program runs on.
    fn is_absolute(self, path: &OsStr) -> bool {
        let bytes = path.as_encoded_bytes();
        match self {
            Self::Linux | Self::Macos => bytes.starts_with(b"/"),
            Self::Windows => {
                bytes.starts_with(br"\\") || matches!(bytes, [_, b':', b'\\' | b'/', ..])
            }
        }
    }

    /// `base` and `parts` below it, with this system's separator.
    fn below(self, base: &OsStr, parts: &[&str]) -> PathBuf {
        let separator = if self == Self::Windows { "\\" } else { "/" };
        let mut path = OsString::from(base);
        for part in parts {
            path.push(separator);
            path.push(part);
        }
        path.into()
    }
}

/// Where this user's and this machine's files lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The user's home directory.
    pub home: PathBuf,
    /// The machine's configuration, set by an administrator.
    pub machine_config: PathBuf,
    /// More files of the machine's configuration, read in the order of their names.
    pub machine_config_dir: PathBuf,
    /// The user's configuration.
    pub user_config: PathBuf,
    /// The state directory, where the configuration names no other.
    pub default_state_dir: PathBuf,
    /// Where Claude Desktop keeps its files, where it is installed.
    pub claude_desktop: PathBuf,
    /// Where apps of the system's store keep theirs, each in a folder with its name.
    pub store_packages: Option<PathBuf>,
    /// Where an administrator keeps settings of Claude Code.
    pub client_settings: PathBuf,
    /// Says where the state directory is, at a place that depends on the home directory alone.
    pub pointer: PathBuf,
    /// What `install` lays down.
    pub installed: InstalledPaths,
}

/// Where the parts of an agent lie that `install` made a service of the user. By the home directory
/// alone where the service could know other variables than a shell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstalledPaths {
    /// The program.
    pub program: PathBuf,
    /// What describes the service to the system.
    pub definition: PathBuf,
    /// The variables that it is given, for its owner only.
    pub environment: PathBuf,
    /// Where an administrator describes a service of all users.
    pub machine_definitions: Vec<PathBuf>,
}

impl Paths {
    /// The paths of this system, for a home directory that is there.
    ///
    /// # Errors
    /// [`PathsError`] when the home directory is not named, or is none: nothing can be read then,
    /// and the caller reports it and ends.
    pub fn from_environment(environment: &Environment) -> Result<Self, PathsError> {
        let paths = Self::on(Os::CURRENT, environment)?;
        let variable = Os::CURRENT.home_variable();
        match fs::metadata(&paths.home) {
            Ok(metadata) if metadata.is_dir() => Ok(paths),
            Ok(_) => Err(PathsError::HomeIsNoDirectory { variable, home: paths.home }),
            Err(source) => Err(PathsError::Home { variable, home: paths.home, source }),
        }
    }

    /// The paths that `os` has in `environment`; looks at no file.
    ///
    /// # Errors
    /// [`PathsError`] when the home directory is not named, or not by an absolute path.
    pub fn on(os: Os, environment: &Environment) -> Result<Self, PathsError> {
        let variable = os.home_variable();
        let home = environment.get(variable).ok_or(PathsError::NoHome { variable })?;
        if !os.is_absolute(home) {
            return Err(PathsError::RelativeHome { variable, home: home.into() });
        }
        // The XDG base directory specification says to ignore a relative path.
        // https://specifications.freedesktop.org/basedir-spec/latest/
        let given = |name| environment.get(name).filter(|path| os.is_absolute(path));
        let or_below_home = |name, parts: &[&str]| match given(name) {
            Some(path) => path.to_owned(),
            None => os.below(home, parts).into_os_string(),
        };
        let (machine, user, state, pointer): (PathBuf, _, _, &[&str]) = match os {
            Os::Linux => (
                "/etc/ai-agent".into(),
                os.below(&or_below_home("XDG_CONFIG_HOME", &[".config"]), &["ai-agent"]),
                os.below(&or_below_home("XDG_STATE_HOME", &[".local", "state"]), &["ai-agent"]),
                &[".local", "state", "ai-agent", "state-dir"],
            ),
            Os::Macos => {
                let user = os.below(home, &["Library", "Application Support", "ai-agent"]);
                let state = os.below(user.as_os_str(), &["state"]);
                let pointer = &["Library", "Application Support", "ai-agent", "state", "state-dir"];
                ("/Library/Application Support/ai-agent".into(), user, state, pointer)
            }
            Os::Windows => {
                let data = given("ProgramData").unwrap_or(OsStr::new(r"C:\ProgramData"));
                let roaming = or_below_home("APPDATA", &["AppData", "Roaming"]);
                let local = or_below_home("LOCALAPPDATA", &["AppData", "Local"]);
                (
                    os.below(data, &["ai-agent"]),
                    os.below(&roaming, &["ai-agent"]),
                    os.below(&local, &["ai-agent", "state"]),
                    &["AppData", "Local", "ai-agent", "state", "state-dir"],
                )
            }
        };
        let desktop = match os {
            Os::Linux => os.below(&or_below_home("XDG_CONFIG_HOME", &[".config"]), &["Claude"]),
            Os::Macos => os.below(home, &["Library", "Application Support", "Claude"]),
            Os::Windows => {
                os.below(&or_below_home("APPDATA", &["AppData", "Roaming"]), &["Claude"])
            }
        };
        let store_packages = (os == Os::Windows).then(|| {
            os.below(&or_below_home("LOCALAPPDATA", &["AppData", "Local"]), &["Packages"])
        });
        let config_home = or_below_home("XDG_CONFIG_HOME", &[".config"]);
        let local = or_below_home("LOCALAPPDATA", &["AppData", "Local"]);
        let at_home = |parts: &[&str]| os.below(home, parts);
        let support = ["Library", "Application Support", "ai-agent"];
        let installed = match os {
            Os::Linux => InstalledPaths {
                program: at_home(&[".local", "bin", "ai-agent"]),
                definition: os.below(&config_home, &["systemd", "user", "ai-agent.service"]),
                environment: at_home(&[".config", "ai-agent", "environment"]),
                machine_definitions: ["/etc", "/usr/local/lib", "/usr/lib"]
                    .map(|dir| os.below(OsStr::new(dir), &["systemd", "user", "ai-agent.service"]))
                    .into(),
            },
            Os::Macos => InstalledPaths {
                program: at_home(&[&support[..], &["bin", "ai-agent"]].concat()),
                definition: at_home(&["Library", "LaunchAgents", "ai-agent.plist"]),
                environment: at_home(&[&support[..], &["environment"]].concat()),
                machine_definitions: vec!["/Library/LaunchAgents/ai-agent.plist".into()],
            },
            // A task of the machine has the same name, and only an administrator may change it.
            Os::Windows => InstalledPaths {
                program: os.below(&local, &["ai-agent", "ai-agent.exe"]),
                definition: os.below(&local, &["ai-agent", "task.xml"]),
                environment: at_home(&["AppData", "Local", "ai-agent", "environment"]),
                machine_definitions: Vec::new(),
            },
        };
        Ok(Self {
            home: home.into(),
            installed,
            machine_config: os.below(machine.as_os_str(), &["config.toml"]),
            machine_config_dir: os.below(machine.as_os_str(), &["config.d"]),
            user_config: os.below(user.as_os_str(), &["config.toml"]),
            default_state_dir: state,
            claude_desktop: desktop,
            store_packages,
            client_settings: os.client_settings().into(),
            pointer: os.below(home, pointer),
        })
    }

    /// `path` with a leading `~` replaced by the home directory.
    #[must_use]
    pub fn expand(&self, path: &Path) -> PathBuf {
        match path.strip_prefix("~") {
            Ok(rest) if rest.as_os_str().is_empty() => self.home.clone(),
            Ok(rest) => self.home.join(rest),
            Err(_) => path.to_owned(),
        }
    }
}

/// Why there are no paths.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// No variable names the home directory.
    #[error(
        "{variable} is not set: it must name the home directory of the user whose sessions are \
         read, as in `{variable}={}`",
        if *variable == "HOME" { "/home/you" } else { r"C:\Users\you" }
    )]
    NoHome {
        /// The variable.
        variable: &'static str,
    },
    /// The home directory is named by a relative path.
    #[error("{variable} is `{}`, which is no absolute path", home.display())]
    RelativeHome {
        /// The variable.
        variable: &'static str,
        /// What it says.
        home: PathBuf,
    },
    /// The home directory is something else.
    #[error("{variable} is `{}`, which is no directory", home.display())]
    HomeIsNoDirectory {
        /// The variable.
        variable: &'static str,
        /// What it says.
        home: PathBuf,
    },
    /// The home directory can't be looked at.
    #[error("{variable} is `{}`, a directory that cannot be opened", home.display())]
    Home {
        /// The variable.
        variable: &'static str,
        /// What it says.
        home: PathBuf,
        /// Why not.
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
    fn on_linux() {
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
    fn on_linux_with_xdg_directories() {
        let variables =
            [("HOME", "/home/u"), ("XDG_CONFIG_HOME", "/c"), ("XDG_STATE_HOME", "relative")];
        let paths = paths(Os::Linux, &variables);
        assert_eq!(as_text(&paths)[3], "/c/ai-agent/config.toml");
        assert_eq!(as_text(&paths)[4], "/home/u/.local/state/ai-agent");
    }

    #[test]
    fn on_macos() {
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
    fn on_windows() {
        let variables = [
            ("USERPROFILE", r"C:\Users\u"),
            ("ProgramData", r"D:\ProgramData"),
            ("APPDATA", r"C:\Users\u\AppData\Roaming"),
        ];
        let expected = [
            r"C:\Users\u",
            r"D:\ProgramData\ai-agent\config.toml",
            r"D:\ProgramData\ai-agent\config.d",
            r"C:\Users\u\AppData\Roaming\ai-agent\config.toml",
            r"C:\Users\u\AppData\Local\ai-agent\state",
        ];
        assert_eq!(as_text(&paths(Os::Windows, &variables)), expected);
    }

    fn refusal(os: Os, variables: &[(&str, &str)]) -> String {
        Paths::on(os, &variables.iter().copied().collect()).unwrap_err().to_string()
    }

    #[test]
    fn says_how_to_give_a_home() {
        let expected = "HOME is not set: it must name the home directory of the user whose \
                        sessions are read, as in `HOME=/home/you`";
        assert_eq!(refusal(Os::Linux, &[]), expected);
        assert_eq!(refusal(Os::Linux, &[("HOME", "")]), expected);
        assert!(refusal(Os::Windows, &[("HOME", "/u")]).starts_with("USERPROFILE is not set: "));
        let relative = refusal(Os::Linux, &[("HOME", "u")]);
        assert_eq!(relative, "HOME is `u`, which is no absolute path");
    }

    #[cfg(unix)]
    #[test]
    fn refuses_a_home_that_is_no_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "").unwrap();
        let home = |path: &Path| Environment::from_iter([("HOME", path.as_os_str())]);

        assert!(Paths::from_environment(&home(dir.path())).is_ok());
        let error = Paths::from_environment(&home(&file)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("HOME is `{}`, which is no directory", file.display())
        );
        let error = Paths::from_environment(&home(&dir.path().join("none"))).unwrap_err();
        assert!(matches!(error, PathsError::Home { .. }), "{error}");
    }

    #[test]
    fn expands_a_tilde() {
        let paths = paths(Os::Linux, &[("HOME", "/home/u")]);
        assert_eq!(paths.expand(Path::new("~/x")), Path::new("/home/u/x"));
        assert_eq!(paths.expand(Path::new("~")), Path::new("/home/u"));
        assert_eq!(paths.expand(Path::new("/x/~")), Path::new("/x/~"));
        assert_eq!(paths.expand(Path::new("~x")), Path::new("~x"));
    }
}
