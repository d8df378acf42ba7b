//! Frames: runs of consecutive entries under one configuration, encoded and compressed once.
//!
//! A frame is stored in the outbox in the form in which it is sent: NDJSON in wire format, compressed
//! with zstd. A batch is a header line followed by stored frames, because zstd frames can be
//! concatenated. Only a part of a frame has to be compressed again.

use std::{io, mem, ops::RangeInclusive};

use serde::{Deserialize, Serialize};
use siem_protocol::{ChainPoint, Digest};
use zstd::zstd_safe::compress_bound;

use crate::platform::Timestamp;

/// Largest size of a frame before compression, unless a single entry is larger. Four uncompressed
/// frames make a block that redb stores without waste.
pub const MAX_RAW: usize = 254 << 10;

/// Size below which a frame is small.
const SMALL: usize = 32 << 10;

/// Encoding of a frame's body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// One zstd frame.
    #[default]
    Zstd,
    /// Uncompressed, for sinks that do not use compression.
    Plain,
}

/// Description of a frame that is known without decoding it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameHead {
    /// Sequence number of the first entry.
    pub first_seq: u64,
    /// Number of entries, at least one.
    pub count: u64,
    /// Size before compression, in bytes.
    pub raw: usize,
    /// Size as stored, in bytes.
    pub stored: usize,
    /// Encoding of the body.
    pub codec: Codec,
    /// Hash of the configuration under which the entries were created.
    pub config: Digest,
    /// Chain value before the first entry.
    pub before: Digest,
    /// Chain value after the last entry.
    pub after: Digest,
    /// Time at which the frame was sealed.
    pub sealed_at: Timestamp,
    /// True if it contains an event that must be sent without delay.
    pub urgent: bool,
}

impl FrameHead {
    /// Sequence number of the last entry.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.first_seq + self.count - 1
    }
}

/// A frame: head and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Description of the frame.
    pub head: FrameHead,
    /// The entries' lines, each with its newline, encoded with the head's codec.
    pub body: Vec<u8>,
}

/// Error of a frame that cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The body cannot be decompressed to the size in the head.
    #[error("cannot decompress the frame at sequence number {first_seq}")]
    Decode {
        /// Sequence number of the first entry.
        first_seq: u64,
        /// Error of the decoder.
        #[source]
        source: io::Error,
    },
    /// An entry does not start with its sequence number.
    #[error("entry {seq} does not start with its sequence number")]
    Number {
        /// Expected sequence number.
        seq: u64,
    },
    /// The number of lines or bytes in the body differs from the head.
    #[error("the frame at sequence number {first_seq} has {found} entries, expected {expected}")]
    Count {
        /// Sequence number of the first entry.
        first_seq: u64,
        /// Number of entries according to the head.
        expected: u64,
        /// Number of lines in the body.
        found: u64,
    },
}

impl Frame {
    /// Returns the entries' lines, each with its newline.
    ///
    /// # Errors
    /// [`FrameError`] when the body is damaged.
    pub fn decode(&self) -> Result<Vec<u8>, FrameError> {
        let first_seq = self.head.first_seq;
        let raw = match self.head.codec {
            Codec::Plain => self.body.clone(),
            Codec::Zstd => decompress(&self.body, self.head.raw)
                .map_err(|source| FrameError::Decode { first_seq, source })?,
        };
        let found = memchr::memchr_iter(b'\n', &raw).count() as u64;
        let is_whole = raw.len() == self.head.raw && raw.ends_with(b"\n");
        if found != self.head.count || !is_whole {
            return Err(FrameError::Count { first_seq, expected: self.head.count, found });
        }
        Ok(raw)
    }

    /// Returns the last sequence number up to which the entries from `first` occupy at most `max_bytes`
    /// before compression; at least `first`.
    ///
    /// # Errors
    /// [`FrameError`] when the body is damaged.
    pub fn last_fitting(&self, first: u64, max_bytes: u64) -> Result<u64, FrameError> {
        let raw = self.decode()?;
        let lines = raw.split_inclusive(|byte| *byte == b'\n');
        let (mut last, mut bytes) = (first, 0);
        for (seq, line) in (self.head.first_seq..).zip(lines).filter(|(seq, _)| *seq >= first) {
            bytes += line.len() as u64;
            if bytes > max_bytes {
                break;
            }
            last = seq;
        }
        Ok(last)
    }

