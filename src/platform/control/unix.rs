//! A socket in the state directory, 0600; where its path is too long for one, in a private directory
//! elsewhere, and a file in the state directory says where.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

use super::{super::secure_file, Stream, name_of};

/// The socket, in the state directory.
const SOCKET: &str = "agent.sock";
/// The same until it is nobody's but its owner's.
const UNFINISHED: &str = "agent.new";
/// Says where the socket is that has no room here.
const POINTER: &str = "agent.sock.at";
/// How long a socket's path may be: macOS has room for 104 bytes with the zero at the end, Linux for
/// 108. <https://man7.org/linux/man-pages/man7/unix.7.html>
const LONGEST: usize = 103;

/// Takes those who want to ask.
pub struct Listener(UnixListener);

/// Where it lies; taken away when dropped.
pub struct EndpointGuard(Vec<PathBuf>);

impl Drop for EndpointGuard {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = fs::remove_file(path) {
                tracing::debug!(%error, path = %path.display(), "left behind");
            }
        }
    }
}

/// Begins to listen, for whoever holds the lock of `state_dir`.
///
/// # Errors
/// What the system says: nobody can ask then, and all else goes on.
pub fn bind(state_dir: &Path) -> io::Result<(Listener, EndpointGuard)> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    let runtime = runtime.map(PathBuf::from).filter(|dir| dir.is_absolute());
    let shared = [std::env::temp_dir(), PathBuf::from("/tmp")];
    let elsewhere: Vec<PathBuf> = runtime.into_iter().chain(shared).collect();
    bind_or_elsewhere(state_dir, &elsewhere)
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

/// Binds `unfinished`, and gives it its name once nobody else may connect to it: there is no moment
/// at which somebody could. A socket that a crash left is replaced.
fn bind_at(path: &Path, unfinished: &Path) -> io::Result<Listener> {
    remove(unfinished)?;
    let listener = UnixListener::bind(unfinished)?;
    fs::set_permissions(unfinished, fs::Permissions::from_mode(0o600))?;
    fs::rename(unfinished, path)?;
    Ok(Listener(listener))
}

/// Goes to the agent that listens for `state_dir`.
///
/// # Errors
/// What the system says: nobody listens there, or it is not this user's.
pub async fn connect(state_dir: &Path) -> io::Result<Box<dyn Stream>> {
    let near = state_dir.join(SOCKET);
    let path = if fits(&near) {
        near
    } else {
        use std::os::unix::ffi::OsStringExt as _;
        std::ffi::OsString::from_vec(fs::read(state_dir.join(POINTER))?).into()
    };
    let stream = UnixStream::connect(path).await?;
    let (server, me) = (stream.peer_cred()?.uid(), me());
    if server != me && me != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("what listens there belongs to user {server}"),
        ));
    }
    Ok(Box::new(stream))
}

impl Listener {
    /// Waits for the next who wants to ask. Other users are turned away.
    ///
    /// # Errors
    /// What the system says: the next call may have better luck.
    pub async fn accept(&mut self) -> io::Result<Box<dyn Stream>> {
        loop {
            let (stream, _) = self.0.accept().await?;
            let user = stream.peer_cred()?.uid();
            if is_welcome(user, me()) {
                return Ok(Box::new(stream));
            }
            tracing::warn!(
                code = "control_user_refused",
                user,
                "another user wanted to ask the agent, and was turned away"
            );
        }
    }
}

/// Whether `user` may ask an agent of `me`: root can read all of it anyway.
fn is_welcome(user: u32, me: u32) -> bool {
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

/// A directory of this user's alone with a short path, in the first of `places` that has one.
fn private_folder(places: &[PathBuf]) -> io::Result<PathBuf> {
    let folder = format!("ai-agent-{}", me());
    let mut why = io::Error::other("there is no place for it");
    for place in places {
        let folder = place.join(&folder);
        // The socket's name, a letter more while it is not finished, and the separator.
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
                    format!("`{}` is not this user's alone", folder.display()),
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
            let asked = stream.read_u8().await.unwrap();
            stream.write_u8(asked + 1).await.unwrap();
        };
        assert_eq!(tokio::join!(ask, answer).0, b'@');
    }

    /// A socket that a crash left was in the way of every agent that came after it.
    #[tokio::test]
    async fn what_a_crash_left_is_replaced_and_nothing_is_left_at_the_end() {
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
    async fn a_state_directory_with_a_long_path_has_its_socket_elsewhere() {
        let (dir, runtime) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state = dir.path().join("x".repeat(200));
        fs::create_dir(&state).unwrap();
        assert!(bind_or_elsewhere(&state, &[]).is_err());
        // One whose path is no shorter is passed over.
        let elsewhere = [state.clone(), runtime.path().to_owned()];
        let (mut listener, guard) = bind_or_elsewhere(&state, &elsewhere).unwrap();
        talks(&mut listener, &state).await;
        let folder = fs::read_dir(runtime.path()).unwrap().next().unwrap().unwrap().path();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        drop((listener, guard));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
    }

    /// Somebody else may have made it before, to see who comes.
    #[tokio::test]
    async fn a_folder_that_others_can_get_at_is_not_taken() {
        let (dir, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state = dir.path().join("x".repeat(200));
        fs::create_dir(&state).unwrap();
        let folder = shared.path().join(format!("ai-agent-{}", me()));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let error = bind_or_elsewhere(&state, &[shared.path().to_owned()]).err().unwrap();
        assert!(error.to_string().contains("is not this user's alone"), "{error}");
        // Nor one behind a symlink.
        fs::remove_dir(&folder).unwrap();
        let mine = dir.path().join("mine");
        secure_file::create_dir(&mine).unwrap();
        std::os::unix::fs::symlink(&mine, &folder).unwrap();
        assert!(bind_or_elsewhere(&state, &[shared.path().to_owned()]).is_err());
    }

    #[test]
    fn nobody_but_the_user_and_root_may_ask() {
        assert!(is_welcome(1000, 1000) && is_welcome(0, 1000) && is_welcome(0, 0));
        assert!(!is_welcome(1001, 1000) && !is_welcome(1000, 0));
    }
}
