//! Policy file that the daemon writes for hooks, and the pointer to its directory.
//!
//! A hook inherits the environment of a session, not that of the daemon, so the two may disagree on
//! the state directory. A pointer file at the default path, which no variable changes, contains the
//! directory.

use std::{
    io,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use siem_protocol::{Digest, managed::Compliance};

use crate::platform::{
    Paths, Timestamp, file, secure_file,
    state_dir::{self, DirUse, StateDirError},
};

/// File in the state directory.
const FILE: &str = "policy.json";
/// Maximum size of the file.
const MOST: u64 = 8 << 20;

/// Policy that was in force last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPolicy {
    /// Content of the policy.
    pub compliance: Compliance,
    /// Hash of the configuration that contains the policy.
    pub config_hash: Digest,
    /// Time at which the policy came into force.
    pub at: Timestamp,
    /// Hash of the managed configuration that the policy is made from, if there is one: the agent has
    /// checked that it is meant for this device and user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<Digest>,
}

/// State directory of the daemon, with the policy in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedPolicy {
    /// State directory.
    pub state_dir: PathBuf,
    /// Policy.
    pub policy: StoredPolicy,
}

/// Reason why a policy file is not used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// The file cannot be read.
    #[error("cannot read the policy file `{}`", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
    /// Other users can change the state directory.
    #[error("the policy in the state directory is not used: {0}")]
    Directory(#[from] StateDirError),
    /// The file belongs to another user and must not be trusted.
    #[error("the policy file `{}` belongs to another user: delete it", path.display())]
    Foreign {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file is not a valid policy.
    #[error(
        "the policy file `{}` is invalid: restart the agent, which writes it again",
        path.display()
    )]
    Content {
        /// Path of the file.
        path: PathBuf,
        /// Parse error.
        #[source]
        source: serde_json::Error,
    },
}

impl StoredPolicy {
    /// Returns the path of the file in a state directory.
    #[must_use]
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join(FILE)
    }

    /// Returns the content of the file.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a policy can be written as JSON")
    }

    /// Writes the policy to `state_dir`.
    #[cfg(test)]
    pub(crate) fn write(&self, state_dir: &Path) -> io::Result<()> {
        secure_file::replace(&Self::path(state_dir), &self.to_file())
    }

    /// Reads the policy in `state_dir`; `None` if there is none.
    ///
    /// # Errors
    /// [`PolicyFileError`].
    pub fn read(state_dir: &Path) -> Result<Option<Self>, PolicyFileError> {
        state_dir::check(state_dir, DirUse::Read)?;
        let path = Self::path(state_dir);
        let opened = file::open_regular(&path)
            .and_then(|opened| opened.ok_or_else(|| io::Error::other("not a regular file")));
        let file = match opened {
            Ok((file, _)) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(PolicyFileError::Read { path, source }),
        };
        match secure_file::has_trusted_owner(&file) {
            Ok(true) => {}
            Ok(false) => return Err(PolicyFileError::Foreign { path }),
            Err(source) => return Err(PolicyFileError::Read { path, source }),
        }
        let mut bytes = Vec::new();
        if let Err(source) = file.take(MOST).read_to_end(&mut bytes) {
            return Err(PolicyFileError::Read { path, source });
        }
        let policy = serde_json::from_slice(&bytes);
        policy.map(Some).map_err(|source| PolicyFileError::Content { path, source })
    }
}

/// Reads the policy that the daemon of this user has written; `None` if there was none so far.
///
/// # Errors
/// [`PolicyFileError`] if there is an unusable file and no other one.
pub fn find(paths: &Paths) -> Result<Option<LocatedPolicy>, PolicyFileError> {
    let mut failure = None;
    for state_dir in candidate_dirs(paths) {
        match StoredPolicy::read(&state_dir) {
            Ok(Some(policy)) => return Ok(Some(LocatedPolicy { state_dir, policy })),
            Ok(None) => {}
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(None), Err)
}

/// Returns the possible state directories, the likeliest first.
pub fn candidate_dirs(paths: &Paths) -> impl Iterator<Item = PathBuf> {
    let pointed = file::open_regular(&paths.pointer).ok().flatten().and_then(|(file, _)| {
        let mut bytes = Vec::new();
        let is_ours = secure_file::has_trusted_owner(&file).unwrap_or(false);
        file.take(64 << 10).read_to_end(&mut bytes).ok()?;
        let path = PathBuf::from(file::path_from_bytes(bytes));
        (is_ours && path.is_absolute()).then_some(path)
    });
    let beside = paths.pointer.parent().map(Path::to_owned);
    pointed.into_iter().chain(beside).chain([paths.default_state_dir.clone()])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::platform::{Environment, Os};

    fn stored(banner: &str) -> StoredPolicy {
        let compliance = Compliance { banner: Some(banner.into()), ..Compliance::default() };
        StoredPolicy { compliance, config_hash: Digest::ZERO, at: Timestamp(7), managed: None }
    }

    fn point_to(state_dir: &Path, paths: &Paths) {
        fs::create_dir_all(paths.pointer.parent().unwrap()).unwrap();
        secure_file::replace(&paths.pointer, &file::path_to_bytes(state_dir)).unwrap();
    }

    fn paths(home: &Path, more: &[(&str, &Path)]) -> Paths {
        let home = [(if cfg!(windows) { "USERPROFILE" } else { "HOME" }, home)];
        let environment: Environment = home.iter().chain(more).map(|(n, v)| (*n, *v)).collect();
        Paths::on(Os::CURRENT, &environment).unwrap()
    }

    #[test]
    fn find_follows_the_pointer_to_a_moved_state_directory() {
        let home = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let of_hook = paths(home.path(), &[("XDG_STATE_HOME", Path::new("/nowhere"))]);
        assert_eq!(find(&of_hook).unwrap(), None);
        stored("moved").write(elsewhere.path()).unwrap();
        assert_eq!(find(&of_hook).unwrap(), None);
        point_to(elsewhere.path(), &paths(home.path(), &[]));
        let found = find(&of_hook).unwrap().unwrap();
        assert_eq!((found.policy, found.state_dir), (stored("moved"), elsewhere.path().to_owned()));
        // Moved back, while the pointer still exists.
        stored("default").write(of_hook.pointer.parent().unwrap()).unwrap();
        fs::remove_file(elsewhere.path().join(FILE)).unwrap();
        assert_eq!(find(&of_hook).unwrap().unwrap().policy, stored("default"));
        point_to(elsewhere.path(), &of_hook);
    }

    #[test]
    fn invalid_policy_is_an_error_unless_another_is_found() {
        let home = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let paths = paths(home.path(), &[]);
        point_to(elsewhere.path(), &paths);
        for odd in ["", "{", "[]", "\0", "{\"compliance\":{\"action\":\"shout\"}}"] {
            fs::write(elsewhere.path().join(FILE), odd).unwrap();
            let error = find(&paths).unwrap_err();
            assert!(matches!(error, PolicyFileError::Content { .. }), "{odd}");
        }
        stored("other").write(paths.pointer.parent().unwrap()).unwrap();
        assert_eq!(find(&paths).unwrap().unwrap().policy, stored("other"));
        fs::remove_file(elsewhere.path().join(FILE)).unwrap();
        fs::create_dir(elsewhere.path().join(FILE)).unwrap();
        fs::remove_file(paths.pointer.parent().unwrap().join(FILE)).unwrap();
        assert!(matches!(find(&paths), Err(PolicyFileError::Read { .. })));
        fs::write(&paths.pointer, "relative/path").unwrap();
        assert_eq!(find(&paths).unwrap(), None);
    }
}
