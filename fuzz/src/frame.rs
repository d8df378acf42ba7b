//! Values in the outbox: frames, intact or damaged.
//!
//! If the first byte is 0, the rest is a stored value. Otherwise two bytes are a position, one is a
//! bit mask, and the rest are lines of entries, which are encoded into a value that is then damaged at
//! that position.

use ai_agent::internals::{
    frame::{Codec, Encoder, Frame, FrameBuilder},
    pipeline::outbox::fuzzing::{decode_block, encode_block},
    platform::Timestamp,
    protocol::{ChainPoint, Digest},
};

/// Fails if a damaged value is accepted, or if the content of an intact one differs from its headers.
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
        check_frame(frame);
    }
    assert_eq!(decode_block(&encode_block(&frames)).unwrap(), frames);
}

/// Calls every function of a frame; the results must agree if the frame can be decoded.
fn check_frame(frame: &Frame) {
    let (first, last) = (frame.head.first_seq, frame.head.last_seq());
    let mut encoder = Encoder::new(Codec::Plain);
    let at = ChainPoint { seq: 0, hash: Digest::ZERO };
    let Ok(raw) = frame.decode() else {
        frame.last_fitting(first, 10).unwrap_err();
        frame.slice(first..=last, |_| true, &mut encoder).unwrap_err();
        frame.renumbered(0, at, &mut encoder, |_| ()).unwrap_err();
        return;
    };
    assert_eq!(raw.len(), frame.head.raw);
    let whole = frame.slice(first..=last, |_| true, &mut encoder).unwrap();
    assert_eq!(whole.before, frame.head.before);
    assert_eq!(whole.frame.unwrap().decode().unwrap(), raw);

    let middle = frame.last_fitting(first, raw.len() as u64 / 2).unwrap();
    assert!((first..=last).contains(&middle));
    let head = frame.slice(first..=middle, |_| true, &mut encoder).unwrap();
    let mut joined = head.frame.unwrap().decode().unwrap();
    if middle < last {
        let tail = frame.slice(middle + 1..=last, |_| true, &mut encoder).unwrap();
        assert_eq!((tail.before, tail.after), (head.after, whole.after));
        joined.extend(tail.frame.unwrap().decode().unwrap());
    }
    assert_eq!(joined, raw);

    let mut points = Vec::new();
    let passed = first.saturating_sub(1);
    if let Ok(renumbered) = frame.renumbered(passed, at, &mut encoder, |point| points.push(point)) {
        assert_eq!(
            (renumbered.head.count, points.len() as u64),
            (frame.head.count, frame.head.count)
        );
        assert_eq!(
            (renumbered.head.before, renumbered.head.after),
            (at.hash, points.last().unwrap().hash)
        );
        renumbered.decode().unwrap();
    }
}

fn damaged(how: u8, place: [u8; 2], bits: u8, lines: &[u8]) {
    let codec = if how & 2 == 0 { Codec::Zstd } else { Codec::Plain };
    let frames = build(codec, lines);
    for frame in &frames {
        assert!(frame.decode().is_ok());
        check_frame(frame);
    }
    let mut value = encode_block(&frames);
    assert_eq!(decode_block(&value).unwrap(), frames);
    let at = usize::from(u16::from_be_bytes(place)) % value.len();
    if how & 4 == 0 {
        assert!(decode_block(&value[..at]).is_none(), "a value cut short");
    }
    value[at] ^= bits;
    if bits != 0 {
        // The highest bit of the first four bytes marks a checksum. Without it the value is read
        // as one of the previous schema, and its first bytes are not valid headers.
        assert!(decode_block(&value).is_none(), "bits {bits:#x} at {at}");
    }
}

/// Builds frames of up to three lines.
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