    /// Returns the entries of `range` that `keep` accepts as a frame of their own, for a batch that
    /// starts or ends within this frame or omits an entry. The chain still covers all entries.
    ///
    /// # Errors
    /// [`FrameError`] when the body is damaged.
    pub fn slice(
        &self,
        range: RangeInclusive<u64>,
        keep: impl Fn(u64) -> bool,
        encoder: &mut Encoder,
    ) -> Result<FrameSlice, FrameError> {
        let raw = self.decode()?;
        let mut slice =
            FrameSlice { before: self.head.before, after: self.head.before, frame: None };
        let mut builder = FrameBuilder::default();
        let lines = raw.split_inclusive(|byte| *byte == b'\n');
        for (seq, line) in (self.head.first_seq..).zip(lines) {
            if seq > *range.end() {
                break;
            }
            let digest = Digest::of(&line[..line.len() - 1]);
            slice.after = slice.after.chain(digest);
            if seq < *range.start() {
                slice.before = slice.after;
            } else if keep(seq) {
                builder.raw.extend_from_slice(line);
                builder.count += 1;
            }
        }
        if builder.count > 0 {
            let head = FrameHead {
                first_seq: *range.start().max(&self.head.first_seq),
                count: builder.count,
                before: slice.before,
                after: slice.after,
                raw: builder.raw.len(),
                stored: builder.raw.len(),
                codec: Codec::Plain,
                ..self.head.clone()
            };
            let mut frame = Frame { head, body: builder.raw };
            encoder.encode(&mut frame);
            slice.frame = Some(frame);
        }
        Ok(slice)
    }
}

impl Frame {
    /// Joins consecutive small frames, which compress badly one by one. Large frames are not changed.
    ///
    /// # Errors
    /// [`FrameError`] when a body is damaged.
    pub fn join_small(frames: Vec<Self>, encoder: &mut Encoder) -> Result<Vec<Self>, FrameError> {
        let raw = |run: &[Self]| run.iter().map(|frame| frame.head.raw).sum::<usize>();
        let mut runs: Vec<Vec<Self>> = Vec::with_capacity(frames.len());
        for frame in frames {
            match runs.last_mut() {
                Some(run)
                    if frame.head.raw < SMALL
                        && run[0].head.raw < SMALL
                        && raw(run) + frame.head.raw <= MAX_RAW =>
                {
                    run.push(frame);
                }
                _ => runs.push(vec![frame]),
            }
        }
        let join = |run: Vec<Self>| match <[Self; 1]>::try_from(run) {
            Ok([frame]) => Ok(frame),
            Err(run) => Self::join(&run, encoder),
        };
        runs.into_iter().map(join).collect()
    }

    fn join(run: &[Self], encoder: &mut Encoder) -> Result<Self, FrameError> {
        let mut body = Vec::new();
        for frame in run {
            body.extend_from_slice(&frame.decode()?);
        }
        let (first, last) = (&run[0].head, &run[run.len() - 1].head);
        let head = FrameHead {
            count: run.iter().map(|frame| frame.head.count).sum(),
            raw: body.len(),
            stored: body.len(),
            codec: Codec::Plain,
            after: last.after,
            urgent: run.iter().any(|frame| frame.head.urgent),
            ..first.clone()
        };
        let mut joined = Self { head, body };
        encoder.encode(&mut joined);
        Ok(joined)
    }

    /// Returns the entries after sequence number `passed`, with `passed` subtracted from their numbers
    /// and chained to `at`. Calls `visit` with the chain after each entry.
    ///
    /// # Errors
    /// [`FrameError`] when the body is damaged, or an entry does not start with its number.
    pub fn renumbered(
        &self,
        passed: u64,
        mut at: ChainPoint,
        encoder: &mut Encoder,
        mut visit: impl FnMut(ChainPoint),
    ) -> Result<Self, FrameError> {
        let raw = self.decode()?;
        let mut builder = FrameBuilder::default();
        let lines = raw.split_inclusive(|byte| *byte == b'\n');
        for (old, line) in (self.head.first_seq..).zip(lines).filter(|(seq, _)| *seq > passed) {
            let wrong = FrameError::Number { seq: old };
            let rest = line.strip_prefix(format!("{{\"seq\":{old},").as_bytes()).ok_or(wrong)?;
            let rest = rest.strip_suffix(b"\n").unwrap_or(rest);
            let seq = old - passed;
            let hash = builder.push(at.hash, self.head.urgent, |raw| {
                raw.extend_from_slice(format!("{{\"seq\":{seq},").as_bytes());
                raw.extend_from_slice(rest);
            });
            at = ChainPoint { seq, hash };
            visit(at);
        }
        let (config, sealed_at) = (self.head.config, self.head.sealed_at);
        let mut frame = builder
            .seal(at.seq + 1, at.hash, config, sealed_at)
            .ok_or(FrameError::Number { seq: self.head.first_seq })?;
        encoder.encode(&mut frame);
        Ok(frame)
    }
}

