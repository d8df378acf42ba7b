//! Write timeout for connections whose client reads nothing, or a byte now and then.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

/// Number of bytes in a second that a client must read while a response waits for it.
pub(crate) const MIN_RATE: u64 = 4 << 10;

/// A connection on which a write fails if the client reads nothing for some time, or less than
/// [`MIN_RATE`] over this time. hyper limits how long it waits for a request, but not how long it waits for
/// a client that does not read the response.
#[derive(Debug)]
pub(crate) struct WriteTimeout {
    stream: TcpStream,
    patience: Duration,
    /// Running while a write is pending.
    stalled: Option<Pin<Box<Sleep>>>,
    period: Option<Period>,
}

/// Time over which the rate is measured. It begins with a write that must wait, and ends when a write
/// did not follow at once: then the server, not the client, is waited for.
#[derive(Debug)]
struct Period {
    begun: Instant,
    /// Time of the last write.
    last: Instant,
    written: u64,
}

/// Time after which a write does not follow at once.
const GAP: Duration = Duration::from_secs(1);

impl Period {
    /// Counts written bytes.
    fn add(&mut self, bytes: usize, now: Instant) {
        self.written += bytes as u64;
        self.last = now;
    }

    /// Reports whether a client reads too slowly; begins again after `length`.
    fn is_too_slow(&mut self, length: Duration, now: Instant) -> bool {
        let took = now - self.begun;
        if took < length {
            return false;
        }
        let is_slow = u128::from(self.written) * 1000 < u128::from(MIN_RATE) * took.as_millis();
        (self.begun, self.written) = (now, 0);
        is_slow
    }
}

impl WriteTimeout {
    /// Limits writes to `stream` to `patience`.
    pub(crate) fn new(stream: TcpStream, patience: Duration) -> Self {
        Self { stream, patience, stalled: None, period: None }
    }

    fn bounded(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let now = Instant::now();
        let was_stalled = self.stalled.is_some();
        let is_over = |period: &Period| !was_stalled && now - period.last > GAP;
        if self.period.as_ref().is_some_and(is_over) {
            self.period = None;
        }
        if let Poll::Ready(result) = &written {
            self.stalled = None;
            if let (Some(period), Ok(bytes)) = (&mut self.period, result) {
                period.add(*bytes, now);
            }
            return written;
        }
        let period = self.period.get_or_insert(Period { begun: now, last: now, written: 0 });
        if period.is_too_slow(self.patience, now) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let patience = self.patience;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + patience)));
        ready!(stalled.as_mut().poll(context));
        self.stalled = None;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for WriteTimeout {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for WriteTimeout {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.bounded(context, written)
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
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpSocket,
    };

    use super::*;

    /// Connects two sockets with small buffers, so that a writer soon waits for its reader.
    async fn connected() -> (TcpStream, TcpStream) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(4096).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let reader = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, reader)
    }

    /// Writes for `seconds` to a client that reads `bytes` each 20 ms; returns the error before that.
    async fn write_to_reader_of(bytes: usize, seconds: u64) -> Option<io::ErrorKind> {
        let (writer, mut reader) = connected().await;
        let mut writer = WriteTimeout::new(writer, Duration::from_secs(3));
        let mut part = vec![0; bytes];
        let reading = async {
            while reader.read_exact(&mut part).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let writing = async {
            loop {
                if let Err(error) = writer.write_all(&[7; 1000]).await {
                    return error.kind();
                }
            }
        };
        let writing = tokio::time::timeout(Duration::from_secs(seconds), writing);
        tokio::select! {
            written = writing => written.ok(),
            () = reading => None,
        }
    }

    #[tokio::test]
    async fn client_reading_too_slowly_times_out() {
        assert_eq!(write_to_reader_of(60, 9).await, Some(io::ErrorKind::TimedOut));
    }

    #[tokio::test]
    async fn client_reading_fast_enough_is_served() {
        assert_eq!(write_to_reader_of(1000, 4).await, None);
    }

    #[test]
    fn rate_is_measured_over_a_period() {
        let begun = Instant::now();
        let length = Duration::from_secs(60);
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut period = Period { begun, last: begun, written: 0 };
        assert!(!period.is_too_slow(length, after(59)), "the period is not over");
        period.add(60 * MIN_RATE as usize, after(59));
        assert!(!period.is_too_slow(length, after(60)));
        period.add(60 * MIN_RATE as usize - 1, after(61));
        assert!(period.is_too_slow(length, after(120)), "each period counts for itself");
    }
}
