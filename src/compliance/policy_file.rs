//! What the daemon leaves for hooks: the policy in force, and where it lies.
//!
//! A hook inherits the environment of a session, not that of the daemon, so the two may not agree on
//! where the state directory is: a file at the default place, which no variable moves, says so.

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use siem_protocol::{Digest, managed::Compliance};

use crate::platform::{Paths, Timestamp, file, secure_file};

/// The policy's file in the state directory.
const FILE: &str = "policy.json";
/// A longer file is none of the daemon's.
const MOST: u64 = 8 << 20;

/// The policy that was in force last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPolicy {
    /// What it says.
    pub compliance: Compliance,
    /// The configuration that it is part of.
    pub config_hash: Digest,
    /// When it came into force.
    pub at: Timestamp,
}

/// Where the daemon keeps its state, with the policy that lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedPolicy {
    /// The state directory.
    pub state_dir: PathBuf,
    /// The policy.
    pub policy: StoredPolicy,
}

/// Why a policy is not taken.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// It can't be read.
    #[error("the policy in `{}` cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It belongs to somebody else, who could have written anything.
    #[error("the policy in `{}` belongs to another user", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It makes no sense.
    #[error("the policy in `{}` makes no sense: the agent writes it anew when it starts", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

impl StoredPolicy {
    /// Leaves the policy in `state_dir`.
    ///
    /// # Errors
    /// What the system says; what was there is still there.
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        secure_file::replace(&state_dir.join(FILE), &serde_json::to_vec(self)?)
    }

    /// The policy in `state_dir`; `None` when none is there.
    ///
    /// # Errors
    /// [`PolicyFileError`].
    pub fn read(state_dir: &Path) -> Result<Option<Self>, PolicyFileError> {
        let path = state_dir.join(FILE);
        let opened = file::open_regular(&path)
            .and_then(|opened| opened.ok_or_else(|| io::Error::other("it is no file")));
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
        let kept = serde_json::from_slice(&bytes);
        kept.map(Some).map_err(|source| PolicyFileError::Content { path, source })
    }
}

/// Says where the state directory is, for hooks.
///
/// # Errors
/// What the system says.
pub fn point_to(state_dir: &Path, paths: &Paths) -> io::Result<()> {
    let pointer = &paths.pointer;
    let bytes = file::path_to_bytes(state_dir);
    if fs::read(pointer).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    if let Some(folder) = pointer.parent() {
        secure_file::create_dir(folder)?;
    }
    secure_file::replace(pointer, &bytes)
}

/// The policy that the daemon of this user has left; `None` when none was ever in force.
///
/// # Errors
/// [`PolicyFileError`] when there is one that can't be taken, and no other.
pub fn find(paths: &Paths) -> Result<Option<LocatedPolicy>, PolicyFileError> {
    let mut failure = None;
    for state_dir in places(paths) {
        match StoredPolicy::read(&state_dir) {
            Ok(Some(policy)) => return Ok(Some(LocatedPolicy { state_dir, policy })),
            Ok(None) => {}
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(None), Err)
}

/// Where a state directory may be, the likeliest first.
fn places(paths: &Paths) -> impl Iterator<Item = PathBuf> {
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
    use super::*;
    use crate::platform::{Environment, Os};

    fn kept(banner: &str) -> StoredPolicy {
        let compliance = Compliance { banner: Some(banner.into()), ..Compliance::default() };
        StoredPolicy { compliance, config_hash: Digest::ZERO, at: Timestamp(7) }
    }

    fn paths(home: &Path, more: &[(&str, &Path)]) -> Paths {
        let home = [(if cfg!(windows) { "USERPROFILE" } else { "HOME" }, home)];
        let environment: Environment = home.iter().chain(more).map(|(n, v)| (*n, *v)).collect();
        Paths::on(Os::CURRENT, &environment).unwrap()
    }

    #[test]
    fn a_hook_finds_the_policy_wherever_the_state_directory_was_moved() {
        let home = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let of_hook = paths(home.path(), &[("XDG_STATE_HOME", Path::new("/nowhere"))]);
        assert_eq!(find(&of_hook).unwrap(), None);
        kept("moved").write(elsewhere.path()).unwrap();
        assert_eq!(find(&of_hook).unwrap(), None);
        point_to(elsewhere.path(), &paths(home.path(), &[])).unwrap();
        let found = find(&of_hook).unwrap().unwrap();
        assert_eq!((found.policy, found.state_dir), (kept("moved"), elsewhere.path().to_owned()));
        // Moved back, with the pointer still there.
        kept("default").write(of_hook.pointer.parent().unwrap()).unwrap();
        fs::remove_file(elsewhere.path().join(FILE)).unwrap();
        assert_eq!(find(&of_hook).unwrap().unwrap().policy, kept("default"));
        point_to(elsewhere.path(), &of_hook).unwrap();
    }

    #[test]
    fn a_policy_that_makes_no_sense_is_an_error_unless_there_is_another() {
        let home = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let paths = paths(home.path(), &[]);
        point_to(elsewhere.path(), &paths).unwrap();
        for odd in ["", "{", "[]", "\0", "{\"compliance\":{\"action\":\"shout\"}}"] {
            fs::write(elsewhere.path().join(FILE), odd).unwrap();
            let error = find(&paths).unwrap_err();
            assert!(matches!(error, PolicyFileError::Content { .. }), "{odd}");
        }
        kept("other").write(paths.pointer.parent().unwrap()).unwrap();
        assert_eq!(find(&paths).unwrap().unwrap().policy, kept("other"));
        fs::remove_file(elsewhere.path().join(FILE)).unwrap();
        fs::create_dir(elsewhere.path().join(FILE)).unwrap();
        fs::remove_file(paths.pointer.parent().unwrap().join(FILE)).unwrap();
        assert!(matches!(find(&paths), Err(PolicyFileError::Read { .. })));
        fs::write(&paths.pointer, "relative/path").unwrap();
        assert_eq!(find(&paths).unwrap(), None);
    }
}
