//! Programs that are safe to run as root: only root can change or replace them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Directories of programs that may be run as root, in this order. The user's `PATH` does not count.
pub const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Maximum number of symbolic links from a name to its program, as in the kernel.
const MAX_LINKS: usize = 40;

/// Reason why another user could change or replace a program.
#[derive(Debug, thiserror::Error)]
pub enum UntrustedProgram {
    /// The program, or a directory or link to it, belongs to another user.
    #[error("`{}` belongs to user {owner}, who could replace the program: it must belong to root", path.display())]
    Owner {
        /// Program, link or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Other users can write to the program, or to a directory that contains it.
    #[error("`{}` has mode {mode:04o}, so other users could replace the program: fix it with `chmod go-w`", path.display())]
    Writable {
        /// Program or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The program cannot be examined, or it is not an executable file.
    #[error("`{}` cannot be used: {source}", path.display())]
    Io {
        /// Program, link or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Owner and permissions of a file or directory.
#[derive(Clone, Copy)]
struct Access {
    owner: u32,
    group: u32,
    mode: u32,
}

/// Checks that only root can change or replace the program at `path`: the file, each link to it, and
/// the directories that contain them. Returns its path without links.
///
/// # Errors
/// [`UntrustedProgram`]: the caller must not run it as root.
pub fn check(path: &Path) -> Result<PathBuf, UntrustedProgram> {
    let mut next = path.to_owned();
    for _ in 0..MAX_LINKS {
        let folder = next.parent().unwrap_or(Path::new("/")).to_owned();
        check_folders(&folder)?;
        let real = fs::canonicalize(&folder).map_err(|source| failed(&folder, source))?;
        check_folders(&real)?;
        let found = fs::symlink_metadata(&next).map_err(|source| failed(&next, source))?;
        if !found.is_symlink() {
            check_file(&next, &found)?;
            return fs::canonicalize(&next).map_err(|source| failed(&next, source));
        }
        next = real.join(fs::read_link(&next).map_err(|source| failed(&next, source))?);
    }
    Err(failed(path, io::Error::other("too many symbolic links")))
}

fn check_folders(folder: &Path) -> Result<(), UntrustedProgram> {
    folder.ancestors().filter(|path| path.has_root()).try_for_each(|path| {
        let found = fs::metadata(path).map_err(|source| failed(path, source))?;
        check_access(path, access(&found))
    })
}

fn check_file(path: &Path, found: &fs::Metadata) -> Result<(), UntrustedProgram> {
    if !super::secure_file::is_executable(path) {
        return Err(failed(path, io::Error::other("it is not an executable file")));
    }
    check_access(path, access(found))
}

fn check_access(path: &Path, access: Access) -> Result<(), UntrustedProgram> {
    let Access { owner, group, mode } = access;
    if owner != 0 {
        return Err(UntrustedProgram::Owner { path: path.to_owned(), owner });
    }
    let others = if group == 0 { 0o002 } else { 0o022 };
    if mode & others != 0 {
        return Err(UntrustedProgram::Writable { path: path.to_owned(), mode });
    }
    Ok(())
}

fn failed(path: &Path, source: io::Error) -> UntrustedProgram {
    UntrustedProgram::Io { path: path.to_owned(), source }
}

#[cfg(unix)]
fn access(found: &fs::Metadata) -> Access {
    use std::os::unix::fs::MetadataExt as _;

    Access { owner: found.uid(), group: found.gid(), mode: found.mode() & 0o7777 }
}

/// Nothing runs as root on other systems.
#[cfg(not(unix))]
fn access(_: &fs::Metadata) -> Access {
    Access { owner: u32::MAX, group: u32::MAX, mode: 0 }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn only_root_may_own_and_change_a_program() {
        let check = |owner, group, mode| {
            check_access(Path::new("/p"), Access { owner, group, mode })
                .map_err(|it| it.to_string())
        };
        for (group, mode) in [(0, 0o755), (0, 0o775), (50, 0o755), (0, 0o4755)] {
            assert_eq!(check(0, group, mode), Ok(()), "{group} {mode:o}");
        }
        for (owner, group, mode, word) in [
            (1000, 0, 0o755, "user 1000"),
            (0, 50, 0o775, "0775"),
            (0, 0, 0o757, "0757"),
            (0, 0, 0o1777, "1777"),
        ] {
            let error = check(owner, group, mode).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn program_below_a_shared_directory_is_refused() {
        let shell = check(Path::new("/bin/sh")).unwrap();
        assert!(shell.is_absolute() && !fs::symlink_metadata(&shell).unwrap().is_symlink());
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let own = folder.path().join("own");
        fs::write(&own, "").unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        symlink("/bin/sh", folder.path().join("link")).unwrap();
        for name in ["own", "link"] {
            let refused = check(&folder.path().join(name)).unwrap_err();
            assert!(!matches!(refused, UntrustedProgram::Io { .. }), "{refused}");
        }
        assert!(matches!(check(Path::new("/bin/none-such")), Err(UntrustedProgram::Io { .. })));
        assert!(matches!(check(Path::new("/etc/passwd")), Err(UntrustedProgram::Io { .. })));
    }
}