/// Decompresses a body to `raw` bytes. A damaged head may request more memory than is available,
/// which is an error like any other.
fn decompress(body: &[u8], raw: usize) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    text.try_reserve_exact(raw).map_err(|_| io::ErrorKind::OutOfMemory)?;
    zstd::bulk::Decompressor::new()?.decompress_to_buffer(body, &mut text)?;
    Ok(text)
}

/// Part of a frame.
#[derive(Clone, Debug)]
pub struct FrameSlice {
    /// Chain value before the range.
    pub before: Digest,
    /// Chain value after the range.
    pub after: Digest,
    /// Entries that were kept; `None` if there are none.
    pub frame: Option<Frame>,
}

/// Compresses frames with a shared context.
pub struct Encoder {
    codec: Codec,
    /// Created on first use.
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// Output buffer: its required capacity is much larger than the output.
    scratch: Vec<u8>,
}

/// zstd level. Session files are repetitive, so level 1 achieves most of the compression.
const LEVEL: i32 = 1;

impl Encoder {
    /// Creates an encoder for `codec`.
    #[must_use]
    pub fn new(codec: Codec) -> Self {
        Self { codec, zstd: None, scratch: Vec::new() }
    }

    /// Compresses `bytes` to one zstd frame.
    ///
    /// # Panics
    /// If there is no memory for a compression context.
    #[must_use]
    pub fn compress(&mut self, bytes: &[u8]) -> Vec<u8> {
        let create = || zstd::bulk::Compressor::new(LEVEL).expect("level 1 is a level of zstd");
        let zstd = self.zstd.get_or_insert_with(create);
        self.scratch.clear();
        self.scratch.reserve(compress_bound(bytes.len()));
        let compressed = zstd.compress_to_buffer(bytes, &mut self.scratch);
        compressed.expect("the output buffer has the capacity for any input");
        let compressed = self.scratch.as_slice().to_vec();
        // The buffer for a very large entry is not kept.
        self.scratch.clear();
        self.scratch.shrink_to(compress_bound(MAX_RAW));
        compressed
    }

    /// Compresses an uncompressed frame, if the codec requires it.
    pub fn encode(&mut self, frame: &mut Frame) {
        if frame.head.codec == Codec::Plain && self.codec == Codec::Zstd {
            frame.body = self.compress(&frame.body);
            frame.head.codec = Codec::Zstd;
            frame.head.stored = frame.body.len();
        }
    }
}

/// Returns a zstd frame that holds `bytes` uncompressed; `None` if they are too many for one block.
#[must_use]
pub fn uncompressed_zstd(bytes: &[u8]) -> Option<Vec<u8>> {
    /// Magic number, and a descriptor: one segment, the content size in four bytes, no checksum.
    /// <https://www.rfc-editor.org/rfc/rfc8878#section-3.1.1>
    const START: [u8; 5] = [0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    const MAX_BLOCK: u32 = 128 << 10;
    const LAST_AND_RAW: u32 = 1;

    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= MAX_BLOCK)?;
    let block = (length << 3 | LAST_AND_RAW).to_le_bytes();
    Some([&START, &length.to_le_bytes()[..], &block[..3], bytes].concat())
}

/// Collects entries for a frame.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    raw: Vec<u8>,
    /// Capacity with which the buffer starts: the next frame is expected to be as large as the last
    /// one.
    room: usize,
    count: u64,
    urgent: bool,
    before: Digest,
    /// Offset of the last entry, the chain value before it, and whether it is urgent.
    last: (usize, Digest, bool),
}

