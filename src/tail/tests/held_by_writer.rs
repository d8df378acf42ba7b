//! FileTable that the tail holds open while their writer renames, replaces and deletes them.
//!
//! On Windows each of these fails for the writer when a reader does not share it, and so an agent
//! could break the program that it reads from.

use super::*;

/// Lets `a.jsonl` be open, in the tail and in its writer.
fn held() -> (World, fs::File) {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    let mut writer = OpenOptions::new().append(true).open(world.path("a.jsonl")).unwrap();
    // ReadOutcome changed while live, so that it stays open.
    writer.write_all(b"two\n").unwrap();
    assert_eq!(world.next(), lines(["one", "two"]));
    assert_eq!(world.tail.survey().files_open, 1);
    (world, writer)
}

#[test]
fn what_its_writer_holds_open_is_seen_to_grow() {
    let (mut world, mut writer) = held();
    writer.write_all(b"three\n").unwrap();
    assert_eq!(world.next(), lines(["three"]));
    world.tail.active.clear();
    writer.write_all(b"four\n").unwrap();
    assert_eq!(world.next(), lines(["four"]));
}

#[test]
fn it_is_renamed() {
    let (mut world, mut writer) = held();
    writer.write_all(b"three\n").unwrap();
    fs::rename(world.path("a.jsonl"), world.path("b.jsonl")).unwrap();
    writer.write_all(b"four\n").unwrap();
    assert_eq!(world.next(), lines(["three", "four"]));
    assert_eq!(world.store.rows.len(), 1);
}

#[test]
fn it_is_moved_away_and_written_anew() {
    let (mut world, mut writer) = held();
    writer.write_all(b"three\n").unwrap();
    fs::rename(world.path("a.jsonl"), world.path("a.old")).unwrap();
    world.write("a.jsonl", "new\n");
    writer.write_all(b"four\n").unwrap();
    assert_eq!(world.next(), lines_and(["three", "four", "new"], [event::FILE_REWRITTEN]));
    assert_eq!(world.store.rows.len(), 1);
}

#[test_requires::requires(not_wine)]
#[test]
fn another_is_renamed_over_it() {
    let (mut world, mut writer) = held();
    writer.write_all(b"three\n").unwrap();
    world.write("beside", "new\n");
    fs::rename(world.path("beside"), world.path("a.jsonl")).unwrap();
    writer.write_all(b"four\n").unwrap();
    assert_eq!(world.next(), lines_and(["three", "four", "new"], [event::FILE_REWRITTEN]));
    assert_eq!(world.store.rows.len(), 1);
}

#[test]
fn it_is_deleted_and_comes_again() {
    let (mut world, mut writer) = held();
    writer.write_all(b"three\n").unwrap();
    fs::remove_file(world.path("a.jsonl")).unwrap();
    writer.write_all(b"four\n").unwrap();
    drop(writer);
    assert_eq!(world.next(), lines(["three", "four"]));
    // Where a deleted file keeps its name until nobody holds it, that is found once it is closed.
    (0..2).for_each(|_| assert_eq!(world.next(), lines([])));
    assert_eq!((world.store.rows.len(), world.tail.survey().files_open), (0, 0));
    world.write("a.jsonl", "new\n");
    assert_eq!(world.next(), lines(["new"]));
}
