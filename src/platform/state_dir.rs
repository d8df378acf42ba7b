//! Owner and mode of the state directory.
//!
//! What is in it decides what the agent does: its key, its outbox, the policy of hooks. A user who can
//! write to it could replace each of them.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Purpose of an access to the state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirUse {
    /// Files are written: the directory must belong to the user of the process.
    Write,
    /// Files are only read: root may read the state of a service's user, and a user that of root.
    Read,
}

/// Reason why a state directory is refused.
#[derive(Debug, thiserror::Error)]
#[cfg_attr(windows, allow(dead_code, reason = "Windows checks the access list of each file"))]
pub enum StateDirError {
    /// It belongs to another user.
    #[error(
        "`{dir}` belongs to user {owner}, who can change everything in it: {}",
        owner_remedy(dir, *owner, *me),
        dir = dir.display()
    )]
    Owner {
        /// The directory.
        dir: PathBuf,
        /// Its owner.
        owner: u32,
        /// User of the process.
        me: u32,
    },
    /// Other users can write to it.
    #[error(
        "`{dir}` has mode {mode:04o}, so other users can change everything in it: run `chmod 700 '{dir}'`, \
         or set `state_dir` under `[agent]` to another directory",
        dir = dir.display()
    )]
    Writable {
        /// The directory.
        dir: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Its owner cannot be determined.
    #[error("`{}` cannot be inspected", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
}

fn owner_remedy(dir: &Path, owner: u32, me: u32) -> String {
    let dir = dir.display();
    match me {
        0 => format!(
            "run the command as that user, as in `sudo -u '#{owner}' ai-agent ...`, or run `chown -R root '{dir}'`"
        ),
        _ => format!(
            "run `sudo chown -R \"$USER\" '{dir}'`, or set `state_dir` under `[agent]` to another directory"
        ),
    }
}

/// Checks that no other user can change the files in a state directory. One that does not exist yet is
/// fine; on Windows none is refused, since the access list that it inherits is that of the profile.
///
/// # Errors
/// [`StateDirError`], with the command that fixes it.
pub fn check(dir: &Path, purpose: DirUse) -> Result<(), StateDirError> {
    system::check(dir, purpose)
}

#[cfg(unix)]
mod system {
    use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

    use super::{DirUse, StateDirError};

    pub(super) fn check(dir: &Path, purpose: DirUse) -> Result<(), StateDirError> {
        let found = match fs::metadata(dir) {
            Ok(found) => found,
            // A parent that is a file is reported when the directory is created.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(());
            }
            Err(source) => return Err(StateDirError::Io { dir: dir.to_owned(), source }),
        };
        let me = rustix::process::geteuid().as_raw();
        check_access(dir, found.uid(), found.mode() & 0o7777, me, purpose)
    }

    pub(super) fn check_access(
        dir: &Path,
        owner: u32,
        mode: u32,
        me: u32,
        purpose: DirUse,
    ) -> Result<(), StateDirError> {
        let is_trusted = match purpose {
            DirUse::Write => owner == me,
            DirUse::Read => owner == me || owner == 0 || me == 0,
        };
        if !is_trusted {
            return Err(StateDirError::Owner { dir: dir.to_owned(), owner, me });
        }
        if mode & 0o022 != 0 {
            return Err(StateDirError::Writable { dir: dir.to_owned(), mode });
        }
        Ok(())
    }
}

#[cfg(not(unix))]
mod system {
    use std::path::Path;

    use super::{DirUse, StateDirError};

    #[expect(clippy::unnecessary_wraps, reason = "the signature is that of Unix")]
    pub(super) fn check(_: &Path, _: DirUse) -> Result<(), StateDirError> {
        Ok(())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    const ROOT: u32 = 0;
    const ME: u32 = 1000;
    const OTHER: u32 = 1001;

    fn check_access(owner: u32, mode: u32, me: u32, purpose: DirUse) -> Result<(), String> {
        system::check_access(Path::new("/s"), owner, mode, me, purpose)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn state_directory_belongs_to_its_user_only() {
        for mode in [0o700, 0o755, 0o2750] {
            assert_eq!(check_access(ME, mode, ME, DirUse::Write), Ok(()), "{mode:o}");
            assert_eq!(check_access(ROOT, mode, ROOT, DirUse::Write), Ok(()), "{mode:o}");
        }
        for (owner, me) in [(OTHER, ME), (ROOT, ME), (OTHER, ROOT)] {
            assert!(check_access(owner, 0o700, me, DirUse::Write).is_err(), "{owner} {me}");
        }
        assert!(check_access(OTHER, 0o755, ME, DirUse::Read).is_err());
        // Root may look at the agent of a service's user.
        for (owner, me) in [(OTHER, ROOT), (ROOT, ME), (ME, ME)] {
            assert_eq!(check_access(owner, 0o755, me, DirUse::Read), Ok(()), "{owner} {me}");
        }
        for mode in [0o770, 0o702, 0o1777, 0o720] {
            for purpose in [DirUse::Read, DirUse::Write] {
                assert!(check_access(ME, mode, ME, purpose).is_err(), "{mode:o}");
            }
        }
    }

    #[test]
    fn refusal_names_the_command_that_fixes_it() {
        assert_eq!(
            check_access(OTHER, 0o700, ME, DirUse::Write).unwrap_err(),
            "`/s` belongs to user 1001, who can change everything in it: run `sudo chown -R \"$USER\" \
             '/s'`, or set `state_dir` under `[agent]` to another directory"
        );
        assert_eq!(
            check_access(OTHER, 0o700, ROOT, DirUse::Write).unwrap_err(),
            "`/s` belongs to user 1001, who can change everything in it: run the command as that user, \
             as in `sudo -u '#1001' ai-agent ...`, or run `chown -R root '/s'`"
        );
        assert_eq!(
            check_access(ME, 0o777, ME, DirUse::Read).unwrap_err(),
            "`/s` has mode 0777, so other users can change everything in it: run `chmod 700 '/s'`, or \
             set `state_dir` under `[agent]` to another directory"
        );
    }

    #[test]
    fn missing_directory_is_fine_and_a_writable_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check(&dir.path().join("none"), DirUse::Write).is_ok());
        assert!(check(dir.path(), DirUse::Write).is_ok());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(check(dir.path(), DirUse::Read), Err(StateDirError::Writable { .. })));
    }
}
