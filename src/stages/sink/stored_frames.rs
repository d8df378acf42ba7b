//! Entries of a batch as the outbox stores them: frames, compressed once.

use std::{any::Any, error::Error, io::Write as _};

use ai_agent_stage::{Batch, BatchBody};
use siem_protocol::{BatchHeader, Encoding};

use crate::frame::{Codec, Encoder, Frame};

/// Consecutive frames of the outbox.
#[derive(Debug)]
pub struct StoredFrames(pub Vec<Frame>);

impl BatchBody for StoredFrames {
    fn raw_bytes(&self) -> usize {
        self.0.iter().map(|frame| frame.head.raw).sum()
    }

    fn lines(&self) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        let mut lines = Vec::with_capacity(self.raw_bytes());
        for frame in &self.0 {
            lines.extend_from_slice(&frame.decode()?);
        }
        Ok(lines)
    }
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
    let stored = (&*batch.body as &dyn Any).downcast_ref::<StoredFrames>();
    match (encoding, stored) {
        (Encoding::Zstd, Some(StoredFrames(frames))) => {
            let mut body = encoder.compress(&header);
            body.reserve(frames.iter().map(|frame| frame.body.len()).sum());
            for frame in frames {
                match frame.head.codec {
                    Codec::Zstd => body.extend_from_slice(&frame.body),
                    Codec::Plain => body.extend_from_slice(&encoder.compress(&frame.body)),
                }
            }
            Ok(body)
        }
        (Encoding::Identity, Some(StoredFrames(frames))) => {
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
            let mut body = encoder.compress(&header);
            body.extend_from_slice(&encoder.compress(&batch.body.lines()?));
            Ok(body)
        }
        (Encoding::Identity, None) => {
            header.extend_from_slice(&batch.body.lines()?);
            Ok(header)
        }
    }
}
