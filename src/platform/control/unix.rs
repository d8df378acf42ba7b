//! Unix socket in the state directory, with mode 0600. If its path is too long for a socket, it is
//! in a private directory elsewhere, and a pointer file in the state directory contains the path.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

use super::{
    super::secure_file,
    stream::{Stream, name_of},
};

/// Socket in the state directory.
const SOCKET: &str = "agent.sock";
/// Temporary name until the socket is accessible to its owner only.
const UNFINISHED: &str = "agent.new";
/// Pointer to a socket in another directory.
const POINTER: &str = "agent.sock.at";
/// Maximum size of the pointer file.
const MAX_POINTER: u64 = 4 << 10;
/// Maximum length of a socket's path: macOS allows 104 bytes including the final zero, Linux 108.
/// <https://man7.org/linux/man-pages/man7/unix.7.html>
const LONGEST: usize = 103;

/// Accepts connections of clients.
pub struct Listener(UnixListener);

/// Files of the socket, removed on drop.
pub struct EndpointGuard(Vec<PathBuf>);

impl Drop for EndpointGuard {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = fs::remove_file(path) {
                tracing::debug!(%error, path = %path.display(), "could not remove the socket");
            }
        }
    }
}

/// Starts to listen; the caller must hold the lock of `state_dir`.
///
/// # Errors
/// The error of the system: no client can connect, and the agent continues.
pub fn bind(state_dir: &Path) -> io::Result<(Listener, EndpointGuard)> {
    bind_or_elsewhere(state_dir, &elsewhere())
}

/// Creates the directory of the socket, and returns it if it is not the state directory.
///
/// # Errors
/// The error of the system.
pub fn prepare_dir(state_dir: &Path) -> io::Result<Option<PathBuf>> {
    if fits(&state_dir.join(SOCKET)) { Ok(None) } else { private_folder(&elsewhere()).map(Some) }
}

/// Directories for sockets whose path in the state directory is too long.
fn elsewhere() -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    let runtime = runtime.map(PathBuf::from).filter(|dir| dir.is_absolute());
    let shared = [std::env::temp_dir(), PathBuf::from("/tmp")];
    runtime.into_iter().chain(shared).collect()
}

fn bind_or_elsewhere(
    state_dir: &Path,
    elsewhere: &[PathBuf],
) -> io::Result<(Listener, EndpointGuard)> {
    let pointer = state_dir.join(POINTER);
    let near = state_dir.join(SOCKET);
    if fits(&near) {
        remove(&pointer)?;
        let listener = bind_at(&near, &state_dir.join(UNFINISHED))?;
        return Ok((listener, EndpointGuard(vec![near])));
    }
    let folder = private_folder(elsewhere)?;
    let name = name_of(state_dir);
    let far = folder.join(&name);
    // One byte longer than a path that is known to fit.
    let listener = bind_at(&far, &folder.join(format!("{name}n")))?;
    let guard = EndpointGuard(vec![far.clone(), pointer.clone()]);
    secure_file::replace(&pointer, far.as_os_str().as_bytes())?;
    Ok((listener, guard))
}

/// Binds `unfinished` and renames it once only the owner may connect, so that other users can never
/// connect. A socket left by a crash is replaced.
fn bind_at(path: &Path, unfinished: &Path) -> io::Result<Listener> {
    remove(unfinished)?;
    let listener = UnixListener::bind(unfinished)?;
    fs::set_permissions(unfinished, fs::Permissions::from_mode(0o600))?;
    fs::rename(unfinished, path)?;
    Ok(Listener(listener))
}

/// Connects to the agent that listens for `state_dir`.
///
/// # Errors
/// The error of the system: no agent listens, or the socket belongs to another user.
pub async fn connect(state_dir: &Path) -> io::Result<Box<dyn Stream>> {
    let near = state_dir.join(SOCKET);
    let path = if fits(&near) {
        near
    } else {
        use std::os::unix::ffi::OsStringExt as _;
        std::ffi::OsString::from_vec(secure_file::read_bytes(
            &state_dir.join(POINTER),
            MAX_POINTER,
        )?)
        .into()
    };
    let stream = UnixStream::connect(path).await?;
    let (server, me) = (stream.peer_cred()?.uid(), me());
    if server != me && me != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("the control socket belongs to user {server}"),
        ));
    }
    Ok(Box::new(stream))
}

