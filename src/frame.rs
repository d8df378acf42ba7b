//! Frames: runs of consecutive entries under one configuration, encoded and compressed once.
//!
//! A frame lies in the outbox as it travels: NDJSON in wire format, zstd-compressed. Sending is
//! reading frames back and putting a header line before them, since zstd allows concatenation.
//! Cutting inside a frame encodes it anew.

use std::{io, mem, ops::RangeInclusive};

use serde::{Deserialize, Serialize};
use siem_protocol::{ChainPoint, Digest};
use zstd::zstd_safe::compress_bound;

use crate::platform::Timestamp;

/// The most that a frame holds before compression, unless one entry is larger: four that are not
/// compressed make a value that redb stores without waste.
pub const MAX_RAW: usize = 254 << 10;

/// A frame that holds less is small.
const SMALL: usize = 32 << 10;

/// How a frame's body is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// One zstd frame.
    #[default]
    Zstd,
    /// As it is: for sinks that compress nothing.
    Plain,
}

/// What is known of a frame without decoding it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameHead {
    /// The number of its first entry.
    pub first_seq: u64,
    /// How many entries it holds; never none.
    pub count: u64,
    /// Bytes before compression.
    pub raw: usize,
    /// Bytes as stored.
    pub stored: usize,
    /// How it is stored.
    pub codec: Codec,
    /// The configuration under which its entries were made.
    pub config: Digest,
    /// The chain before its first entry.
    pub before: Digest,
    /// The chain after its last entry.
    pub after: Digest,
    /// When it was sealed.
    pub sealed_at: Timestamp,
    /// Whether it holds an event that must be sent at once.
    pub urgent: bool,
}

impl FrameHead {
    /// The number of its last entry.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.first_seq + self.count - 1
    }
}

/// A frame: what is known of it, and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What is known of it.
    pub head: FrameHead,
    /// The entries' lines, each with its newline, as the head's codec has them.
    pub body: Vec<u8>,
}

/// A frame that cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The body does not decode to as many bytes as the head says.
    #[error("frame at sequence number {first_seq} cannot be decoded")]
    Decode {
        /// The frame.
        first_seq: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry does not begin with its number.
    #[error("entry {seq} does not begin with its number")]
    Number {
        /// The number that it should have.
        seq: u64,
    },
    /// The body does not hold as many lines as the head says.
    #[error("frame at sequence number {first_seq} holds {found} entries, expected {expected}")]
    Count {
        /// The frame.
        first_seq: u64,
        /// What the head says.
        expected: u64,
        /// What is there.
        found: u64,
    },
}

impl Frame {
    /// The entries' lines, each with its newline.
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

    /// The last number up to which the entries from `first` on take at most `most` bytes before
    /// compression; at least `first`.
    ///
    /// # Errors
    /// [`FrameError`] when the body is damaged.
    pub fn fitting(&self, first: u64, most: u64) -> Result<u64, FrameError> {
        let raw = self.decode()?;
        let lines = raw.split_inclusive(|byte| *byte == b'\n');
        let (mut last, mut bytes) = (first, 0);
        for (seq, line) in (self.head.first_seq..).zip(lines).filter(|(seq, _)| *seq >= first) {
            bytes += line.len() as u64;
            if bytes > most {
                break;
            }
            last = seq;
        }
        Ok(last)
    }

    /// The entries of `range` that `keep` wants, as frames of their own, for a batch whose border
    /// lies inside this frame or that leaves an entry out. The chain stays that of all entries.
    ///
    /// # Errors
    /// [`FrameError`] when the body is damaged.
    pub fn cut(
        &self,
        range: RangeInclusive<u64>,
        keep: impl Fn(u64) -> bool,
        encoder: &mut Encoder,
    ) -> Result<Cut, FrameError> {
        let raw = self.decode()?;
        let mut cut = Cut { before: self.head.before, after: self.head.before, frame: None };
        let mut builder = FrameBuilder::default();
        let lines = raw.split_inclusive(|byte| *byte == b'\n');
        for (seq, line) in (self.head.first_seq..).zip(lines) {
            if seq > *range.end() {
                break;
            }
            let digest = Digest::of(&line[..line.len() - 1]);
            cut.after = cut.after.chain(digest);
            if seq < *range.start() {
                cut.before = cut.after;
            } else if keep(seq) {
                builder.raw.extend_from_slice(line);
                builder.count += 1;
            }
        }
        if builder.count > 0 {
            let head = FrameHead {
                first_seq: *range.start().max(&self.head.first_seq),
                count: builder.count,
                before: cut.before,
                after: cut.after,
                raw: builder.raw.len(),
                stored: builder.raw.len(),
                codec: Codec::Plain,
                ..self.head.clone()
            };
            let mut frame = Frame { head, body: builder.raw };
            encoder.encode(&mut frame);
            cut.frame = Some(frame);
        }
        Ok(cut)
    }
}

