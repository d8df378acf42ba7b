//! Files that are renamed, moved, copied.

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
