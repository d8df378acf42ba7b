//! A connection over TCP, with or without TLS.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Bytes that the system may hold back for sending. What it holds when the connection is reset is lost,
/// so it must be well below the window.
const SEND_BUFFER: u32 = 256 << 10;

/// Functions of the operating system for TCP connections. They differ between systems, so the caller
/// provides them.
pub trait TcpSystem: Send + Sync {
    /// Makes the system reset the connection when data was not acknowledged by the peer's system for
    /// `limit`. Does nothing on systems without such a limit.
    ///
    /// # Errors
    /// The error of the system. The connection is used without the limit.
    fn limit_unacknowledged(&self, stream: &TcpStream, limit: Duration) -> io::Result<()>;

    /// Returns the number of bytes that were written to the connection and that the peer's system has
    /// not acknowledged; `None` if the system does not report it.
    fn unacknowledged(&self, stream: &TcpStream) -> Option<u64>;
}

/// A bidirectional stream over a TCP connection.
trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {
    /// The connection below the stream.
    fn tcp(&self) -> &CountedStream;
}

impl Stream for CountedStream {
    fn tcp(&self) -> &CountedStream {
        self
    }
}

impl Stream for TlsStream<CountedStream> {
    fn tcp(&self) -> &CountedStream {
        self.get_ref().0
    }
}

/// An open connection.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    system: Arc<dyn TcpSystem>,
    /// True if the system reports which bytes are acknowledged.
    reports_acknowledged: bool,
    /// Number of bytes on the TCP connection, from its start, that are known to be acknowledged.
    acknowledged: u64,
}

/// Destination of a connection, and its properties.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) tls: Option<&'a Arc<rustls::ClientConfig>>,
    pub(super) system: &'a Arc<dyn TcpSystem>,
    /// Time after which a connection whose data is not acknowledged is reset.
    pub(super) dead_after: Duration,
}

impl Connection {
    /// Connects to `target`, with a TLS handshake if there is a configuration for it.
    pub(super) async fn open(target: Target<'_>, within: Duration) -> io::Result<Self> {
        let connect = async {
            let addresses = tokio::net::lookup_host((target.host, target.port)).await?;
            let stream = connect(&addresses.collect::<Vec<_>>(), within).await?;
            Self::secured(stream, target).await
        };
        timeout(within, connect)
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
    }

    async fn secured(stream: TcpStream, target: Target<'_>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        if let Err(error) = target.system.limit_unacknowledged(&stream, target.dead_after) {
            tracing::debug!(%error, "no limit for unacknowledged data");
        }
        let reports_acknowledged = target.system.unacknowledged(&stream).is_some();
        let stream = CountedStream { stream, written: 0 };
        let stream: Box<dyn Stream> = match target.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = ServerName::try_from(target.host.to_owned())
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
                Box::new(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?)
            }
        };
        Ok(Self {
            stream,
            system: Arc::clone(target.system),
            reports_acknowledged,
            acknowledged: 0,
        })
    }

    /// Writes and flushes `bytes`.
    pub(super) async fn write(&mut self, bytes: &[u8], within: Duration) -> io::Result<()> {
        let write = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        timeout(within, write)
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
    }

    /// Returns the number of bytes that were written to the TCP connection since its start. With TLS
    /// these are the encrypted bytes, with those of the handshake.
    pub(super) fn written(&self) -> u64 {
        self.stream.tcp().written
    }

    /// Number of bytes of [`written`](Self::written) that the peer's system has acknowledged, as of
    /// the last check. All of them on a system that does not report it.
    pub(super) fn acknowledged(&self) -> u64 {
        if self.reports_acknowledged { self.acknowledged } else { self.written() }
    }

    /// Updates the number of acknowledged bytes, and returns an error if the connection is closed. Data
    /// that the receiver sends is ignored.
    pub(super) async fn check(&mut self) -> io::Result<()> {
        let tcp = self.stream.tcp();
        let written = tcp.written;
        let unacknowledged = self.system.unacknowledged(&tcp.stream);
        // Some systems discard unacknowledged bytes when the connection is closed, as if none were
        // left: the number counts only if the connection is open after it was read.
        self.discard_input().await?;
        if let Some(unacknowledged) = unacknowledged {
            let acknowledged = written.saturating_sub(unacknowledged);
            self.acknowledged = self.acknowledged.max(acknowledged);
        }
        Ok(())
    }

    async fn discard_input(&mut self) -> io::Result<()> {
        let mut buffer = [0; 1024];
        loop {
            match timeout(Duration::ZERO, self.stream.read(&mut buffer)).await {
                Err(_) => return Ok(()),
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }
}

/// Connects to the first of `addresses` that answers.
async fn connect(addresses: &[SocketAddr], within: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    // An address that does not answer must not use the time of the others.
    let each = within / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    for address in addresses {
        match timeout(each, open_stream(*address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

async fn open_stream(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.connect(address).await
}

/// A TCP connection that counts the bytes written to it.
struct CountedStream {
    stream: TcpStream,
    written: u64,
}

impl CountedStream {
    fn count(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.written += bytes as u64;
        }
        written
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener as StdListener, time::Instant};

    use tokio::net::TcpListener;

    use super::*;

    /// An address at which the system drops requests to connect, as behind a firewall: the queue of
    /// the listener is full. Connections that are dropped leave the queue only when accepted.
    struct SilentAddress {
        address: SocketAddr,
        _queued: Vec<TcpStream>,
        _listener: StdListener,
    }

    impl SilentAddress {
        async fn new() -> Self {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let listener = socket.listen(1).unwrap().into_std().unwrap();
            let address = listener.local_addr().unwrap();
            let mut queued = Vec::new();
            while let Ok(stream) =
                timeout(Duration::from_millis(300), TcpStream::connect(address)).await
            {
                queued.push(stream.unwrap());
                assert!(queued.len() < 100, "the queue of the listener does not become full");
            }
            Self { address, _queued: queued, _listener: listener }
        }
    }

    #[tokio::test]
    async fn silent_address_leaves_time_for_the_next_one() {
        let silent = SilentAddress::new().await;
        let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = live.local_addr().unwrap();
        let (within, start) = (Duration::from_secs(2), Instant::now());
        let addresses = [silent.address, live];
        let stream = timeout(within, connect(&addresses, within)).await.expect("within its time");
        assert_eq!(stream.unwrap().peer_addr().unwrap(), live);
        assert!(start.elapsed() >= within / 2, "the first address was not silent");
    }

    #[tokio::test]
    async fn refused_address_is_skipped_at_once() {
        let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = live.local_addr().unwrap();
        let stream = connect(&[refused, live], Duration::from_secs(60)).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live);
    }

    #[tokio::test]
    async fn silent_addresses_fail_within_the_time_for_all() {
        let silent = SilentAddress::new().await;
        let (within, start) = (Duration::from_millis(400), Instant::now());
        let error = connect(&[silent.address; 2], within).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert_eq!(connect(&[], within).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
