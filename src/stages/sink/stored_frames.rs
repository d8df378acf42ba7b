//! Entries of a batch as the outbox stores them: frames, compressed once.

use std::{
    any::Any,
    error::Error,
    io::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ai_agent_stage::{Batch, BatchBody};
use siem_protocol::{BatchHeader, ChainPoint, Encoding, agent_event::UntrustedAnswer};

use crate::frame::{self, Codec, Encoder, Frame};

/// Consecutive frames of the outbox, and what the agent's own protocol needs besides them.
#[derive(Debug, Default)]
pub struct StoredFrames {
    /// The frames.
    pub frames: Vec<Frame>,
    /// What the outbox knows of the receiver.
    pub custody: Custody,
    findings: Mutex<ResponseFindings>,
}

/// What the outbox knows of the receiver of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Custody {
    /// Name of the sink.
    pub sink: String,
    /// For a redelivery: last point of its epoch that the receiver has acknowledged; `None` if that
    /// is not known.
    pub held: Option<ChainPoint>,
    /// Note of the last receipt for the epoch of the batch.
    pub receipt: Option<String>,
}

/// What the sink learned from the response to a batch, besides the result of the delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseFindings {
    /// Note of the receipt.
    pub receipt: Option<String>,
    /// HTTP status of a response that must not be believed, and what is wrong with it.
    pub untrusted: Option<(u16, UntrustedAnswer)>,
}

impl StoredFrames {
    /// Creates the body of a batch.
    #[must_use]
    pub fn new(frames: Vec<Frame>, custody: Custody) -> Self {
        Self { frames, custody, findings: Mutex::default() }
    }

    /// Returns the body of a batch of the outbox.
    #[must_use]
    pub fn of(batch: &Batch) -> Option<&Self> {
        (&*batch.body as &dyn Any).downcast_ref()
    }

    /// Removes and returns what the sink learned from the last response.
    #[must_use]
    pub fn take_findings(&self) -> ResponseFindings {
        std::mem::take(&mut self.findings())
    }

    pub(super) fn findings(&self) -> MutexGuard<'_, ResponseFindings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BatchBody for StoredFrames {
    fn raw_bytes(&self) -> usize {
        self.frames.iter().map(|frame| frame.head.raw).sum()
    }

    fn lines(&self) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        let mut lines = Vec::with_capacity(self.raw_bytes());
        for frame in &self.frames {
            lines.extend_from_slice(&frame.decode()?);
        }
        Ok(lines)
    }
}

/// Returns a zstd frame with the line of a header. A short one is not compressed: that takes 50,000
/// instructions, and saves about 200 bytes.
fn compressed_header(line: &[u8], encoder: &mut Encoder) -> Vec<u8> {
    const SHORT: usize = 2 << 10;

    let short = (line.len() <= SHORT).then(|| frame::uncompressed_zstd(line)).flatten();
    short.unwrap_or_else(|| encoder.compress(line))
}

/// Builds the body of a request: the line of `header` and the entries of `batch` in `encoding`.
/// Frames that are stored in that encoding are copied without being decoded.
///
/// # Errors
/// If a frame is damaged.
pub(super) fn request_body(
    header: &BatchHeader,
    batch: &Batch,
    encoding: Encoding,
    encoder: &mut Encoder,
) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    let mut header = serde_json::to_vec(header).expect("a header is written as JSON");
    header.push(b'\n');
    let stored = StoredFrames::of(batch);
    match (encoding, stored) {
        (Encoding::Zstd, Some(StoredFrames { frames, .. })) => {
            let mut body = compressed_header(&header, encoder);
            body.reserve(frames.iter().map(|frame| frame.body.len()).sum());
            for frame in frames {
                match frame.head.codec {
                    Codec::Zstd => body.extend_from_slice(&frame.body),
                    Codec::Plain => body.extend_from_slice(&encoder.compress(&frame.body)),
                }
            }
            Ok(body)
        }
        (Encoding::Identity, Some(StoredFrames { frames, .. })) => {
            header.reserve(batch.body.raw_bytes());
            for frame in frames {
                match frame.head.codec {
                    Codec::Plain => header.extend_from_slice(&frame.body),
                    Codec::Zstd => {
                        header.extend_from_slice(&frame.decode()?);
                    }
                }
            }
            Ok(header)
        }
        (Encoding::Gzip, _) => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            for piece in [header, batch.body.lines()?] {
                gzip.write_all(&piece).expect("a vector accepts every write");
            }
            Ok(gzip.finish().expect("a vector accepts every write"))
        }
        (Encoding::Zstd, None) => {
            let mut body = compressed_header(&header, encoder);
            body.extend_from_slice(&encoder.compress(&batch.body.lines()?));
            Ok(body)
        }
        (Encoding::Identity, None) => {
            header.extend_from_slice(&batch.body.lines()?);
            Ok(header)
        }
    }
}
