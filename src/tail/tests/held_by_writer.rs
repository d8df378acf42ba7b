//! Files that the tail keeps open while their writer renames, replaces and deletes them.
//!
//! On Windows each of these operations fails unless the reader has opened the file with sharing, so
//! the agent could break the program whose files it reads.

use super::*;

/// Returns a world in which the tail and a writer have `a.jsonl` open.
fn world_with_held_file() -> (TailFixture, fs::File) {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    world.read();
    let mut writer = OpenOptions::new().append(true).open(world.path("a.jsonl")).unwrap();
    // Changed while live, so that it stays open.
    writer.write_all(b"two\n").unwrap();
    assert_eq!(world.next(), lines(["one", "two"]));
    assert_eq!(world.tail.survey().files_open, 1);
    (world, writer)
}

#[test]
fn appended_lines_of_a_held_file_are_read() {
    let (mut world, mut writer) = world_with_held_file();
    writer.write_all(b"three\n").unwrap();
    assert_eq!(world.next(), lines(["three"]));
    world.tail.open.clear();
    writer.write_all(b"four\n").unwrap();
    assert_eq!(world.next(), lines(["four"]));
}

#[test]
fn held_file_can_be_renamed() {
    let (mut world, mut writer) = world_with_held_file();
    writer.write_all(b"three\n").unwrap();
    fs::rename(world.path("a.jsonl"), world.path("b.jsonl")).unwrap();
    writer.write_all(b"four\n").unwrap();
    assert_eq!(world.next(), lines(["three", "four"]));
    assert_eq!(world.store.rows.len(), 1);
}

#[test]
fn held_file_can_be_moved_and_recreated() {
    let (mut world, mut writer) = world_with_held_file();
    writer.write_all(b"three\n").unwrap();
    fs::rename(world.path("a.jsonl"), world.path("a.old")).unwrap();
    world.write("a.jsonl", "new\n");
    writer.write_all(b"four\n").unwrap();
    assert_eq!(world.next(), lines_and(["three", "four", "new"], [event::FILE_REWRITTEN]));
    assert_eq!(world.store.rows.len(), 1);
}

#[test_requires::requires(not_wine)]
#[test]
fn held_file_can_be_replaced_by_a_rename() {
    let (mut world, mut writer) = world_with_held_file();
    writer.write_all(b"three\n").unwrap();
    world.write("beside", "new\n");
    fs::rename(world.path("beside"), world.path("a.jsonl")).unwrap();
    writer.write_all(b"four\n").unwrap();
    assert_eq!(world.next(), lines_and(["three", "four", "new"], [event::FILE_REWRITTEN]));
    assert_eq!(world.store.rows.len(), 1);
}

#[test]
fn held_file_can_be_deleted_and_recreated() {
    let (mut world, mut writer) = world_with_held_file();
    writer.write_all(b"three\n").unwrap();
    fs::remove_file(world.path("a.jsonl")).unwrap();
    writer.write_all(b"four\n").unwrap();
    drop(writer);
    assert_eq!(world.next(), lines(["three", "four"]));
    // Where a deleted file keeps its name until it is closed everywhere, the second read finds it.
    (0..2).for_each(|_| assert_eq!(world.next(), lines([])));
    assert_eq!((world.store.rows.len(), world.tail.survey().files_open), (0, 0));
    world.write("a.jsonl", "new\n");
    assert_eq!(world.next(), lines(["new"]));
}
