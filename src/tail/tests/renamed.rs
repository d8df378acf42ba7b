//! Files that are renamed, moved and copied.

use super::*;

#[test]
fn renamed_file_continues() {
    let mut world = TailFixture::new();
    world.write("p/a.jsonl", "one\ntw");
    world.read();
    let before = world.store.got[0].clone();
    fs::create_dir(world.path("q")).unwrap();
    fs::rename(world.path("p/a.jsonl"), world.path("q/b.jsonl")).unwrap();
    world.append("q/b.jsonl", "o\n");
    world.read();
    let after = &world.store.got[1];
    assert_eq!(world.store.lines(), ["one", "two"]);
    assert_eq!((&after.generation, after.file), (&before.generation, before.file));
    assert_eq!(after.path, world.path("q/b.jsonl"));
    world.take();
    world.restart();
    assert_eq!(world.next(), lines([]));
}

#[test]
fn file_renamed_while_stopped_continues() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.restart();
    fs::rename(world.path("a.jsonl"), world.path("b.jsonl")).unwrap();
    world.write("a.jsonl", "another\n");
    world.append("b.jsonl", "two\n");
    world.take();
    let (mut came, events) = world.next();
    came.sort();
    assert_eq!((came, events), lines(["another", "two"]));
}

#[test]
fn files_renamed_over_others_continue() {
    for restart in [false, true] {
        let mut world = TailFixture::new();
        for name in ["a", "b", "c"] {
            world.write(&format!("{name}.jsonl"), format!("{name}\n"));
        }
        world.read();
        world.take();
        if restart {
            world.restart();
        }
        let path = |name| world.path(name);
        // b is overwritten: a becomes b, and c becomes a.
        fs::rename(path("a.jsonl"), path("b.jsonl")).unwrap();
        fs::rename(path("c.jsonl"), path("a.jsonl")).unwrap();
        assert_eq!(world.next(), lines([]));
        assert_eq!(world.store.rows.len(), 2);
        // Both swap their paths.
        let path = |name| world.path(name);
        fs::rename(path("a.jsonl"), path("x")).unwrap();
        fs::rename(path("b.jsonl"), path("a.jsonl")).unwrap();
        fs::rename(path("x"), path("b.jsonl")).unwrap();
        world.append("a.jsonl", "was a\n");
        world.append("b.jsonl", "was c\n");
        let (mut came, events) = world.next();
        came.sort();
        assert_eq!((came, events), lines(["was a", "was c"]));
        assert_eq!(world.store.rows.len(), 2);
        world.restart();
        assert_eq!(world.next(), lines([]));
    }
}

#[test]
fn copy_is_a_new_file() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.take();
    fs::copy(world.path("a.jsonl"), world.path("b.jsonl")).unwrap();
    fs::hard_link(world.path("a.jsonl"), world.path("c.jsonl")).unwrap();
    assert_eq!(world.next(), lines_and(["one", "one"], [event::FILE_LINKED]));
    assert_eq!(world.store.rows.len(), 3);
}

/// Both sweeps that decide about the replaced file found the link.
#[test]
fn link_in_place_of_a_known_file_is_reported_once() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    world.write("b.jsonl", "two\n");
    world.read();
    world.take();
    fs::remove_file(world.path("b.jsonl")).unwrap();
    fs::hard_link(world.path("a.jsonl"), world.path("b.jsonl")).unwrap();
    let (came, events) = world.next();
    assert_eq!(came, ["one"]);
    assert_eq!(events.iter().filter(|name| **name == event::FILE_LINKED).count(), 1);
}

/// Regression: many file systems reuse the id of a deleted file. The offset of the old file was applied
/// to the new one, and its first lines were never read.
#[cfg(unix)]
#[test_requires::requires(reused_ids)]
#[test]
fn new_file_with_a_reused_id_is_read_from_the_beginning() {
    use std::os::unix::fs::MetadataExt as _;
    for is_found_gone in [false, true] {
        let mut world = TailFixture::new();
        world.write("a.jsonl", "one\ntwo\n");
        world.read();
        world.take();
        let id = |name| fs::metadata(world.path(name)).unwrap().ino();
        let before = id("a.jsonl");
        assert_eq!(world.tail.survey().files_open, 0, "an open file keeps its id");
        fs::remove_file(world.path("a.jsonl")).unwrap();
        let others: Vec<_> = (0..100).map(|n| format!("{n}.jsonl")).collect();
        let found = others.iter().find(|name| {
            world.write(name, "");
            id(name) == before
        });
        let found = found.expect("the file system uses the id again");
        if is_found_gone {
            let away = world.directory.path().join("away");
            fs::rename(world.path(found), &away).unwrap();
            assert_eq!(world.next(), lines([]));
            fs::rename(away, world.path(found)).unwrap();
        }
        world.append(found, "new one\nnew two\nnew three\n");
        assert_eq!(world.next(), lines(["new one", "new two", "new three"]));
    }
}

/// Without its row, any bytes would match a file. Another file with its id must not be taken for it
/// while the row cannot be read.
#[test]
fn file_with_a_reused_id_does_not_match_without_its_row() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\ntwo\nthree\n");
    world.read();
    world.restart();
    world.read();
    // As if a new file had received the id of a deleted one.
    fs::rename(world.path("a.jsonl"), world.path("b.jsonl")).unwrap();
    world.write("b.jsonl", "new\n");
    world.take();
    world.store.fails_reads = true;
    world.pass(Duration::from_secs(400));
    while world.tail.read(&mut world.store) == Progress::More {
        world.store.roll_back();
    }
    world.store.fails_reads = false;
    world.lose_group();
    assert_eq!(world.next(), lines(["new"]));
    assert_eq!(world.next(), lines([]));
}

/// Regression: a file was rewritten while open, deleted, and recreated under its name, so that two
/// rows had its path at a power cut. The row with the lower id was continued, and lines were read
/// again.
#[test]
fn row_of_the_current_file_continues_and_the_other_ends() {
    for (of_deleted, of_current) in [("a", "b"), ("b", "a")] {
        let mut world = TailFixture::new();
        world.write("s.jsonl", "one\ntwo");
        world.read();
        let (_, deleted) = world.store.rows.pop_first().unwrap();
        // Out of sight, so that its id is not used again.
        fs::rename(world.path("s.jsonl"), world.path("s.old")).unwrap();
        world.write("s.jsonl", "three\n");
        world.restart();
        world.read();
        let (_, current) = world.store.rows.pop_first().unwrap();
        let id = |name: &str| GenerationId(name.to_owned());
        world.store.rows = [(id(of_deleted), deleted), (id(of_current), current)].into();
        world.take();
        world.append("s.jsonl", "four\n");
        world.restart();
        world.read();
        let generation = world.store.got[0].generation.clone();
        assert_eq!(world.take(), lines_and(["four"], [event::FILE_DELETED_UNREAD]));
        assert_eq!(generation, id(of_current));
        assert_eq!(world.store.rows.len(), 1, "the row of the other is deleted");
    }
}
