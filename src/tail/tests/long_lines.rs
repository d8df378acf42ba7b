//! Lines that are too long to be held in memory.

use sha2::{Digest as _, Sha256};

use super::*;

#[test]
fn long_line_is_handed_over_in_parts_across_restarts() {
    let options = TailOptions {
        max_record_bytes: 100,
        part_bytes: 30,
        watch: false,
        ..TailOptions::default()
    };
    let mut world = TailFixture::with(options);
    world.store.room = 1;
    let line = "0123456789".repeat(40);
    world.write("a.jsonl", format!("short\n{}", &line[..150]));
    world.read();
    world.restart();
    world.append("a.jsonl", &line[150..]);
    world.read();
    world.append("a.jsonl", "\r");
    world.read();
    world.restart();
    world.append("a.jsonl", "\nshort\n");
    world.read();
    let got = &world.store.got;
    let parts: Vec<_> = got.iter().filter(|got| got.part.is_some()).collect();
    let joined: Vec<u8> = parts.iter().flat_map(|part| part.bytes.clone()).collect();
    assert_eq!(joined, line.as_bytes());
    let digest = siem_protocol::Digest::of(line.as_bytes());
    let whole = parts.last().unwrap().whole.unwrap();
    assert_eq!((whole.length, whole.sha256, whole.folded_sha256), (400, Some(digest), None));
    let numbers: Vec<_> = parts.iter().filter_map(|part| part.part).collect();
    assert!(numbers.iter().copied().eq(1..=u32::try_from(parts.len()).unwrap()), "{numbers:?}");
    assert!(parts.iter().all(|part| part.offset == 6));
    assert_eq!(got.last().unwrap().offset, 6 + 402);
    assert!(world.store.events.is_empty());
}

#[test]
fn truncated_long_line_is_abandoned() {
    let options = TailOptions {
        max_record_bytes: 100,
        part_bytes: 30,
        watch: false,
        ..TailOptions::default()
    };
    let mut world = TailFixture::with(options);
    world.write("a.jsonl", format!("short\n{}", "x".repeat(200)));
    world.read();
    world.take();
    world.write("a.jsonl", "short\nnew\n");
    // The parts are useless, and the bytes after them were too few for another part.
    let expected = [event::RECORD_ABANDONED, event::FILE_DELETED_UNREAD, event::FILE_TRIMMED];
    assert_eq!(world.next(), lines_and(["new"], expected));
    world.append("a.jsonl", "y".repeat(200));
    world.read();
    world.take();
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.restart();
    let (came, events) = world.next();
    assert!(came.is_empty());
    assert_eq!(events, [event::RECORD_ABANDONED, event::FILE_DELETED_UNREAD]);
}

fn world_with_small_records() -> TailFixture {
    TailFixture::with(TailOptions {
        max_record_bytes: 100,
        part_bytes: 30,
        watch: false,
        ..TailOptions::default()
    })
}

/// If a file ends within a long line, the parts are abandoned, unread bytes are reported, and later
/// content is read.
#[test]
fn long_line_that_is_never_completed_is_abandoned() {
    const HALF: &str = "short\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\
                        xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
    type FileChange = fn(&TailFixture);
    let cases: [(&str, FileChange, &[&str], &[&str]); 5] = [
        (
            "rewritten",
            |world| world.write("a.jsonl", "other\nlines\n"),
            &["other", "lines"],
            &[event::RECORD_ABANDONED, event::FILE_DELETED_UNREAD, event::FILE_REWRITTEN],
        ),
        (
            "emptied",
            |world| world.write("a.jsonl", ""),
            &[],
            &[event::RECORD_ABANDONED, event::FILE_DELETED_UNREAD, event::FILE_REWRITTEN],
        ),
        (
            "trimmed",
            |world| world.write("a.jsonl", "short\nnew\n"),
            &["new"],
            &[event::RECORD_ABANDONED, event::FILE_DELETED_UNREAD, event::FILE_TRIMMED],
        ),
        (
            "cut within",
            |world| world.write("a.jsonl", &HALF[..100]),
            // The rest is too short for a part.
            &[],
            &[event::RECORD_ABANDONED, event::FILE_DELETED_UNREAD, event::FILE_TRIMMED],
        ),
        (
            "deleted",
            |world| fs::remove_file(world.path("a.jsonl")).unwrap(),
            &[],
            &[event::RECORD_ABANDONED, event::FILE_DELETED_UNREAD],
        ),
    ];
    for (name, change, expected, events) in cases {
        let mut world = world_with_small_records();
        world.write("a.jsonl", HALF);
        world.read();
        let parts = world.store.got.iter().filter(|got| got.part.is_some()).count();
        let offset = world.store.got.last().map(|got| got.offset).unwrap();
        assert!(parts >= 4 && offset == 6, "{parts} {offset}");
        world.take();
        // Closes the handle: through it, a deleted line would be read to its end.
        world.restart();
        change(&world);
        world.read();
        let data = world.store.events[0].data.clone();
        assert_eq!((&data["offset"], &data["parts"]), (&6.into(), &parts.into()), "{name}");
        let unread = &world.store.events[1].data;
        let read = data["bytes"].as_u64().unwrap();
        assert_eq!(unread["from"], 6 + read, "{name}");
        assert_eq!(unread["to"], HALF.len(), "{name}");
        let (came, reported) = world.take();
        assert_eq!(
            (came, &reported[..]),
            (expected.iter().map(|line| (*line).to_owned()).collect(), events),
            "{name}"
        );
        world.restart();
        assert_eq!(world.next(), lines([]), "{name}");
    }
}

