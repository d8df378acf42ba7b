//! A batch on its way out.

use std::{io::Write as _, time::Duration};

use siem_protocol::{BatchHeader, Encoding};

use crate::frame::{Codec, Encoder, Frame, FrameError};

/// Consecutive entries under one configuration, with the header line that goes before them.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The header line.
    pub header: BatchHeader,
    /// The entries, in order.
    pub frames: Vec<Frame>,
    /// How long its delivery may take, where that is more than what the sink allows by itself.
    pub patience: Option<Duration>,
}

impl Batch {
    /// The entries' lines without the header, each with its newline.
    ///
    /// # Errors
    /// [`FrameError`] when a frame is damaged.
    pub fn lines(&self) -> Result<Vec<u8>, FrameError> {
        let mut lines = Vec::with_capacity(self.raw());
        for frame in &self.frames {
            lines.extend_from_slice(&frame.decode()?);
        }
        Ok(lines)
    }

    /// Bytes of the entries' lines before compression.
    #[must_use]
    pub fn raw(&self) -> usize {
        self.frames.iter().map(|frame| frame.head.raw).sum()
    }

    /// The last number that the batch covers.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.header.last_seq.unwrap_or_default()
    }

    /// The request's body: the header line and the entries, as `encoding` has them. Frames that
    /// are stored that way are taken as they are.
    ///
    /// # Errors
    /// [`FrameError`] when a frame is damaged.
    pub fn body(&self, encoding: Encoding, encoder: &mut Encoder) -> Result<Vec<u8>, FrameError> {
        let mut header = serde_json::to_vec(&self.header).expect("a header can be written as JSON");
        header.push(b'\n');
        match encoding {
            Encoding::Zstd => {
                let mut body = encoder.compress(&header);
                body.reserve(self.frames.iter().map(|frame| frame.body.len()).sum());
                for frame in &self.frames {
                    match frame.head.codec {
                        Codec::Zstd => body.extend_from_slice(&frame.body),
                        Codec::Plain => body.extend_from_slice(&encoder.compress(&frame.body)),
                    }
                }
                Ok(body)
            }
            Encoding::Gzip => {
                let mut gzip =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                for piece in [header, self.lines()?] {
                    gzip.write_all(&piece).expect("a vector takes every write");
                }
                Ok(gzip.finish().expect("a vector takes every write"))
            }
            Encoding::Identity => {
                header.reserve(self.raw());
                for frame in &self.frames {
                    match frame.head.codec {
                        Codec::Plain => header.extend_from_slice(&frame.body),
                        Codec::Zstd => header.extend_from_slice(&frame.decode()?),
                    }
                }
                Ok(header)
            }
        }
    }
}
