//! Files that go, and those that only seem to.

use super::*;

#[test]
fn a_deleted_file_is_read_from_its_open_handle() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    // Found changed while live, so that it stays open.
    world.append("a.jsonl", "two\n");
    world.read();
    let key = world.store.got[0].file;
    world.take();
    world.append("a.jsonl", "three\nfour");
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.pass(Duration::from_secs(400));
    world.tail.schedule.sweep_now();
    world.read_on();
    let last = world.store.got.last().unwrap().clone();
    assert_eq!(world.take(), lines(["three", "four"]));
    assert!(last.incomplete);
    assert_eq!(world.store.rows.len(), 0);
    assert_eq!(world.store.forgotten, [key]);
}

#[test]
fn a_file_deleted_unread_is_reported() {
    let mut world = World::new();
    world.write("a.jsonl", "one\ntwo");
    world.write("b.jsonl", "drained\n");
    world.read();
    world.take();
    fs::remove_file(world.path("a.jsonl")).unwrap();
    fs::remove_file(world.path("b.jsonl")).unwrap();
    world.restart();
    world.read();
    let data = world.store.events[0].data.clone();
    assert_eq!((&data["from"], &data["to"]), (&4.into(), &7.into()));
    assert_eq!(world.take(), lines_and([], [event::FILE_DELETED_UNREAD]));
    assert_eq!(world.store.rows.len(), 0);
}

#[test]
fn an_incomplete_line_is_kept_and_shipped_when_the_file_is_deleted() {
    for content in ["one\ntwo", "two"] {
        let mut world = World::new();
        world.write("a.jsonl", content);
        world.read();
        world.take();
        world.pass(Duration::from_secs(700));
        world.read();
        assert_eq!(world.take(), lines([]));
        world.restart();
        assert_eq!(world.next(), lines([]));
        fs::remove_file(world.path("a.jsonl")).unwrap();
        world.read();
        assert!(world.store.got[0].incomplete);
        assert_eq!(world.take(), lines(["two"]));
        assert_eq!(world.store.rows.len(), 0);
    }
}

#[test]
fn an_absent_root_is_not_the_deletion_of_its_files() {
    let mut world = World::new();
    world.write("p/a.jsonl", "one\n");
    world.read();
    world.take();
    let (root, away) = (world.path(""), world.directory.path().join("away"));
    fs::rename(&root, &away).unwrap();
    assert_eq!(world.next(), lines([]));
    world.restart();
    assert_eq!(world.next(), lines([]));
    assert_eq!(world.store.rows.len(), 1);
    fs::rename(&away, &root).unwrap();
    world.append("p/a.jsonl", "two\n");
    assert_eq!(world.next(), lines(["two"]));
}

#[cfg(unix)]
#[test]
fn a_directory_that_cannot_be_listed_is_not_the_deletion_of_its_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut world = World::new();
    world.write("p/q/a.jsonl", "one\n");
    world.read();
    world.take();
    let set = |world: &World, mode| {
        fs::set_permissions(world.path("p"), fs::Permissions::from_mode(mode)).unwrap();
    };
    set(&world, 0o000);
    if fs::read_dir(world.path("p")).is_ok() {
        return; // root may list anything
    }
    world.read();
    assert_eq!(world.tail.survey().unreadable.len(), 1);
    assert_eq!(world.store.rows.len(), 1);
    set(&world, 0o700);
    world.append("p/q/a.jsonl", "two\n");
    assert_eq!(world.next(), lines(["two"]));
    assert!(world.tail.survey().unreadable.is_empty());
}