impl Listener {
    /// Waits for the next client. Other users are refused.
    ///
    /// # Errors
    /// The error of the system; the next call may succeed.
    pub async fn accept(&mut self) -> io::Result<Box<dyn Stream>> {
        loop {
            let (stream, _) = self.0.accept().await?;
            let user = stream.peer_cred()?.uid();
            if may_connect(user, me()) {
                return Ok(Box::new(stream));
            }
            tracing::warn!(
                code = "control_user_refused",
                user,
                "refused a control connection of another user"
            );
        }
    }
}

/// Returns whether `user` may connect to an agent of `me`; root can read all of its data anyway.
fn may_connect(user: u32, me: u32) -> bool {
    user == me || user == 0
}

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn fits(path: &Path) -> bool {
    path.as_os_str().as_bytes().len() <= LONGEST
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Creates a directory with a short path, accessible to this user only, in the first of `parents`
/// where this is possible.
fn private_folder(parents: &[PathBuf]) -> io::Result<PathBuf> {
    let folder = format!("ai-agent-{}", me());
    let mut why = io::Error::other("no directory has a path that is short enough for a socket");
    for parent in parents {
        let folder = parent.join(&folder);
        // Name of the socket, one more letter while it is temporary, and the separator.
        if folder.as_os_str().as_bytes().len() + 18 > LONGEST {
            continue;
        }
        match secure_file::create_dir(&folder).and_then(|()| fs::symlink_metadata(&folder)) {
            Ok(found) if found.is_dir() && found.uid() == me() && found.mode() & 0o077 == 0 => {
                return Ok(folder);
            }
            Ok(_) => {
                why = io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!("`{}` is accessible to other users", folder.display()),
                );
            }
            Err(error) => why = error,
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn talks(listener: &mut Listener, state_dir: &Path) {
        let ask = async {
            let mut stream = connect(state_dir).await.unwrap();
            stream.write_all(b"?").await.unwrap();
            stream.read_u8().await.unwrap()
        };
        let answer = async {
            let mut stream = listener.accept().await.unwrap();
            let request = stream.read_u8().await.unwrap();
            stream.write_u8(request + 1).await.unwrap();
        };
        assert_eq!(tokio::join!(ask, answer).0, b'@');
    }

    /// Regression: a socket left by a crash blocked every later agent.
    #[tokio::test]
    async fn socket_left_by_a_crash_is_replaced_and_removed_at_end() {
        let dir = tempfile::tempdir().unwrap();
        let (crashed, guard) = bind_or_elsewhere(dir.path(), &[]).unwrap();
        std::mem::forget(guard);
        drop(crashed);
        assert!(connect(dir.path()).await.is_err());
        fs::write(dir.path().join(UNFINISHED), "").unwrap();
        let (mut listener, guard) = bind_or_elsewhere(dir.path(), &[]).unwrap();
        let mode = fs::metadata(dir.path().join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        talks(&mut listener, dir.path()).await;
        drop((listener, guard));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn long_state_path_puts_the_socket_elsewhere() {
        let (dir, runtime) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state = dir.path().join("x".repeat(200));
        fs::create_dir(&state).unwrap();
        assert!(bind_or_elsewhere(&state, &[]).is_err());
        // A directory with an equally long path is skipped.
        let elsewhere = [state.clone(), runtime.path().to_owned()];
        let (mut listener, guard) = bind_or_elsewhere(&state, &elsewhere).unwrap();
        talks(&mut listener, &state).await;
        let folder = fs::read_dir(runtime.path()).unwrap().next().unwrap().unwrap().path();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        drop((listener, guard));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
    }

    /// Another user may have created it before, to intercept connections.
    #[tokio::test]
    async fn directory_accessible_to_others_is_not_used() {
        let (dir, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state = dir.path().join("x".repeat(200));
        fs::create_dir(&state).unwrap();
        let folder = shared.path().join(format!("ai-agent-{}", me()));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let error = bind_or_elsewhere(&state, &[shared.path().to_owned()]).err().unwrap();
        assert!(error.to_string().contains("is accessible to other users"), "{error}");
        // Nor a directory behind a symlink.
        fs::remove_dir(&folder).unwrap();
        let mine = dir.path().join("mine");
        secure_file::create_dir(&mine).unwrap();
        std::os::unix::fs::symlink(&mine, &folder).unwrap();
        assert!(bind_or_elsewhere(&state, &[shared.path().to_owned()]).is_err());
    }

    #[test]
    fn only_the_user_and_root_may_connect() {
        assert!(may_connect(1000, 1000) && may_connect(0, 1000) && may_connect(0, 0));
        assert!(!may_connect(1001, 1000) && !may_connect(1000, 0));
    }
}
