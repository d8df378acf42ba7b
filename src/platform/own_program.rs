//! Replacement and start of the agent's own program file.
//!
//! On Windows another program, such as a virus scanner, can keep a file from being opened, renamed or removed.
//! The functions here wait for it for up to 10 s.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use super::secure_file;

/// Directories with programs that the system's package manager or an administrator maintains.
const SYSTEM_DIRECTORIES: [&str; 10] =
    ["/usr", "/opt", "/bin", "/sbin", "/nix", "/gnu", "/snap", "/app", "/Applications", "/Library"];

/// Number of attempts to use a file that another program holds, and the pause between two.
const BUSY_TRIES: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Maximum number of replaced programs that are still running.
const MAX_OLD: u32 = 16;

/// Returns the path of a file beside the program at `path`: `ai-agent.WORD`, and `ai-agent.WORD.exe` on
/// Windows, which starts only files with that ending.
#[must_use]
pub fn beside(path: &Path, word: &str) -> PathBuf {
    let is_exe = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("exe"));
    let mut beside =
        if is_exe { path.with_extension("") } else { path.to_owned() }.into_os_string();
    beside.push(".");
    beside.push(word);
    if is_exe {
        beside.push(".exe");
    }
    beside.into()
}

/// Returns whether the file or directory at `path` belongs to the user of this process. On Windows the
/// access list decides, so this is always true.
///
/// # Errors
/// The error of the system.
pub fn is_own(path: &Path) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        Ok(fs::metadata(path)?.uid() == rustix::process::geteuid().as_raw())
    }
    #[cfg(not(unix))]
    fs::metadata(path).map(|_| true)
}

/// Returns whether every user of the machine may write to the file or directory at `path`. On Windows this
/// is not inspected, and false.
///
/// # Errors
/// The error of the system.
pub fn is_writable_by_all(path: &Path) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        Ok(fs::metadata(path)?.mode() & 0o002 != 0)
    }
    #[cfg(not(unix))]
    fs::metadata(path).map(|_| false)
}

/// Returns whether `path` is in a directory that the system's package manager or an administrator
/// maintains.
#[must_use]
pub fn is_in_system_directory(path: &Path) -> bool {
    let windows = ["ProgramFiles", "ProgramFiles(x86)", "ProgramW6432", "SystemRoot"];
    let windows = windows.iter().filter(|_| cfg!(windows)).filter_map(std::env::var_os);
    SYSTEM_DIRECTORIES.iter().map(PathBuf::from).chain(windows.map(PathBuf::from)).any(
        |directory| {
            // `/usr` may be a link, as `/bin` is one to `/usr/bin`.
            let real = directory.canonicalize().unwrap_or_else(|_| directory.clone());
            path.starts_with(&directory) || path.starts_with(real)
        },
    )
}

/// Makes the file at `from` executable and syncs it.
///
/// # Errors
/// The error of the system.
pub fn make_executable(from: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(from, fs::Permissions::from_mode(0o755))?;
    }
    retry_busy(|| fs::OpenOptions::new().write(true).open(from)?.sync_all())
}

/// Copies the program at `from` to `to`, executable and synced. A file at `to` is replaced.
///
/// # Errors
/// The error of the system; `to` may be incomplete.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    retry_busy(|| {
        // Also what an attempt before has left.
        remove_if_present(to)?;
        // Fails if another process puts a symlink there.
        io::copy(&mut fs::File::open(from)?, &mut secure_file::create_new(to)?)
    })?;
    make_executable(to)
}

/// Creates the file `to` with the content of `from` as a hard link, or as a synced copy where the file
/// system has no links. A file at `to` is replaced.
///
/// # Errors
/// The error of the system; `to` is as after a failed [`replace`].
pub fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    let new = beside(to, "new");
    remove(&new)?;
    if fs::hard_link(from, &new).is_err() {
        copy(from, &new)?;
    }
    replace(&new, to)
}

/// Removes a program, once it has ended; one that does not exist is no error.
///
/// # Errors
/// The error of the system.
pub fn remove(path: &Path) -> io::Result<()> {
    retry_busy(|| remove_if_present(path))
}

/// Removes a file; one that does not exist is no error.
///
/// # Errors
/// The error of the system.
pub fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Renames the file at `from` to `to` and syncs the directory, even if `to` is a running program.
///
/// Atomic on Unix. Windows does not replace a running program: `to` is renamed away first, so that after
/// a power cut in between no file is there.
///
/// # Errors
/// The error of the system. Usually `to` is unchanged, but it is replaced already if the directory cannot be
/// synced, and missing if Windows cannot rename it back.
pub fn replace(from: &Path, to: &Path) -> io::Result<()> {
    retry_busy(|| match fs::rename(from, to) {
        Err(error) if cfg!(windows) && to.is_file() => replace_running(from, to, error),
        renamed => renamed,
    })?;
    secure_file::sync_dir(to.parent().unwrap_or(to))
}

fn replace_running(from: &Path, to: &Path, error: io::Error) -> io::Result<()> {
    // The place must not be empty while another program holds the file that belongs there.
    check_renamable(from)?;
    let old = (0..MAX_OLD).map(|number| beside(to, &format!("old{number}")));
    // A program that still runs cannot be removed.
    let old = old.into_iter().find(|old| remove_if_present(old).is_ok()).ok_or(error)?;
    fs::rename(to, &old)?;
    fs::rename(from, to).inspect_err(|_| drop(fs::rename(&old, to)))?;
    drop(fs::remove_file(&old));
    Ok(())
}

