//! Installation of a program file.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

/// Returns whether the files at both paths have the same content.
///
/// # Errors
/// The error of the system about `one`; a file `other` that cannot be read counts as different.
pub fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let Ok(known) = fs::metadata(other) else { return Ok(false) };
    if fs::metadata(one)?.len() != known.len() {
        return Ok(false);
    }
    Ok(fs::read(one)? == fs::read(other)?)
}

/// Copies the program at `from` to `to` atomically, even if the old program is running.
///
/// # Errors
/// The error of the system; the old file is unchanged.
pub fn install(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    let beside = beside(to, ".new");
    let written = write(from, &beside).and_then(|()| commit_rename(&beside, to));
    written.inspect_err(|_| drop(fs::remove_file(&beside)))
}

/// Removes the program at `path` and leftovers of an upgrade, and returns whether it existed.
///
/// # Errors
/// The error of the system; Windows does not delete a running program.
pub fn remove(path: &Path) -> io::Result<bool> {
    for left in [".new", ".old"] {
        drop(fs::remove_file(beside(path, left)));
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(ending);
    beside.into()
}

fn write(from: &Path, to: &Path) -> io::Result<()> {
    // A leftover of a crash may have any content.
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o755);
    let mut file = options.open(to)?;
    io::copy(&mut File::open(from)?, &mut file)?;
    file.sync_all()
}

fn commit_rename(beside_it: &Path, to: &Path) -> io::Result<()> {
    if let Err(error) = fs::rename(beside_it, to) {
        // Windows does not replace a running program, but lets it be renamed.
        if !cfg!(windows) {
            return Err(error);
        }
        let old = beside(to, ".old");
        drop(fs::remove_file(&old));
        fs::rename(to, &old)?;
        fs::rename(beside_it, to)?;
        drop(fs::remove_file(&old));
    }
    #[cfg(unix)]
    File::open(to.parent().unwrap_or(to))?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn install_replaces_complete_and_partial_programs() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("bin/ai-agent"));
        fs::write(&from, "new").unwrap();
        assert!(!is_same(&from, &to).unwrap());
        install(&from, &to).unwrap();
        assert!(is_same(&from, &to).unwrap());

        fs::write(&to, "old").unwrap();
        fs::write(dir.path().join("bin/ai-agent.new"), "half").unwrap();
        assert!(!is_same(&from, &to).unwrap());
        install(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"new");
        assert!(remove(&to).unwrap() && !remove(&to).unwrap());
        assert_eq!(fs::read_dir(dir.path().join("bin")).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn installed_program_is_executable_whatever_its_source() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "new").unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o600)).unwrap();
        install(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o700, 0o700);
    }
}
