//! Identity of the machine and the user.

use std::{fs, io, path::Path};

use siem_protocol::Identity;

use super::{file, os::Os, secure_file};

/// Identity, and warnings about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetectedIdentity {
    /// Identity.
    pub identity: Identity,
    /// Warnings to log: one sentence each.
    pub warnings: Vec<String>,
}

/// Name of a host or user whose name cannot be determined.
pub const UNKNOWN_NAME: &str = "unknown";

/// Determines machine and user.
///
/// A machine without an id gets a random one, stored in `state_dir`. Without a state directory, as
/// in a dry run, the id lasts as long as the process.
#[must_use]
pub fn identify(state_dir: Option<&Path>) -> DetectedIdentity {
    let mut warnings = Vec::new();
    let machine_id = machine_id(system_id(), state_dir, &mut warnings);
    let mut or_unknown = |what: &str, found: whoami::Result<String>| match found {
        Ok(name) if !name.is_empty() => name,
        _ => {
            warnings.push(format!("the {what} is unknown, using `{UNKNOWN_NAME}`"));
            UNKNOWN_NAME.to_owned()
        }
    };
    let identity = Identity {
        machine_id,
        hostname: or_unknown("host name", whoami::hostname()),
        user: or_unknown("user name", whoami::username()),
        os: Os::CURRENT.name().to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        agent_version: crate::version::version().to_owned(),
    };
    DetectedIdentity { identity, warnings }
}

/// Returns whether the process runs as root, which the agent does not need.
#[must_use]
pub fn is_root() -> bool {
    user_id() == Some(0)
}

/// Returns the effective user id, where users have numeric ids.
#[must_use]
pub fn user_id() -> Option<u32> {
    #[cfg(unix)]
    return Some(rustix::process::geteuid().as_raw());
    #[cfg(not(unix))]
    return None;
}

/// Returns the machine id of the system.
///
/// On Linux `/etc/machine-id` comes first, since systemd maintains it.
/// <https://www.freedesktop.org/software/systemd/man/latest/machine-id.html>
fn system_id() -> Option<String> {
    let from_file = if Os::CURRENT == Os::Linux {
        fs::read_to_string("/etc/machine-id").ok().and_then(meaningful)
    } else {
        None
    };
    from_file.or_else(|| machine_uid::get().ok().and_then(meaningful))
}

/// Trims an id; returns `None` if it identifies no machine, as in a container or an image that has
/// not booted yet.
fn meaningful(id: String) -> Option<String> {
    let id = id.trim();
    let says_something = id != "uninitialized" && id.chars().any(|c| !matches!(c, '0' | '-'));
    says_something.then(|| id.to_owned())
}

fn machine_id(
    system: Option<String>,
    state_dir: Option<&Path>,
    warnings: &mut Vec<String>,
) -> String {
    if let Some(id) = system {
        return id;
    }
    let Some(dir) = state_dir else {
        warnings.push("this machine has no id, using a random one for this run".to_owned());
        return random_id();
    };
    let path = dir.join("machine-id");
    match load_or_create(&path) {
        Ok(id) => {
            let path = path.display();
            warnings.push(format!("this machine has no id, using a random one stored in `{path}`"));
            id
        }
        Err(error) => {
            warnings.push(format!(
                "this machine has no id, and a random one cannot be stored in `{}`: {error}: move it away (each \
                 run uses another id)",
                path.display()
            ));
            random_id()
        }
    }
}

/// Maximum size of the file with the id.
const MAX_ID_FILE: u64 = 4 << 10;

/// Reads the id in the file at `path`, or creates it.
fn load_or_create(path: &Path) -> io::Result<String> {
    match file::read_bounded(path, MAX_ID_FILE) {
        Ok(bytes) => {
            if let Some(id) = meaningful(String::from_utf8_lossy(&bytes).into_owned()) {
                return Ok(id);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let id = random_id();
    // Written atomically: a truncated id would be that of another machine.
    secure_file::replace(path, format!("{id}\n").as_bytes())?;
    Ok(id)
}

fn random_id() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(system: Option<&str>, dir: Option<&Path>) -> (String, Vec<String>) {
        let mut warnings = Vec::new();
        let system = system.map(str::to_owned).and_then(meaningful);
        let id = machine_id(system, dir, &mut warnings);
        (id, warnings)
    }

    #[test]
    fn system_id_comes_first() {
        let (id, warnings) = id_of(Some("4f2a\n"), None);
        assert_eq!((id.as_str(), warnings.len()), ("4f2a", 0));
    }

    #[test]
    fn id_that_identifies_no_machine_is_ignored() {
        for id in ["", " \n", "uninitialized\n", "00000000000000000000000000000000", "0000-00"] {
            assert_eq!(meaningful(id.to_owned()), None, "{id:?}");
        }
    }

    /// Containers have an empty `/etc/machine-id`: all of them would be one machine to the SIEM.
    #[test]
    fn random_id_is_stored_in_the_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (first, warnings) = id_of(Some("\n"), Some(dir.path()));
        assert_eq!(first.len(), 32);
        assert_eq!(
            warnings,
            [format!(
                "this machine has no id, using a random one stored in `{}`",
                dir.path().join("machine-id").display()
            )]
        );
        assert_eq!(id_of(None, Some(dir.path())).0, first);

        fs::write(dir.path().join("machine-id"), "").unwrap();
        let (second, _) = id_of(None, Some(dir.path()));
        assert_ne!(second, first);
        assert_eq!(id_of(None, Some(dir.path())).0, second);
    }

    /// A FIFO was waited for, and a file of holes was read into memory.
    #[cfg(unix)]
    #[test]
    fn id_file_that_is_huge_or_a_fifo_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine-id");
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let (_, warnings) = id_of(None, Some(dir.path()));
        assert!(warnings[0].contains("larger than 4.0 KiB"), "{warnings:?}");
        fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let (_, warnings) = id_of(None, Some(dir.path()));
        assert!(warnings[0].contains("not a regular file"), "{warnings:?}");
    }

    #[test]
    fn random_id_without_state_directory_lasts_for_the_run() {
        let (first, warnings) = id_of(None, None);
        assert_eq!(warnings, ["this machine has no id, using a random one for this run"]);
        assert_ne!(id_of(None, None).0, first);

        let dir = tempfile::tempdir().unwrap();
        let (_, warnings) = id_of(None, Some(&dir.path().join("none")));
        assert!(warnings[0].contains("cannot be stored"), "{warnings:?}");
    }

    #[test]
    fn identify_returns_a_complete_identity() {
        let dir = tempfile::tempdir().unwrap();
        let identity = identify(Some(dir.path())).identity;
        assert!(!identity.machine_id.is_empty() && !identity.hostname.is_empty());
        assert!(!identity.user.is_empty());
        assert_eq!(identity.agent_version, env!("CARGO_PKG_VERSION"));
        assert!(["linux", "macos", "windows"].contains(&identity.os.as_str()));
    }
}
