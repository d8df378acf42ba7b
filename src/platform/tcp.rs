//! What the system knows about data sent over TCP.
//!
//! A write only moves bytes into the send buffer of the system. They stay there until the peer's system
//! acknowledges them, which says nothing about the program that reads them.

use std::{io, time::Duration};

use tokio::net::TcpStream;

/// Returns the number of bytes that were written to the connection and that the peer's system has not
/// acknowledged; `None` if that is not known.
///
/// Unsent bytes count too: <https://man7.org/linux/man-pages/man7/tcp.7.html>, `SIOCOUTQ`.
#[cfg(all(
    target_os = "linux",
    any(
        target_arch = "x86",
        target_arch = "x86_64",
        target_arch = "arm",
        target_arch = "aarch64",
        target_arch = "riscv64"
    )
))]
#[must_use]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
pub fn unacknowledged(stream: &TcpStream) -> Option<u64> {
    use rustix::ioctl::{Getter, Opcode, ioctl};

    /// `SIOCOUTQ`; other architectures have another number.
    const SEND_QUEUE: Opcode = 0x5411;

    // SAFETY: for this number the system writes a C `int`.
    let bytes = unsafe { ioctl(stream, Getter::<SEND_QUEUE, std::ffi::c_int>::new()) };
    bytes.ok().and_then(|bytes| u64::try_from(bytes).ok())
}

/// Returns the number of bytes that were written to the connection and that the peer's system has not
/// acknowledged; `None` if that is not known.
///
/// Unsent bytes count too: `SO_NWRITE` is the size of the send buffer's content.
#[cfg(target_os = "macos")]
#[must_use]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
pub fn unacknowledged(stream: &TcpStream) -> Option<u64> {
    use std::os::fd::AsRawFd as _;

    let mut bytes: libc::c_int = 0;
    let mut size = libc::socklen_t::try_from(size_of::<libc::c_int>()).ok()?;
    let (fd, value) = (stream.as_raw_fd(), (&raw mut bytes).cast());
    // SAFETY: the size of the buffer is correct.
    let failed =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_NWRITE, value, &raw mut size) };
    if failed == 0 { u64::try_from(bytes).ok() } else { None }
}

/// Returns `None`: this system does not report which bytes are acknowledged.
#[cfg(not(any(
    target_os = "macos",
    all(
        target_os = "linux",
        any(
            target_arch = "x86",
            target_arch = "x86_64",
            target_arch = "arm",
            target_arch = "aarch64",
            target_arch = "riscv64"
        )
    )
)))]
#[must_use]
pub fn unacknowledged(_stream: &TcpStream) -> Option<u64> {
    None
}

/// Makes the system close the connection when data was not acknowledged, or could not be sent, for
/// `limit`.
///
/// # Errors
/// The error of the system.
#[cfg(target_os = "linux")]
pub fn limit_unacknowledged(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    let limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, limit)?)
}

/// Makes the system close the connection when data was sent repeatedly without an acknowledgement for
/// `limit`, in seconds.
///
/// # Errors
/// The error of the system.
#[cfg(target_os = "macos")]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
pub fn limit_unacknowledged(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;

    /// Defined in `netinet/tcp.h`, and not in `libc`.
    const TCP_RXT_CONNDROPTIME: libc::c_int = 0x80;

    let seconds = libc::c_int::try_from(limit.as_secs().max(1)).unwrap_or(libc::c_int::MAX);
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    let (fd, value) = (stream.as_raw_fd(), (&raw const seconds).cast());
    // SAFETY: the size of the value is correct.
    let failed =
        unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, TCP_RXT_CONNDROPTIME, value, size) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Does nothing on this system.
///
/// # Errors
/// None.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub fn limit_unacknowledged(_stream: &TcpStream, _limit: Duration) -> io::Result<()> {
    Ok(())
}

/// A network that carries nothing, for tests that require `socket_filter`.
#[cfg(test)]
pub mod dead_network {
    use tokio::net::TcpStream;

    /// Makes the system drop every packet for this end of a connection before TCP reads it: nothing is
    /// acknowledged, and nothing is reset.
    #[cfg(target_os = "linux")]
    pub fn begin(stream: &TcpStream) {
        // `BPF_RET | BPF_K` with 0: keep no byte.
        let drop = socket2::SockFilter::new(0x06, 0, 0, 0);
        socket2::SockRef::from(stream).attach_filter(&[drop]).unwrap();
    }

    /// Makes the system accept packets again.
    #[cfg(target_os = "linux")]
    pub fn end(stream: &TcpStream) {
        socket2::SockRef::from(stream).detach_filter().unwrap();
    }

    /// Panics: only Linux has socket filters.
    #[cfg(not(target_os = "linux"))]
    pub fn begin(_: &TcpStream) {
        panic!("this system has no socket filters");
    }

    /// Panics: only Linux has socket filters.
    #[cfg(not(target_os = "linux"))]
    pub fn end(_: &TcpStream) {
        panic!("this system has no socket filters");
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::{sleep, timeout},
    };

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    async fn wait_for(stream: &TcpStream, condition: impl Fn(u64) -> bool) -> u64 {
        let start = Instant::now();
        loop {
            let bytes = unacknowledged(stream).unwrap();
            if condition(bytes) {
                return bytes;
            }
            assert!(start.elapsed() < DEADLINE, "{bytes} bytes are not acknowledged");
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn peer_that_does_not_read_leaves_bytes_unacknowledged() {
        let (mut client, mut server) = pair().await;
        assert_eq!(unacknowledged(&client), Some(0));
        client.write_all(&[0; 1000]).await.unwrap();
        wait_for(&client, |bytes| bytes == 0).await;
        let (chunk, mut written) = (vec![0; 64 << 10], 1000);
        // The buffers of both systems are full when writing takes long.
        while let Ok(count) = timeout(Duration::from_millis(300), client.write(&chunk)).await {
            written += count.unwrap();
        }
        let unacknowledged = wait_for(&client, |bytes| bytes > 0).await;
        assert!((unacknowledged as usize) < written, "{unacknowledged} of {written}");
        let mut received = vec![0; written];
        server.read_exact(&mut received).await.unwrap();
        wait_for(&client, |bytes| bytes == 0).await;
    }

    #[tokio::test]
    async fn dead_network_acknowledges_nothing_until_it_is_back() {
        let (mut client, server) = pair().await;
        dead_network::begin(&server);
        client.write_all(&[0; 1000]).await.unwrap();
        sleep(Duration::from_millis(100)).await;
        assert_eq!(unacknowledged(&client), Some(1000));
        dead_network::end(&server);
        wait_for(&client, |bytes| bytes == 0).await;
    }

    #[tokio::test]
    async fn dead_network_ends_the_connection_within_the_limit() {
        let (mut client, server) = pair().await;
        limit_unacknowledged(&client, Duration::from_millis(500)).unwrap();
        dead_network::begin(&server);
        client.write_all(&[0; 1000]).await.unwrap();
        let read = timeout(DEADLINE, client.read(&mut [0])).await.expect("the connection ends");
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(unacknowledged(&client), Some(1000), "the end acknowledges nothing");
    }
}
