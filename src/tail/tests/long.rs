//! Lines too large to be held.

use super::*;

#[test]
fn long_lines_go_in_parts_over_restarts() {
    let options = TailOptions {
        max_record_bytes: 100,
        part_bytes: 30,
        watch: false,
        ..TailOptions::default()
    };
    let mut world = World::with(options);
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
    assert_eq!(parts.last().unwrap().whole, Some((400, digest)));
    let numbers: Vec<_> = parts.iter().filter_map(|part| part.part).collect();
    assert!(numbers.iter().copied().eq(1..=u32::try_from(parts.len()).unwrap()), "{numbers:?}");
    assert!(parts.iter().all(|part| part.offset == 6));
    assert_eq!(got.last().unwrap().offset, 6 + 402);
    assert!(world.store.events.is_empty());
}

#[test]
fn a_long_line_cut_short_is_abandoned() {
    let options = TailOptions {
        max_record_bytes: 100,
        part_bytes: 30,
        watch: false,
        ..TailOptions::default()
    };
    let mut world = World::with(options);
    world.write("a.jsonl", format!("short\n{}", "x".repeat(200)));
    world.read();
    world.take();
    world.write("a.jsonl", "short\nnew\n");
    // The parts are of no use, and what followed them was too short for one more.
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
