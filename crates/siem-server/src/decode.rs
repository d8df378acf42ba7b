//! Decompression of bodies, with a size limit.

use std::io::{self, Read};

use siem_protocol::Encoding;

/// Largest accepted window of a zstd frame, as a power of two: 64 MiB, the largest decoded body.
const ZSTD_WINDOW_LOG: u32 = 26;

/// Reason why a body was not decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The decoded body is larger than allowed.
    #[error("the decoded body has more than {limit} bytes")]
    TooLarge {
        /// Number of bytes allowed.
        limit: usize,
    },
    /// The body is not valid in its encoding, or is truncated.
    #[error("the body is not valid {encoding}")]
    Malformed {
        /// The expected encoding.
        encoding: &'static str,
        /// Error of the decoder.
        #[source]
        source: io::Error,
    },
}

/// Decodes `body` to at most `limit` bytes. Decoding stops at the limit, so that a larger body
/// never takes more memory.
///
/// Several zstd frames or gzip members in sequence decode to one text.
///
/// # Errors
/// [`DecodeError`]; no part of the text is returned.
pub fn decode(body: &[u8], encoding: Encoding, limit: usize) -> Result<Vec<u8>, DecodeError> {
    let malformed = |source| DecodeError::Malformed { encoding: encoding.as_str(), source };
    let likely = body.len().saturating_mul(6);
    match encoding {
        Encoding::Identity if body.len() > limit => Err(DecodeError::TooLarge { limit }),
        Encoding::Identity => Ok(body.to_vec()),
        Encoding::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(body).map_err(malformed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(malformed)?;
            read(decoder, likely, limit)?.map_err(malformed)
        }
        Encoding::Gzip => {
            let decoder = flate2::bufread::MultiGzDecoder::new(body);
            read(decoder, likely, limit)?.map_err(malformed)
        }
    }
}

/// Decodes at most `limit` bytes of the start of `body`; less if the rest is damaged.
pub(crate) fn decode_start(body: &[u8], encoding: Encoding, limit: usize) -> Vec<u8> {
    let mut text = Vec::new();
    let limit = limit as u64;
    // What was read before an error is kept.
    let read = match encoding {
        Encoding::Identity => body.take(limit).read_to_end(&mut text),
        Encoding::Zstd => zstd::Decoder::with_buffer(body)
            .and_then(|mut decoder| {
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Ok(decoder)
            })
            .and_then(|decoder| decoder.take(limit).read_to_end(&mut text)),
        Encoding::Gzip => {
            flate2::bufread::MultiGzDecoder::new(body).take(limit).read_to_end(&mut text)
        }
    };
    drop(read);
    text
}

fn read(
    mut from: impl Read,
    likely: usize,
    limit: usize,
) -> Result<io::Result<Vec<u8>>, DecodeError> {
    // One byte over the limit shows that the body is too large.
    let most = limit.saturating_add(1);
    let mut text = vec![0; likely.clamp(4096, most.max(4096)).min(most)];
    let mut length = 0;
    loop {
        if length > limit {
            return Err(DecodeError::TooLarge { limit });
        }
        if length == text.len() {
            let larger = length.saturating_mul(2).min(most);
            text.reserve_exact(larger - length);
            text.resize(larger, 0);
        }
        match from.read(&mut text[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Err(error)),
        }
    }
    text.truncate(length);
    Ok(Ok(text))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn zstd(text: &[u8]) -> Vec<u8> {
        zstd::encode_all(text, 3).unwrap()
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn frames_and_members_are_joined() {
        let frames = [zstd(b"one "), zstd(b"two "), zstd(b"three")].concat();
        assert_eq!(decode(&frames, Encoding::Zstd, 100).unwrap(), b"one two three");
        let members = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(decode(&members, Encoding::Gzip, 100).unwrap(), b"one two");
        assert_eq!(decode(b"as it is", Encoding::Identity, 100).unwrap(), b"as it is");
    }

    #[test]
    fn limit_is_exact() {
        let text = vec![b'x'; 10_000];
        let encoded = [
            (Encoding::Zstd, zstd(&text)),
            (Encoding::Gzip, gzip(&text)),
            (Encoding::Identity, text.clone()),
        ];
        for (encoding, body) in encoded {
            assert_eq!(decode(&body, encoding, 10_000).unwrap(), text);
            let refused = decode(&body, encoding, 9_999);
            assert!(matches!(refused, Err(DecodeError::TooLarge { limit: 9_999 })));
        }
    }

    #[test]
    fn bomb_stops_at_the_limit() {
        let bomb = zstd(&vec![0; 200 << 20]);
        assert!(bomb.len() < 64 << 10);
        assert!(matches!(
            decode(&bomb, Encoding::Zstd, 1 << 20),
            Err(DecodeError::TooLarge { .. })
        ));
    }

    #[test]
    fn truncated_frame_is_malformed() {
        for (encoding, body) in
            [(Encoding::Zstd, zstd(&[7; 5000])), (Encoding::Gzip, gzip(&[7; 5000]))]
        {
            for length in 1..body.len() {
                let refused = decode(&body[..length], encoding, 10_000);
                assert!(matches!(refused, Err(DecodeError::Malformed { .. })), "{length}");
            }
            let garbage = [body, b"garbage".to_vec()].concat();
            assert!(matches!(
                decode(&garbage, encoding, 10_000),
                Err(DecodeError::Malformed { .. })
            ));
        }
    }
}
