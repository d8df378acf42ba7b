//! FileTable that go, and those that only seem to.

use super::*;

#[test_requires::requires(not_wine)]
#[test]
fn a_deleted_file_is_read_from_its_open_handle() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    // ReadOutcome changed while live, so that it stays open.
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

/// Writes files and lets them be open.
fn open_files(world: &mut World, names: &[&str]) {
    for content in ["one\n", "two\n"] {
        names.iter().for_each(|name| world.append(name, content));
        world.read();
    }
    assert_eq!(world.tail.survey().files_open, names.len());
}

fn delete_with_unread(world: &mut World, name: &str, unread: usize) {
    world.append(name, "unread.\n".repeat(unread / 8));
    fs::remove_file(world.path(name)).unwrap();
    world.tail.schedule.sweep_now();
}

fn few_bytes_at_once() -> World {
    World::with(TailOptions {
        chunk_bytes: 64,
        drain_bytes: 1000,
        watch: false,
        ..TailOptions::default()
    })
}

/// What came of one file, and what the event says was not read of it.
fn accounted(world: &World, name: &str) -> (u64, u64, u64) {
    let path = world.path(name);
    let read = world.store.got.iter().filter(|got| got.path == path).map(|got| got.size).sum();
    let text = path.to_string_lossy();
    let event = world.store.events.iter().find(|event| event.data["path"] == *text);
    let number = |name| event.map_or(0, |event| event.data[name].as_u64().unwrap_or_default());
    assert_eq!(number("bytes"), number("to") - number("from"));
    (read, number("from"), number("to"))
}

#[test_requires::requires(not_wine)]
#[test]
fn a_deleted_file_is_read_within_its_bytes() {
    let mut world = few_bytes_at_once();
    open_files(&mut world, &["a.jsonl"]);
    delete_with_unread(&mut world, "a.jsonl", 4000);
    world.read_on();
    let (read, from, to) = accounted(&world, "a.jsonl");
    assert_eq!((read, to), (from, 8 + 4000));
    assert!((1000..1100).contains(&read), "{read}");
    assert_eq!((world.store.rows.len(), world.tail.survey().files_pinned), (0, 0));
}

#[test_requires::requires(not_wine)]
#[test]
fn deleted_files_share_their_bytes() {
    let mut world = few_bytes_at_once();
    world.store.room = 1;
    open_files(&mut world, &["a.jsonl", "b.jsonl"]);
    // ReadOutcome gone first, and most of it still unread.
    delete_with_unread(&mut world, "a.jsonl", 800);
    assert_eq!(world.tail.read(&mut world.store), Progress::More);
    let survey = world.tail.survey();
    assert_eq!(survey.files_pinned, 1);
    assert!((700..=800).contains(&survey.bytes_pinned), "{}", survey.bytes_pinned);
    world.store.commit();
    world.tail.sealed();
    world.tail.committed();
    delete_with_unread(&mut world, "b.jsonl", 800);
    world.read_on();
    let (read, from, _) = accounted(&world, "a.jsonl");
    assert_eq!((read, from), (808, 0), "all of it");
    let (read, from, to) = accounted(&world, "b.jsonl");
    assert_eq!((read, to), (from, 808));
    assert!(read < 400, "{read}");
    assert_eq!(world.tail.survey().bytes_pinned, 0);
}

#[test_requires::requires(not_wine)]
#[test]
fn a_deleted_file_is_held_for_its_time() {
    let mut world = few_bytes_at_once();
    world.store.room = 1;
    open_files(&mut world, &["a.jsonl"]);
    delete_with_unread(&mut world, "a.jsonl", 800);
    assert_eq!(world.tail.read(&mut world.store), Progress::More);
    world.store.commit();
    world.tail.sealed();
    world.tail.committed();
    // As while the outbox is full.
    world.pass(Duration::from_secs(61));
    world.read_on();
    let (read, from, to) = accounted(&world, "a.jsonl");
    assert_eq!((read, to), (from, 808));
    assert!(read < 200, "{read}");
    assert_eq!(world.tail.survey().files_open, 0);
}