impl FrameBuilder {
    /// Adds an entry: `write` appends its line without a newline. Returns the chain value after it.
    pub fn push(
        &mut self,
        chain: Digest,
        urgent: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Digest {
        if self.count == 0 {
            self.before = chain;
            self.raw.reserve(self.room);
        }
        let start = self.raw.len();
        self.last = (start, chain, urgent);
        write(&mut self.raw);
        let digest = Digest::of(&self.raw[start..]);
        self.raw.push(b'\n');
        self.count += 1;
        self.urgent |= urgent;
        chain.chain(digest)
    }

    /// Removes the last entry if there is one before it, because it exceeds the size of the frame.
    /// Returns a builder that starts with it.
    pub fn split_last(&mut self) -> Option<Self> {
        let (start, before, urgent) = self.last;
        if self.count < 2 {
            return None;
        }
        let room = room_after(start);
        let mut raw = Vec::with_capacity(room.max(self.raw.len() - start));
        raw.extend_from_slice(&self.raw[start..]);
        self.raw.truncate(start);
        self.count -= 1;
        Some(Self { last: (0, before, urgent), raw, room, count: 1, urgent, before })
    }

    /// Number of entries.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Chain value before the first entry.
    #[must_use]
    pub fn before(&self) -> Digest {
        self.before
    }

    /// Size before compression, in bytes.
    #[must_use]
    pub fn raw(&self) -> usize {
        self.raw.len()
    }

    /// Returns the uncompressed frame that ends before `next_seq`, and clears the builder; `None` if
    /// there are no entries.
    pub fn seal(
        &mut self,
        next_seq: u64,
        after: Digest,
        config: Digest,
        sealed_at: Timestamp,
    ) -> Option<Frame> {
        if self.count == 0 {
            return None;
        }
        let head = FrameHead {
            first_seq: next_seq - self.count,
            count: self.count,
            raw: self.raw.len(),
            stored: self.raw.len(),
            codec: Codec::Plain,
            config,
            before: self.before,
            after,
            sealed_at,
            urgent: self.urgent,
        };
        self.room = room_after(self.raw.len());
        let mut body = mem::take(&mut self.raw);
        body.shrink_to_fit();
        self.clear();
        Some(Frame { head, body })
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        self.raw.clear();
        self.count = 0;
        self.urgent = false;
    }
}

/// Returns the capacity for the frame after one of `size` bytes, with space for the entry that is too
/// much and starts the next frame: growing for it would copy all others.
fn room_after(size: usize) -> usize {
    let size = size.min(MAX_RAW);
    size + size / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(codec: Codec, lines: &[&str]) -> (Frame, Vec<Digest>) {
        let mut builder = FrameBuilder::default();
        let mut chain = Digest::of(b"before");
        let mut chains = vec![chain];
        for line in lines {
            chain = builder.push(chain, false, |raw| raw.extend_from_slice(line.as_bytes()));
            chains.push(chain);
        }
        let next = 5 + lines.len() as u64;
        let mut frame = builder.seal(next, chain, Digest::ZERO, Timestamp(1)).unwrap();
        Encoder::new(codec).encode(&mut frame);
        (frame, chains)
    }

    #[test]
    fn uncompressed_zstd_is_decoded_by_zstd() {
        for length in [0, 1, 255, 256, 65_536, 128 << 10] {
            let bytes: Vec<u8> = (0..length).map(|n: usize| n as u8).collect();
            let frame = uncompressed_zstd(&bytes).unwrap();
            assert_eq!(frame.len(), 12 + length);
            assert_eq!(zstd::decode_all(&*frame).unwrap(), bytes);
            assert_eq!(zstd::bulk::decompress(&frame, length).unwrap(), bytes);
        }
        assert_eq!(uncompressed_zstd(&vec![0; (128 << 10) + 1]), None);
    }

    #[test]
    fn frame_decodes_to_its_entries() {
        for codec in [Codec::Zstd, Codec::Plain] {
            let (frame, chains) = frame(codec, &["a", "", "ccc"]);
            assert_eq!(frame.decode().unwrap(), b"a\n\nccc\n");
            assert_eq!((frame.head.first_seq, frame.head.last_seq()), (5, 7));
            assert_eq!((frame.head.before, frame.head.after), (chains[0], chains[3]));
        }
    }

    /// Regression: a damaged head requested 4 EiB, and the agent crashed instead of replacing the store.
    #[test]
    fn frame_that_differs_from_its_head_is_damaged() {
        let (whole, _) = frame(Codec::Zstd, &["a", "b"]);
        for raw in [0, 3, 5, 1 << 62, usize::MAX] {
            let mut damaged = whole.clone();
            damaged.head.raw = raw;
            damaged.decode().unwrap_err();
        }
        let (mut unended, _) = frame(Codec::Plain, &["a", "b"]);
        unended.body = b"\n\nb".to_vec();
        (unended.head.raw, unended.head.count) = (3, 2);
        unended.decode().unwrap_err();
    }

    #[test]
    fn slice_keeps_the_chain_over_all_entries() {
        let (frame, chains) = frame(Codec::Zstd, &["a", "b", "c", "d", "e"]);
        let mut encoder = Encoder::new(Codec::Zstd);
        let slice = frame.slice(6..=8, |seq| seq != 7, &mut encoder).unwrap();
        assert_eq!((slice.before, slice.after), (chains[1], chains[4]));
        assert_eq!(slice.frame.unwrap().decode().unwrap(), b"b\nd\n");
        let none = frame.slice(7..=7, |_| false, &mut encoder).unwrap();
        assert_eq!((none.before, none.after), (chains[2], chains[3]));
        assert!(none.frame.is_none());
    }

    #[test]
    fn consecutive_small_frames_are_joined() {
        let mut encoder = Encoder::new(Codec::Zstd);
        let mut chain = Digest::ZERO;
        let mut frames = Vec::new();
        // Two small frames, a large one, three small ones.
        for (seq, size) in (1..).zip([1000, 2000, SMALL, 10, 20, 30]) {
            let mut builder = FrameBuilder::default();
            let line = format!("{seq}{}", "x".repeat(size));
            chain = builder.push(chain, seq == 5, |raw| raw.extend_from_slice(line.as_bytes()));
            let sealed = builder.seal(seq + 1, chain, Digest::ZERO, Timestamp(1));
            let mut frame = sealed.unwrap();
            encoder.encode(&mut frame);
            frames.push(frame);
        }
        let lines = |frames: &[Frame]| -> Vec<u8> {
            frames.iter().flat_map(|frame| frame.decode().unwrap()).collect()
        };
        let joined = Frame::join_small(frames.clone(), &mut encoder).unwrap();
        assert_eq!(lines(&joined), lines(&frames));
        let summary =
            |frame: &Frame| (frame.head.first_seq, frame.head.last_seq(), frame.head.urgent);
        let summaries: Vec<_> = joined.iter().map(summary).collect();
        assert_eq!(summaries, [(1, 2, false), (3, 3, false), (4, 6, true)]);
        assert_eq!(joined[1], frames[2]);
        for pair in joined.windows(2) {
            assert_eq!(pair[0].head.after, pair[1].head.before);
        }
        assert_eq!(joined[2].head.after, chain);
    }

    #[test]
    fn split_entry_starts_the_next_frame() {
        let mut builder = FrameBuilder::default();
        let before = Digest::of(b"before");
        let one = builder.push(before, false, |raw| raw.extend_from_slice(b"one"));
        assert!(builder.split_last().is_none());
        let two = builder.push(one, true, |raw| raw.extend_from_slice(b"two"));
        let mut next = builder.split_last().unwrap();
        let first = builder.seal(6, one, Digest::ZERO, Timestamp(1)).unwrap();
        assert_eq!((first.body.as_slice(), first.head.count), (b"one\n".as_slice(), 1));
        assert_eq!((first.head.before, first.head.after), (before, one));
        let second = next.seal(7, two, Digest::ZERO, Timestamp(1)).unwrap();
        assert_eq!((second.body.as_slice(), second.head.first_seq), (b"two\n".as_slice(), 6));
        assert_eq!((second.head.before, second.head.after), (one, two));
        assert!(second.head.urgent);
    }

    #[test]
    fn last_fitting_returns_at_least_one_entry() {
        let (frame, _) = frame(Codec::Zstd, &["aaaa", "bbbb", "cccc"]);
        assert_eq!(frame.last_fitting(5, 1).unwrap(), 5);
        assert_eq!(frame.last_fitting(5, 10).unwrap(), 6);
        assert_eq!(frame.last_fitting(6, 100).unwrap(), 7);
    }

    #[test]
    fn damaged_body_is_an_error() {
        let (mut frame, _) = frame(Codec::Zstd, &["a", "b"]);
        frame.head.count = 3;
        assert!(matches!(frame.decode(), Err(FrameError::Count { found: 2, .. })));
        frame.body.truncate(5);
        assert!(matches!(frame.decode(), Err(FrameError::Decode { .. })));
    }
}
