//! Body of a response that is read from a file while it is sent.

use std::{
    fs::File,
    io::{self, Read as _},
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};

use super::turns::Turn;

/// Number of bytes that are read at a time, which a body holds in memory.
const CHUNK: u64 = 128 << 10;

/// The rest of a file, up to a number of bytes. A file that is shorter breaks the connection, so that the
/// client does not take the response for whole.
pub(super) struct ArtifactBody {
    reading: Reading,
    /// Number of bytes that were not sent yet.
    left: u64,
    _turn: Turn,
}

enum Reading {
    Idle(Option<File>),
    Chunk(JoinHandle<io::Result<(File, Bytes)>>),
}

impl ArtifactBody {
    /// Sends `size` bytes of `file` from its position; the turn ends with the body.
    pub(super) fn new(file: File, size: u64, turn: Turn) -> Self {
        Self { reading: Reading::Idle(Some(file)), left: size, _turn: turn }
    }
}

impl HttpBody for ArtifactBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        loop {
            let left = self.left;
            match &mut self.reading {
                Reading::Idle(_) if left == 0 => return Poll::Ready(None),
                Reading::Idle(file) => {
                    let Some(file) = file.take() else { return Poll::Ready(None) };
                    let reading = spawn_blocking(move || read(file, left.min(CHUNK)));
                    self.reading = Reading::Chunk(reading);
                }
                Reading::Chunk(reading) => {
                    let read = ready!(Pin::new(reading).poll(context));
                    self.reading = Reading::Idle(None);
                    return Poll::Ready(Some(self.sent(read.map_err(io::Error::other)?)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl ArtifactBody {
    fn sent(&mut self, read: io::Result<(File, Bytes)>) -> io::Result<Frame<Bytes>> {
        let (file, bytes) = read?;
        self.left -= bytes.len() as u64;
        self.reading = Reading::Idle(Some(file));
        Ok(Frame::data(bytes))
    }
}

fn read(mut file: File, size: u64) -> io::Result<(File, Bytes)> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    (&mut file).take(size).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((file, bytes.into()))
}
