//! FileTable that are renamed, moved, copied.

use super::*;

#[test]
fn a_renamed_file_goes_on() {
    let mut world = World::new();
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
fn a_rename_while_the_agent_was_stopped_goes_on() {
    let mut world = World::new();
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
fn files_renamed_over_others_go_on() {
    for restart in [false, true] {
        let mut world = World::new();
        for name in ["a", "b", "c"] {
            world.write(&format!("{name}.jsonl"), format!("{name}\n"));
        }
        world.read();
        world.take();
        if restart {
            world.restart();
        }
        let path = |name| world.path(name);
        // b goes, a becomes b and c becomes a.
        fs::rename(path("a.jsonl"), path("b.jsonl")).unwrap();
        fs::rename(path("c.jsonl"), path("a.jsonl")).unwrap();
        assert_eq!(world.next(), lines([]));
        assert_eq!(world.store.rows.len(), 2);
        // Both change places.
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
fn a_copy_is_a_file_of_its_own() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.take();
    fs::copy(world.path("a.jsonl"), world.path("b.jsonl")).unwrap();
    fs::hard_link(world.path("a.jsonl"), world.path("c.jsonl")).unwrap();
    assert_eq!(world.next(), lines_and(["one", "one"], [event::FILE_LINKED]));
    assert_eq!(world.store.rows.len(), 3);
}

/// Many file systems give the id of a deleted file to the next one: the offset of the one was
/// applied to the other, and its first lines were never read.
#[cfg(unix)]
#[test_requires::requires(reused_ids)]
#[test]
fn a_new_file_with_the_id_of_a_deleted_one_is_read_from_its_beginning() {
    use std::os::unix::fs::MetadataExt as _;
    for is_found_gone in [false, true] {
        let mut world = World::new();
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

/// Without its row any bytes inspect like a file's own: what has its id, but other bytes, must not
/// pass for it while the row can't be had.
#[test]
fn a_file_with_the_id_of_another_is_not_taken_for_it_while_the_store_fails_to_read() {
    let mut world = World::new();
    world.write("a.jsonl", "one\ntwo\nthree\n");
    world.read();
    world.restart();
    world.read();
    // As when a new file is given the number of one that was deleted.
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

/// A file was rewritten while it was open, deleted, and another made under its name: both had a row
/// when the power went. The first row by its id went on, and what was read came again.
#[test]
fn of_two_rows_of_one_path_that_of_the_file_there_goes_on_and_the_other_ends() {
    for (of_gone, of_there) in [("a", "b"), ("b", "a")] {
        let mut world = World::new();
        world.write("s.jsonl", "one\ntwo");
        world.read();
        let (_, gone) = world.store.rows.pop_first().unwrap();
        // Out of sight, so that its id is not used again.
        fs::rename(world.path("s.jsonl"), world.path("s.old")).unwrap();
        world.write("s.jsonl", "three\n");
        world.restart();
        world.read();
        let (_, there) = world.store.rows.pop_first().unwrap();
        let id = |name: &str| GenerationId(name.to_owned());
        world.store.rows = [(id(of_gone), gone), (id(of_there), there)].into();
        world.take();
        world.append("s.jsonl", "four\n");
        world.restart();
        world.read();
        let generation = world.store.got[0].generation.clone();
        assert_eq!(world.take(), lines_and(["four"], [event::FILE_DELETED_UNREAD]));
        assert_eq!(generation, id(of_there));
        assert_eq!(world.store.rows.len(), 1, "the other has no row any more");
    }
}