impl Frame {
    /// Joins small frames that follow each other: alone each compresses badly. Large ones stay as
    /// they are.
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

    /// The entries after number `passed`, numbered from 1 after that, and chained on from `at`.
    /// `show` is told the chain after each entry.
    ///
    /// # Errors
    /// [`FrameError`] when the body is damaged, or an entry does not begin with its number.
    pub fn renumbered(
        &self,
        passed: u64,
        mut at: ChainPoint,
        encoder: &mut Encoder,
        mut show: impl FnMut(ChainPoint),
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
            show(at);
        }
        let (config, sealed_at) = (self.head.config, self.head.sealed_at);
        let mut frame = builder
            .seal(at.seq + 1, at.hash, config, sealed_at)
            .ok_or(FrameError::Number { seq: self.head.first_seq })?;
        encoder.encode(&mut frame);
        Ok(frame)
    }
}

/// Decompresses a body that should have `raw` bytes. A head that rotted may ask for more memory
/// than there is: that is an error as any other.
fn decompress(body: &[u8], raw: usize) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    text.try_reserve_exact(raw).map_err(|_| io::ErrorKind::OutOfMemory)?;
    zstd::bulk::Decompressor::new()?.decompress_to_buffer(body, &mut text)?;
    Ok(text)
}

/// A part of a frame.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The chain before the range.
    pub before: Digest,
    /// The chain after the range.
    pub after: Digest,
    /// The entries that were kept; `None` when none was.
    pub frame: Option<Frame>,
}

/// Compresses frames, with one context for all.
pub struct Encoder {
    codec: Codec,
    /// Once there was something to compress.
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// Where it is compressed to: the room that must be there is far more than is taken.
    scratch: Vec<u8>,
}

/// The zstd level. Session files are repetitive text: level 1 already gets most of it.
const LEVEL: i32 = 1;

impl Encoder {
    /// An encoder that stores frames as `codec` says.
    #[must_use]
    pub fn new(codec: Codec) -> Self {
        Self { codec, zstd: None, scratch: Vec::new() }
    }

    /// One zstd frame of `bytes`.
    ///
    /// # Panics
    /// When there is no memory for a compression context.
    #[must_use]
    pub fn compress(&mut self, bytes: &[u8]) -> Vec<u8> {
        let begin = || zstd::bulk::Compressor::new(LEVEL).expect("level 1 is a level of zstd");
        let zstd = self.zstd.get_or_insert_with(begin);
        self.scratch.clear();
        self.scratch.reserve(compress_bound(bytes.len()));
        let compressed = zstd.compress_to_buffer(bytes, &mut self.scratch);
        compressed.expect("the output has room for whatever the input is");
        let compressed = self.scratch.as_slice().to_vec();
        // One giant entry must not hold its memory for ever.
        self.scratch.clear();
        self.scratch.shrink_to(compress_bound(MAX_RAW));
        compressed
    }

    /// Encodes a plain frame.
    pub fn encode(&mut self, frame: &mut Frame) {
        if frame.head.codec == Codec::Plain && self.codec == Codec::Zstd {
            frame.body = self.compress(&frame.body);
            frame.head.codec = Codec::Zstd;
            frame.head.stored = frame.body.len();
        }
    }
}

/// Collects entries until they make a frame. Its buffer is used again for the next one.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    raw: Vec<u8>,
    count: u64,
    urgent: bool,
    before: Digest,
    /// Of the last entry: where it begins, the chain before it, and whether it is urgent.
    last: (usize, Digest, bool),
}

