//! What lies in the outbox: values of frames, whole or damaged.
//!
//! The first byte says what the rest is. 0: a stored value. Else: two bytes for a place and one for
//! bits, and the lines of entries, which are made into a value that is then damaged at that place.

use ai_agent::{
    frame::{Codec, Encoder, Frame, FrameBuilder},
    pipeline::outbox::fuzzing::{decode_block, encode_block},
    platform::Timestamp,
    protocol::{ChainPoint, Digest},
};

/// Fails when a damaged value is taken for a whole one, or a whole one does not hold what its
/// heads say.
pub fn run(data: &[u8]) {
    match data {
        [0, value @ ..] => stored(value),
        [how, high, low, bits, lines @ ..] => damaged(*how, [*high, *low], *bits, lines),
        _ => {}
    }
}

fn stored(value: &[u8]) {
    let Some(frames) = decode_block(value) else { return };
    for frame in &frames {
        take_apart(frame);
    }
    assert_eq!(decode_block(&encode_block(&frames)).unwrap(), frames);
}

/// Whatever can be asked of a frame; all of it fits together where the frame can be decoded.
fn take_apart(frame: &Frame) {
    let (first, last) = (frame.head.first_seq, frame.head.last_seq());
    let mut encoder = Encoder::new(Codec::Plain);
    let at = ChainPoint { seq: 0, hash: Digest::ZERO };
    let Ok(raw) = frame.decode() else {
        frame.fitting(first, 10).unwrap_err();
        frame.cut(first..=last, |_| true, &mut encoder).unwrap_err();
        frame.renumbered(0, at, &mut encoder, |_| ()).unwrap_err();
        return;
    };
    assert_eq!(raw.len(), frame.head.raw);
    let whole = frame.cut(first..=last, |_| true, &mut encoder).unwrap();
    assert_eq!(whole.before, frame.head.before);
    assert_eq!(whole.frame.unwrap().decode().unwrap(), raw);

    let middle = frame.fitting(first, raw.len() as u64 / 2).unwrap();
    assert!((first..=last).contains(&middle));
    let head = frame.cut(first..=middle, |_| true, &mut encoder).unwrap();
    let mut joined = head.frame.unwrap().decode().unwrap();
    if middle < last {
        let tail = frame.cut(middle + 1..=last, |_| true, &mut encoder).unwrap();
        assert_eq!((tail.before, tail.after), (head.after, whole.after));
        joined.extend(tail.frame.unwrap().decode().unwrap());
    }
    assert_eq!(joined, raw);

    let mut points = Vec::new();
    let passed = first.saturating_sub(1);
    if let Ok(anew) = frame.renumbered(passed, at, &mut encoder, |point| points.push(point)) {
        assert_eq!((anew.head.count, points.len() as u64), (frame.head.count, frame.head.count));
        assert_eq!((anew.head.before, anew.head.after), (at.hash, points.last().unwrap().hash));
        anew.decode().unwrap();
    }
}

fn damaged(how: u8, place: [u8; 2], bits: u8, lines: &[u8]) {
    let codec = if how & 2 == 0 { Codec::Zstd } else { Codec::Plain };
    let frames = build(codec, lines);
    for frame in &frames {
        assert!(frame.decode().is_ok());
        take_apart(frame);
    }
    let mut value = encode_block(&frames);
    assert_eq!(decode_block(&value).unwrap(), frames);
    let at = usize::from(u16::from_be_bytes(place)) % value.len();
    if how & 4 == 0 {
        assert!(decode_block(&value[..at]).is_none(), "a value cut short");
    }
    value[at] ^= bits;
    if bits != 0 {
        // The highest bit of the first four bytes says that there is a checksum. Without it the
        // value is read as one of the schema before, and its first bytes are no heads.
        assert!(decode_block(&value).is_none(), "bits {bits:#x} at {at}");
    }
}

/// Frames of up to three lines.
fn build(codec: Codec, lines: &[u8]) -> Vec<Frame> {
    let mut encoder = Encoder::new(codec);
    let mut builder = FrameBuilder::default();
    let mut chain = Digest::ZERO;
    let mut frames = Vec::new();
    let mut next = 1;
    for line in lines.split(|byte| *byte == b'\n') {
        chain = builder.push(chain, line.len() % 2 == 1, |raw| raw.extend_from_slice(line));
        next += 1;
        if builder.count() == 3 {
            frames.extend(builder.seal(next, chain, Digest::ZERO, Timestamp(next)));
        }
    }
    frames.extend(builder.seal(next, chain, Digest::ZERO, Timestamp(next)));
    frames.iter_mut().for_each(|frame| encoder.encode(frame));
    frames
}
