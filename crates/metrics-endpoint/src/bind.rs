//! Binding of the address.

#[cfg(unix)]
use std::sync::Arc;
use std::{io, path::PathBuf};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};

use super::MetricsAddress;

/// Accepts connections of programs that read metrics. The file of a socket is deleted when this is dropped.
#[derive(Debug)]
pub struct MetricsListener(Inner);

#[derive(Debug)]
enum Inner {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(tokio::net::UnixListener, Arc<unix::File>),
}

/// The file of a socket, if there is one.
#[derive(Debug)]
pub(crate) struct SocketFile(#[cfg(unix)] Option<Arc<unix::File>>);

impl SocketFile {
    /// Deletes the file, unless another process has replaced it.
    pub(crate) fn delete(&self) {
        #[cfg(unix)]
        if let Some(file) = &self.0 {
            file.delete();
        }
    }
}

/// Reason why metrics cannot be served at an address.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The error of the system.
    #[error("cannot listen on `{address}`")]
    System {
        /// The address.
        address: MetricsAddress,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// The path is in use: by another process, or by a file that is no socket.
    #[error("cannot listen on `unix:{}`: the path is in use", .0.display())]
    InUse(PathBuf),
}

/// Connection of a client.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl MetricsListener {
    /// Starts to listen. A socket that a process left behind is replaced.
    ///
    /// # Errors
    /// [`BindError`] if the address is in use or not permitted.
    pub async fn bind(address: &MetricsAddress) -> Result<Self, BindError> {
        let failed = |source| BindError::System { address: address.clone(), source };
        match address {
            MetricsAddress::Loopback(at) => TcpListener::bind(at)
                .await
                .map(|listener| Self(Inner::Tcp(listener)))
                .map_err(failed),
            #[cfg(unix)]
            MetricsAddress::Unix(path) => {
                if unix::is_in_use(path).await.map_err(failed)? {
                    return Err(BindError::InUse(path.clone()));
                }
                let (listener, file) = unix::bind(path).map_err(failed)?;
                Ok(Self(Inner::Unix(listener, Arc::new(file))))
            }
            #[cfg(not(unix))]
            MetricsAddress::Unix(_) => Err(failed(io::ErrorKind::Unsupported.into())),
        }
    }

    /// Returns the address, with the port that the system has chosen for port 0.
    ///
    /// # Errors
    /// The error of the system.
    pub fn address(&self) -> io::Result<MetricsAddress> {
        match &self.0 {
            Inner::Tcp(listener) => listener.local_addr().map(MetricsAddress::Loopback),
            #[cfg(unix)]
            Inner::Unix(_, file) => Ok(MetricsAddress::Unix(file.path().to_owned())),
        }
    }

    /// Returns whether clients connect through TCP, as browsers can.
    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self.0, Inner::Tcp(_))
    }

    /// The file of the socket.
    pub(crate) fn file(&self) -> SocketFile {
        #[cfg(unix)]
        return SocketFile(match &self.0 {
            Inner::Tcp(_) => None,
            Inner::Unix(_, file) => Some(Arc::clone(file)),
        });
        #[cfg(not(unix))]
        SocketFile()
    }

    pub(crate) async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match &self.0 {
            Inner::Tcp(listener) => Ok(Box::new(listener.accept().await?.0)),
            #[cfg(unix)]
            Inner::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

#[cfg(unix)]
mod unix {
    use std::{
        fs, io,
        os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        path::{Path, PathBuf},
    };

    use tokio::net::{UnixListener, UnixStream};

    /// File of a socket, deleted on drop unless another process has replaced it.
    #[derive(Debug)]
    pub(super) struct File {
        path: PathBuf,
        inode: u64,
    }

    impl File {
        pub(super) fn path(&self) -> &Path {
            &self.path
        }

        pub(super) fn delete(&self) {
            let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|it| it.ino() == self.inode);
            if is_ours && let Err(error) = fs::remove_file(&self.path) {
                tracing::debug!(%error, path = %self.path.display(), "cannot delete the socket");
            }
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            self.delete();
        }
    }

    /// Reports whether a process listens at `path`, or a file is there that is no socket.
    pub(super) async fn is_in_use(path: &Path) -> io::Result<bool> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                Ok(UnixStream::connect(path).await.is_ok())
            }
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Binds a temporary name, and renames it once only the owner may connect.
    pub(super) fn bind(path: &Path) -> io::Result<(UnixListener, File)> {
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".new");
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&unfinished)?;
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o600))?;
        let inode = fs::symlink_metadata(&unfinished)?.ino();
        fs::rename(&unfinished, path)?;
        Ok((listener, File { path: path.to_owned(), inode }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn port_in_use_is_an_error() {
        let any: MetricsAddress = "127.0.0.1:0".parse().unwrap();
        let first = MetricsListener::bind(&any).await.unwrap();
        let error = MetricsListener::bind(&first.address().unwrap()).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot listen on `127.0.0.1:"), "{error}");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn socket_is_private_and_replaces_one_left_behind() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let address = MetricsAddress::Unix(path.clone());
        let listener = MetricsListener::bind(&address).await.unwrap();
        assert_eq!(listener.address().unwrap(), address);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = MetricsListener::bind(&address).await;
        assert!(matches!(again, Err(BindError::InUse(_))), "{again:?}");
        drop(listener);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn file_that_is_no_socket_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics");
        std::fs::write(&path, "data").unwrap();
        let bound = MetricsListener::bind(&MetricsAddress::Unix(path.clone())).await;
        assert!(matches!(bound, Err(BindError::InUse(_))), "{bound:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }
}