/// Each of them is had from its handle alone: a file that still lies at its path makes room.
#[test]
fn deleted_files_keep_their_handles_before_others() {
    let options = TailOptions { open_files: 2, watch: false, ..TailOptions::default() };
    let mut world = World::with(options);
    let others = ["b.jsonl", "c.jsonl", "d.jsonl"];
    others.iter().for_each(|name| world.write(name, "other\n"));
    world.read();
    open_files(&mut world, &["a.jsonl"]);
    // All of them grew before it was found gone.
    others.iter().for_each(|name| world.append(name, "other\n"));
    delete_with_unread(&mut world, "a.jsonl", 80);
    world.read_on();
    assert_eq!(accounted(&world, "a.jsonl"), (88, 0, 0));
    assert_eq!(world.store.got.len(), 12 + 6);
    assert!(world.tail.survey().files_open <= 2);
}

/// While a group is stored the next is read. A file that ended in one that was stored was taken for
/// one that never was when the next one failed: all of it came again, under another generation.
#[test_requires::requires(not_wine)]
#[test]
fn a_file_that_ended_in_a_stored_group_does_not_come_again_when_the_next_fails() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.append("a.jsonl", "two\n");
    world.read();
    world.append("a.jsonl", "rest");
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.pass(Duration::from_secs(400));
    world.tail.schedule.sweep_now();
    world.tail.read(&mut world.store);
    assert_eq!(world.tail.survey().files, 0, "it has ended");
    world.store.commit();
    world.tail.sealed();
    // Its group is stored with another at hand.
    world.write("b.jsonl", "three\n");
    world.tail.schedule.sweep_now();
    world.tail.read(&mut world.store);
    world.tail.committed();
    world.lose_group();
    world.read();
    assert_eq!(world.take(), lines(["one", "two", "rest", "three"]));
}

/// The other way round: what ended in the group at hand is in no other.
#[test_requires::requires(not_wine)]
#[test]
fn a_file_that_ended_in_a_group_that_failed_ends_again_though_the_one_before_is_stored() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.append("a.jsonl", "two\nrest");
    world.pass(Duration::from_secs(400));
    world.tail.read(&mut world.store);
    world.store.commit();
    world.tail.sealed();
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.pass(Duration::from_secs(400));
    world.tail.read(&mut world.store);
    assert_eq!(world.tail.survey().files, 0, "it has ended");
    world.tail.committed();
    world.lose_group();
    world.read();
    assert_eq!(world.take(), lines(["one", "two", "rest"]));
}

/// While the outbox was full nobody looked: what deleted files held stayed on the disk, without
/// end.
#[test_requires::requires(not_wine)]
#[test]
fn a_deleted_file_is_let_go_in_time_while_nothing_may_be_read() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.write("b.jsonl", "one\n");
    world.read();
    for name in ["a.jsonl", "b.jsonl"] {
        world.append(name, "two\n");
    }
    world.read();
    world.take();
    assert_eq!(world.tail.survey().files_open, 2);
    world.append("a.jsonl", "three\n");
    fs::remove_file(world.path("a.jsonl")).unwrap();
    for seconds in [10, 30] {
        world.pass(Duration::from_secs(seconds));
        world.tail.tend();
        assert_eq!(world.tail.survey().files_open, 2, "its time is not over");
    }
    world.pass(Duration::from_secs(40));
    world.tail.tend();
    assert_eq!(world.tail.survey().files_open, 1);
    world.read();
    assert_eq!(world.take(), lines_and([], [event::FILE_DELETED_UNREAD]));
}

#[test_requires::requires(not_wine)]
#[test]
fn a_deleted_file_that_holds_more_than_it_may_is_let_go_at_once_while_nothing_may_be_read() {
    let options = TailOptions { watch: false, drain_bytes: 3, ..TailOptions::default() };
    let mut world = World::with(options);
    world.write("a.jsonl", "one\n");
    world.read();
    world.append("a.jsonl", "two\n");
    world.read();
    world.append("a.jsonl", "three\n");
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.pass(Duration::from_secs(10));
    world.tail.tend();
    assert_eq!(world.tail.survey().files_open, 0);
}
