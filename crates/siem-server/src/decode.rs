//! Decompression of bodies, with a size limit.

use std::{
    io::{self, Read},
    sync::{Mutex, PoisonError},
};

use siem_protocol::Encoding;
use zstd::zstd_safe::{DCtx, DParameter, get_error_name};

/// Largest accepted window of a zstd frame, as a power of two: 64 MiB, the largest decoded body.
const ZSTD_WINDOW_LOG: u32 = 26;
/// Number of zstd contexts that are kept for the next bodies. A new one takes 100 KB from the system.
const IDLE_CONTEXTS: usize = 16;
/// Size of the largest context that is kept, in bytes: one that decoded a frame of unknown size has its window.
const LARGEST_CONTEXT: usize = 1 << 20;

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
            let mut context = Context::take().map_err(malformed)?;
            let text = read(context.decoder(body), likely, limit);
            context.keep();
            text?.map_err(malformed)
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
        Encoding::Zstd => Context::take()
            .and_then(|mut context| context.decoder(body).take(limit).read_to_end(&mut text)),
        Encoding::Gzip => {
            flate2::bufread::MultiGzDecoder::new(body).take(limit).read_to_end(&mut text)
        }
    };
    drop(read);
    text
}

/// Tables and buffers with which zstd decodes.
struct Context(DCtx<'static>);

/// Contexts that no body needs at the moment.
static IDLE: Mutex<Vec<Context>> = Mutex::new(Vec::new());

impl Context {
    fn take() -> io::Result<Self> {
        // A statement of its own, so that the list is unlocked again.
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(Self::create, Ok)
    }

    fn create() -> io::Result<Self> {
        let mut context = DCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?;
        let limited = context.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG));
        limited.map_err(|code| io::Error::other(get_error_name(code)))?;
        Ok(Self(context))
    }

    /// Starts to decode `body`. What is left of the body before is dropped.
    fn decoder<'a>(&'a mut self, body: &'a [u8]) -> impl Read + 'a {
        zstd::Decoder::with_context(body, &mut self.0)
    }

    /// Keeps the context for another body, if it is not too large.
    fn keep(self) {
        if self.0.sizeof() > LARGEST_CONTEXT {
            return;
        }
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONTEXTS {
            idle.push(self);
        }
    }
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
    fn context_of_another_body_leaves_nothing_behind() {
        let mut context = Context::create().unwrap();
        let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let (first, second) = (zstd(&text), zstd(b"second"));
        let mut some = [0; 1000];
        // One that is refused in the middle, and one that is truncated.
        context.decoder(&first).read_exact(&mut some).unwrap();
        context.decoder(&first[..500]).read_to_end(&mut Vec::new()).unwrap_err();
        let mut decoded = Vec::new();
        context.decoder(&second).read_to_end(&mut decoded).unwrap();
        assert_eq!(decoded, b"second");
    }

    #[test]
    fn context_with_a_large_window_is_not_kept() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(23).unwrap();
        let text: Vec<u8> = (0..4_000_000_u32).flat_map(u32::to_le_bytes).collect();
        encoder.write_all(&text).unwrap();
        let body = encoder.finish().unwrap();
        let mut context = Context::create().unwrap();
        context.decoder(&body).read_exact(&mut [0; 10_000]).unwrap();
        assert!(context.0.sizeof() > LARGEST_CONTEXT);
        context.keep();
        let idle = IDLE.lock().unwrap();
        assert!(idle.iter().all(|context| context.0.sizeof() <= LARGEST_CONTEXT));
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