impl FrameBuilder {
    /// Adds an entry: `write` appends its line, without a newline. Returns the chain after it.
    pub fn push(
        &mut self,
        chain: Digest,
        urgent: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Digest {
        if self.count == 0 {
            self.before = chain;
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

    /// Takes the last entry out again, when there is one before it: for a frame that it does not
    /// fit into any more. Returns the builder of the frame that begins with it.
    pub fn split_last(&mut self) -> Option<Self> {
        let (start, before, urgent) = self.last;
        if self.count < 2 {
            return None;
        }
        let raw = self.raw.split_off(start);
        self.count -= 1;
        Some(Self { last: (0, before, urgent), raw, count: 1, urgent, before })
    }

    /// How many entries are in it.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The chain before its first entry.
    #[must_use]
    pub fn before(&self) -> Digest {
        self.before
    }

    /// Bytes before compression.
    #[must_use]
    pub fn raw(&self) -> usize {
        self.raw.len()
    }

    /// Makes the frame that ends before `next_seq`, not compressed, and begins anew; `None` when it
    /// is empty.
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
        let room = self.raw.len().min(MAX_RAW);
        let mut body = mem::replace(&mut self.raw, Vec::with_capacity(room));
        // The entry that went into the next frame has left as much room as there is in this one.
        body.shrink_to_fit();
        self.clear();
        Some(Frame { head, body })
    }

    /// Drops what is in it.
    pub fn clear(&mut self) {
        self.raw.clear();
        self.count = 0;
        self.urgent = false;
    }
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
    fn decodes_to_what_was_pushed() {
        for codec in [Codec::Zstd, Codec::Plain] {
            let (frame, chains) = frame(codec, &["a", "", "ccc"]);
            assert_eq!(frame.decode().unwrap(), b"a\n\nccc\n");
            assert_eq!((frame.head.first_seq, frame.head.last_seq()), (5, 7));
            assert_eq!((frame.head.before, frame.head.after), (chains[0], chains[3]));
        }
    }

    /// A head asked for 4 EiB, and the agent died of it instead of putting the store aside.
    #[test]
    fn a_frame_that_is_not_as_its_head_says_is_damaged() {
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
    fn a_cut_keeps_the_chain_of_all_its_entries() {
        let (frame, chains) = frame(Codec::Zstd, &["a", "b", "c", "d", "e"]);
        let mut encoder = Encoder::new(Codec::Zstd);
        let cut = frame.cut(6..=8, |seq| seq != 7, &mut encoder).unwrap();
        assert_eq!((cut.before, cut.after), (chains[1], chains[4]));
        assert_eq!(cut.frame.unwrap().decode().unwrap(), b"b\nd\n");
        let none = frame.cut(7..=7, |_| false, &mut encoder).unwrap();
        assert_eq!((none.before, none.after), (chains[2], chains[3]));
        assert!(none.frame.is_none());
    }

    #[test]
    fn small_frames_that_follow_each_other_become_one() {
        let mut encoder = Encoder::new(Codec::Zstd);
        let mut chain = Digest::ZERO;
        let mut frames = Vec::new();
        // Two small ones, a large one, three small ones.
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
        let seen = |frame: &Frame| (frame.head.first_seq, frame.head.last_seq(), frame.head.urgent);
        let seen: Vec<_> = joined.iter().map(seen).collect();
        assert_eq!(seen, [(1, 2, false), (3, 3, false), (4, 6, true)]);
        assert_eq!(joined[1], frames[2]);
        for pair in joined.windows(2) {
            assert_eq!(pair[0].head.after, pair[1].head.before);
        }
        assert_eq!(joined[2].head.after, chain);
    }

    #[test]
    fn an_entry_too_many_begins_the_next_frame() {
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
    fn what_fits_is_at_least_one_entry() {
        let (frame, _) = frame(Codec::Zstd, &["aaaa", "bbbb", "cccc"]);
        assert_eq!(frame.fitting(5, 1).unwrap(), 5);
        assert_eq!(frame.fitting(5, 10).unwrap(), 6);
        assert_eq!(frame.fitting(6, 100).unwrap(), 7);
    }

    #[test]
    fn a_damaged_body_is_an_error() {
        let (mut frame, _) = frame(Codec::Zstd, &["a", "b"]);
        frame.head.count = 3;
        assert!(matches!(frame.decode(), Err(FrameError::Count { found: 2, .. })));
        frame.body.truncate(5);
        assert!(matches!(frame.decode(), Err(FrameError::Decode { .. })));
    }
}
