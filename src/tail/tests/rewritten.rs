//! Files that hold other bytes than before.

use super::*;

#[test]
fn a_trimmed_file_goes_on_at_the_cut() {
    for restart in [false, true] {
        let mut world = World::new();
        world.write("a.jsonl", "one\ntwo\nthree\n");
        world.read();
        let before = world.store.got[0].clone();
        world.take();
        if restart {
            world.restart();
        }
        world.write("a.jsonl", "one\ntwo\nother\n");
        world.read();
        let after = world.store.got[0].clone();
        assert_eq!(world.store.events[0].data["offset"], 8);
        assert_eq!(world.take(), lines_and(["other"], [event::FILE_TRIMMED]));
        assert_eq!((after.offset, after.era), (8, before.era));
        assert_ne!(after.generation, before.generation);
        assert_eq!(world.store.rows.len(), 1);
        world.write("a.jsonl", "one\ntw");
        assert_eq!(world.next(), lines_and([], [event::FILE_TRIMMED]));
        world.append("a.jsonl", "ice\n");
        assert_eq!(world.next(), lines(["twice"]));
    }
}

#[test]
fn a_rewritten_file_begins_anew() {
    // The same length, longer, shorter than a line, another inode, truncated to zero.
    for (replace, content, expected) in [
        (false, "ONE\ntwo\n", vec!["ONE", "two"]),
        (false, "ONE\ntwo\nthree\n", vec!["ONE", "two", "three"]),
        (false, "x", vec![]),
        (true, "ONE\ntwo\n", vec!["ONE", "two"]),
        (true, "ONE\ntwo\nthree\n", vec!["ONE", "two", "three"]),
        (false, "", vec![]),
    ] {
        for restart in [false, true] {
            let mut world = World::new();
            world.write("a.jsonl", "one\ntwo\n");
            world.read();
            let before = world.store.got[0].clone();
            world.take();
            if restart {
                world.restart();
            }
            if replace {
                world.write("new", content);
                fs::rename(world.path("new"), world.path("a.jsonl")).unwrap();
            } else {
                world.write("a.jsonl", content);
            }
            world.read();
            let after = world.store.got.first().cloned();
            let (came, events) = world.take();
            assert_eq!(events, [event::FILE_REWRITTEN], "{content:?} {replace}");
            assert_eq!(came, expected);
            if let Some(after) = after.filter(|_| !restart) {
                assert_eq!((after.file, after.era), (before.file, before.era + 1));
            }
            assert_eq!(world.store.rows.len(), 1);
            world.append("a.jsonl", "more\n");
            let (came, events) = world.next();
            assert_eq!((came.len(), events.len()), (1, 0));
        }
    }
}

#[test]
fn a_longer_copy_with_the_same_bytes_goes_on() {
    let mut world = World::new();
    world.write("a.jsonl", "one\ntwo\n");
    world.read();
    world.take();
    world.write("new", "one\ntwo\nthree\n");
    fs::rename(world.path("new"), world.path("a.jsonl")).unwrap();
    assert_eq!(world.next(), lines(["three"]));
    // As after a restored backup or a new disk: other ids, the same bytes.
    world.write("new", "one\ntwo\nthree\n");
    fs::rename(world.path("new"), world.path("a.jsonl")).unwrap();
    assert_eq!(world.next(), lines([]));
}

#[test]
fn a_file_deleted_and_made_anew_is_rewritten_or_new() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.take();
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.write("a.jsonl", "other\n");
    assert_eq!(world.next(), lines_and(["other"], [event::FILE_REWRITTEN]));
    fs::remove_file(world.path("a.jsonl")).unwrap();
    assert_eq!(world.next(), lines([]));
    world.write("a.jsonl", "third\n");
    assert_eq!(world.next(), lines(["third"]));
}