/// Through its handle, a deleted line is read up to the end of the file.
#[test_requires::requires(not_wine)]
#[test]
fn deleted_long_line_is_read_through_its_open_handle() {
    let mut world = world_with_small_records();
    world.write("a.jsonl", "short\n");
    world.read();
    world.append("a.jsonl", "x".repeat(150));
    world.read();
    world.append("a.jsonl", "y".repeat(150));
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.read();
    let last = world.store.got.last().unwrap();
    let line = "x".repeat(150) + &"y".repeat(150);
    assert!(last.incomplete);
    let whole = last.whole.unwrap();
    let digest = siem_protocol::Digest::of(line.as_bytes());
    assert_eq!((whole.length, whole.sha256), (300, Some(digest)));
    assert!(world.store.events.is_empty(), "{:?}", world.store.events);
}

/// A line that keeps growing without a newline while it is read.
#[test]
fn hundred_megabytes_without_a_newline_are_read() {
    const MEBIBYTES: usize = 100;

    let mut world = TailFixture::with(TailOptions {
        chunk_bytes: 64 << 10,
        max_record_bytes: 256 << 10,
        part_bytes: 128 << 10,
        watch: false,
        ..TailOptions::default()
    });
    let mut hash = Sha256::new();
    let (mut length, mut parts) = (0, 0);
    let mut whole = None;
    for n in 0..=MEBIBYTES {
        let is_last = n == MEBIBYTES;
        let piece: Vec<u8> = (0..1 << 20).map(|at: u32| b'0' + (at % 61) as u8).collect();
        let piece = if is_last { b"\n".to_vec() } else { piece };
        world.append("a.jsonl", &piece);
        world.read();
        if n == MEBIBYTES / 2 {
            world.restart();
        }
        for got in world.store.got.drain(..) {
            parts += 1;
            assert_eq!((got.offset, got.part), (0, Some(parts)));
            assert!(got.bytes.len() <= 128 << 10);
            hash.update(&got.bytes);
            length += got.bytes.len() as u64;
            whole = got.whole;
        }
        assert!(world.tail.reader.footprint() <= 512 << 10);
        assert!(world.tail.survey().bytes_unread <= (256 << 10) + 2);
    }
    let digest = siem_protocol::Digest::from_bytes(hash.finalize().into());
    let whole = whole.unwrap();
    assert_eq!((whole.length, whole.sha256), ((MEBIBYTES as u64) << 20, Some(digest)));
    assert_eq!(length, (MEBIBYTES as u64) << 20);
    assert!(world.store.events.is_empty());
}

/// Regression: within a long line the bytes before the checkpoint may be uniform. A similar line in its
/// place was taken for its rest, and two lines became one.
#[test]
fn similar_long_line_in_its_place_is_another_line() {
    let parts = |new: &str| {
        let mut world = TailFixture::with(TailOptions {
            max_record_bytes: 10_000,
            part_bytes: 5_000,
            watch: false,
            ..TailOptions::default()
        });
        world.write("a.jsonl", format!("one\ntwo\n{{\"n\":1,\"x\":\"{}", "x".repeat(40_000)));
        world.read();
        world.take();
        world.write("a.jsonl", new);
        world.read();
        let got = world.store.got.iter();
        let parts: Vec<u8> =
            got.filter(|got| got.part.is_some()).flat_map(|got| got.bytes.clone()).collect();
        (String::from_utf8(parts).unwrap(), world.store.event_names())
    };
    let other = format!("{{\"n\":2,\"x\":\"{}\"}}", "x".repeat(50_000));
    let events = [event::RECORD_ABANDONED, event::FILE_DELETED_UNREAD, event::FILE_TRIMMED];
    // At the offset of the line, and at that of the line before it.
    for before in ["one\ntwo\n", "one\n"] {
        assert_eq!(parts(&format!("{before}{other}\n")), (other.clone(), events.to_vec()));
    }
    // The same line, grown: it continues.
    let (grown, events) =
        parts(&format!("one\ntwo\n{{\"n\":1,\"x\":\"{}\"}}\n", "x".repeat(60_000)));
    assert!(grown.starts_with('x') && grown.ends_with("x\"}"), "{}", grown.len());
    assert_eq!(events, Vec::<&str>::new());
}