/// Opens a file as a rename does.
#[cfg(windows)]
fn check_renamable(path: &Path) -> io::Result<()> {
    /// `DELETE`.
    const ACCESS: u32 = 0x0001_0000;
    let mut options = fs::OpenOptions::new();
    std::os::windows::fs::OpenOptionsExt::access_mode(&mut options, ACCESS);
    options.open(path).map(drop)
}

#[cfg(not(windows))]
fn check_renamable(path: &Path) -> io::Result<()> {
    fs::symlink_metadata(path).map(drop)
}

/// Removes programs that were renamed away because they were running.
pub fn remove_old(program: &Path) {
    if cfg!(windows) {
        (0..MAX_OLD)
            .for_each(|number| drop(fs::remove_file(beside(program, &format!("old{number}")))));
    }
}

/// Repeats `action` as long as another program holds one of its files, for up to 10 s.
///
/// # Errors
/// The error of the last attempt.
pub fn retry_busy<T>(mut action: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..BUSY_TRIES {
        match action() {
            Err(error) if is_busy(&error) => thread::sleep(BUSY_PAUSE),
            done => return done,
        }
    }
    action()
}

/// Returns whether an error means that another program holds a file at the moment.
#[must_use]
pub fn is_busy(error: &io::Error) -> bool {
    /// `ERROR_ACCESS_DENIED`, `ERROR_SHARING_VIOLATION` and `ERROR_LOCK_VIOLATION`.
    const WINDOWS: [i32; 3] = [5, 32, 33];
    error.kind() == io::ErrorKind::ExecutableFileBusy
        || cfg!(windows) && error.raw_os_error().is_some_and(|code| WINDOWS.contains(&code))
}

/// True if [`run_in_place`] replaces the process: on Windows the new program runs beside it.
pub const REPLACES_PROCESS: bool = cfg!(unix);

/// Replaces this process with `program`; on Windows, runs it and returns its exit code.
///
/// # Errors
/// The error of the system: the program was not started.
pub fn run_in_place(program: &Path, arguments: &[OsString]) -> io::Result<i32> {
    let mut command = Command::new(program);
    command.args(arguments);
    #[cfg(unix)]
    return Err(std::os::unix::process::CommandExt::exec(&mut command));
    #[cfg(not(unix))]
    Ok(command.status()?.code().unwrap_or(1))
}

/// Makes the process of `command` independent of the terminal and the process group of this one.
pub fn detach(command: &mut Command) {
    use std::process::Stdio;

    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(windows)]
    {
        /// `DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP`.
        const FLAGS: u32 = 0x0000_0008 | 0x0000_0200;
        std::os::windows::process::CommandExt::creation_flags(command, FLAGS);
        keep_streams();
    }
}

/// Keeps new processes from inheriting the standard streams of this one: a reader of a pipe would wait for the
/// end of all of them. Those that are to have a stream get a copy.
#[cfg(windows)]
#[expect(unsafe_code, reason = "a system call")]
fn keep_streams() {
    use std::os::windows::io::AsRawHandle as _;

    use windows_sys::Win32::Foundation::{HANDLE_FLAG_INHERIT, SetHandleInformation};

    let streams =
        [io::stdin().as_raw_handle(), io::stdout().as_raw_handle(), io::stderr().as_raw_handle()];
    for stream in streams {
        // SAFETY: changes a flag of a handle, and fails for one that is not open.
        unsafe { SetHandleInformation(stream, HANDLE_FLAG_INHERIT, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_beside_keeps_the_ending_that_windows_needs() {
        let beside = |path: &str| beside(Path::new(path), "previous");
        assert_eq!(beside("/b/ai-agent"), Path::new("/b/ai-agent.previous"));
        assert_eq!(beside("/b/ai-agent.exe"), Path::new("/b/ai-agent.previous.exe"));
        assert_eq!(beside("/b/agent-1.2"), Path::new("/b/agent-1.2.previous"));
    }

    #[test]
    fn programs_of_the_system_are_recognised() {
        for (path, expected) in [
            ("/usr/bin/ai-agent", true),
            ("/usr/local/bin/ai-agent", true),
            ("/bin/ai-agent", true),
            ("/home/u/.local/bin/ai-agent", false),
            ("/usrx/ai-agent", false),
        ] {
            assert_eq!(is_in_system_directory(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn busy_file_is_tried_again_and_another_error_is_not() {
        let mut calls = 0;
        let done = retry_busy(|| {
            calls += 1;
            if calls < 3 { Err(io::ErrorKind::ExecutableFileBusy.into()) } else { Ok(()) }
        });
        assert!(done.is_ok() && calls == 3);
        let mut calls = 0;
        let failed: io::Result<()> = retry_busy(|| {
            calls += 1;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(failed.is_err() && calls == 1);
    }

    /// Windows does not replace a running program; the same code path runs here.
    #[test]
    fn running_program_is_renamed_away_and_comes_back_on_failure() {
        let dir = tempfile::tempdir().unwrap();
        let [program, next] =
            ["ai-agent.exe", "ai-agent.next.exe"].map(|name| dir.path().join(name));
        fs::write(&program, "old").unwrap();
        let denied = || io::ErrorKind::PermissionDenied.into();
        replace_running(&next, &program, denied()).unwrap_err();
        assert_eq!(fs::read(&program).unwrap(), b"old");
        fs::write(&next, "new").unwrap();
        replace_running(&next, &program, denied()).unwrap();
        assert_eq!(fs::read(&program).unwrap(), b"new");
    }
}
