//! Compression of request bodies.

use std::{borrow::Cow, io::Write as _};

use flate2::{Compression as Level, write::GzEncoder};

/// Compression of request bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// gzip, with little effort.
    #[default]
    Gzip,
    /// No compression.
    None,
}

impl Compression {
    /// Returns the value of `Content-Encoding`.
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Self::Gzip => Some("gzip"),
            Self::None => None,
        }
    }

    /// Compresses a body.
    pub(crate) fn compress(self, body: &[u8]) -> Cow<'_, [u8]> {
        if self == Self::None {
            return Cow::Borrowed(body);
        }
        let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Level::fast());
        let written = encoder.write_all(body);
        let finished = written.and_then(|()| encoder.finish());
        Cow::Owned(finished.expect("a vector takes every write"))
    }
}
