//! Entries of a batch as the outbox stores them: frames, compressed once.

use std::io::Write as _;

use ai_agent_stage::{Batch, BatchBody, BatchError};
use siem_protocol::Encoding;

use crate::frame::{Codec, Encoder, Frame};

/// Consecutive frames of the outbox.
#[derive(Debug)]
pub struct StoredFrames(pub Vec<Frame>);

impl BatchBody for StoredFrames {
    fn raw_bytes(&self) -> usize {
        self.0.iter().map(|frame| frame.head.raw).sum()
    }

    fn lines(&self) -> Result<Vec<u8>, BatchError> {
        let mut lines = Vec::with_capacity(self.raw_bytes());
        for frame in &self.0 {
            lines.extend_from_slice(&frame.decode().map_err(BatchError::new)?);
        }
        Ok(lines)
    }
}

/// Builds the body of a request: the header line and the entries in `encoding`. Frames that are
/// stored in that encoding are copied without being decoded.
///
/// # Errors
/// [`BatchError`] if a frame is damaged.
pub(super) fn request_body(
    batch: &Batch,
    encoding: Encoding,
    encoder: &mut Encoder,
) -> Result<Vec<u8>, BatchError> {
    let mut header = serde_json::to_vec(batch.header()).expect("a header is written as JSON");
    header.push(b'\n');
    match (encoding, batch.body::<StoredFrames>()) {
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
            header.reserve(batch.raw_bytes());
            for frame in frames {
                match frame.head.codec {
                    Codec::Plain => header.extend_from_slice(&frame.body),
                    Codec::Zstd => {
                        header.extend_from_slice(&frame.decode().map_err(BatchError::new)?);
                    }
                }
            }
            Ok(header)
        }
        (Encoding::Gzip, _) => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            for piece in [header, batch.lines()?] {
                gzip.write_all(&piece).expect("a vector accepts every write");
            }
            Ok(gzip.finish().expect("a vector accepts every write"))
        }
        (Encoding::Zstd, None) => {
            let mut body = encoder.compress(&header);
            body.extend_from_slice(&encoder.compress(&batch.lines()?));
            Ok(body)
        }
        (Encoding::Identity, None) => {
            header.extend_from_slice(&batch.lines()?);
            Ok(header)
        }
    }
}
