//! Symlinks below the root.

use std::os::unix::fs::symlink;

use super::*;

/// Creates a directory with files outside of the root.
fn outside(world: &TailFixture, name: &str) -> PathBuf {
    let directory = world.directory.path().join(name);
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn link(world: &TailFixture, target: impl AsRef<Path>, name: &str) {
    let link = world.path(name);
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(target, link).unwrap();
}

/// Reasons of the events about unreadable paths, with the names of the paths.
fn reported(world: &TailFixture) -> Vec<(String, String)> {
    let events = world.store.events.iter().filter(|event| event.name == event::PATH_UNREADABLE);
    let text =
        |event: &crate::event::Event, member: &str| event.data[member].as_str().unwrap().to_owned();
    let name = |path: String| path.rsplit('/').next().unwrap().to_owned();
    let mut reported: Vec<_> =
        events.map(|event| (name(text(event, "path")), text(event, "reason"))).collect();
    reported.sort();
    reported
}

/// A manager of dotfiles had replaced a project directory by a symlink: its sessions were neither
/// shipped nor mentioned.
#[test]
fn linked_directory_and_linked_file_are_read() {
    for watch in [false, true] {
        let mut world = TailFixture::with(TailOptions { watch, ..TailOptions::default() });
        let dotfiles = outside(&world, "dotfiles/p/deep");
        fs::write(dotfiles.join("a.jsonl"), "a1\n").unwrap();
        let session = outside(&world, "other").join("session");
        fs::write(&session, "b1\n").unwrap();
        link(&world, world.directory.path().join("dotfiles/p"), "p");
        link(&world, &session, "q/b.jsonl");
        let (mut lines, events) = world.next();
        lines.sort();
        assert_eq!((lines, events), super::lines(["a1", "b1"]), "{watch}");
        fs::write(dotfiles.join("a.jsonl"), "a1\na2\n").unwrap();
        fs::write(&session, "b1\nb2\n").unwrap();
        fs::write(dotfiles.join("c.jsonl"), "c1\n").unwrap();
        let (mut lines, events) = world.next();
        lines.sort();
        assert_eq!((lines, events), super::lines(["a2", "b2", "c1"]), "{watch}");
        world.restart();
        assert_eq!(world.next(), super::lines([]), "{watch}");
        fs::remove_file(dotfiles.join("c.jsonl")).unwrap();
        assert_eq!(world.next(), super::lines([]), "{watch}");
        assert_eq!(world.tail.survey().files, 2);
    }
}

#[test]
fn paths_of_linked_files_are_below_the_root() {
    let mut world = TailFixture::new();
    let target = outside(&world, "dotfiles");
    fs::write(target.join("a.jsonl"), "a\n").unwrap();
    link(&world, &target, "p");
    world.read();
    assert_eq!(world.store.got[0].path, world.path("p/a.jsonl"));
}

#[test]
fn file_with_several_links_is_read_once() {
    let mut world = TailFixture::new();
    let target = outside(&world, "dotfiles");
    fs::create_dir(target.join("deep")).unwrap();
    fs::write(target.join("deep/a.jsonl"), "a1\n").unwrap();
    world.write("own/b.jsonl", "b1\n");
    for (target, name) in [
        (target.join("deep"), "x0"),
        (target.join("deep"), "z"),
        (target.clone(), "y"),
        (target.join("deep/a.jsonl"), "y.jsonl"),
        (world.path("own"), "x"),
        (world.path("own/b.jsonl"), "w.jsonl"),
    ] {
        link(&world, target, name);
    }
    let (mut lines, events) = world.next();
    lines.sort();
    assert_eq!((lines, events), super::lines(["a1", "b1"]));
    // No directory is listed twice: its own file, and that of `deep` under two names.
    assert_eq!(world.store.swept_files.get(), 3);
    fs::write(target.join("deep/a.jsonl"), "a1\na2\n").unwrap();
    world.append("own/b.jsonl", "b2\n");
    let (mut lines, events) = world.next();
    lines.sort();
    assert_eq!((lines, events), super::lines(["a2", "b2"]));
    // A link whose path comes before the others.
    let before = world.store.stored_rows().count();
    link(&world, &target, "a");
    assert_eq!(world.next(), super::lines([]));
    fs::remove_file(world.path("y")).unwrap();
    fs::write(target.join("deep/a.jsonl"), "a1\na2\na3\n").unwrap();
    assert_eq!(world.next(), super::lines(["a3"]));
    world.restart();
    assert_eq!(world.next(), super::lines([]));
    assert_eq!(world.store.stored_rows().count(), before);
}

#[test]
fn directory_that_was_replaced_by_a_link_continues() {
    let mut world = TailFixture::new();
    world.write("p/a.jsonl", "a1\n");
    assert_eq!(world.next(), lines(["a1"]));
    let moved = world.directory.path().join("moved");
    fs::rename(world.path("p"), &moved).unwrap();
    symlink(&moved, world.path("p")).unwrap();
    fs::write(moved.join("a.jsonl"), "a1\na2\n").unwrap();
    assert_eq!(world.next(), lines(["a2"]));
}

#[test]
fn circles_of_links_end() {
    let mut world = TailFixture::new();
    let target = outside(&world, "dotfiles");
    fs::write(target.join("a.jsonl"), "a\n").unwrap();
    symlink(&target, target.join("again")).unwrap();
    symlink("..", target.join("up")).unwrap();
    link(&world, &target, "p");
    world.write("own/b.jsonl", "b\n");
    symlink(".", world.path("own/self")).unwrap();
    symlink("circle", world.path("circle")).unwrap();
    let (mut lines, _) = world.next();
    lines.sort();
    assert_eq!(lines, ["a", "b"]);
    assert_eq!(world.store.swept_files.get(), 2, "not once for each length of a path");
    assert_eq!(world.next(), super::lines([]));
}

/// Links that are not followed were not mentioned either.
#[test]
fn links_that_are_not_followed_are_reported_once() {
    let mut world = TailFixture::new();
    world.options.home = Some(outside(&world, "users/home"));
    world.restart();
    let fifo = world.directory.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    link(&world, "absent", "broken");
    link(&world, &fifo, "fifo.jsonl");
    link(&world, world.directory.path().join("users"), "home");
    link(&world, world.directory.path(), "root");
    let expected = [
        ("broken", "link_broken"),
        ("fifo.jsonl", "link_target_kind"),
        ("home", "link_contains_home"),
        ("root", "link_contains_root"),
    ];
    let expected = expected.map(|(name, reason)| (name.to_owned(), reason.to_owned()));
    for _ in 0..3 {
        world.read();
        assert_eq!(reported(&world), expected);
        assert_eq!(world.tail.survey().unreadable.len(), 4);
    }
    // Of no interest: with these names only directories would be read.
    link(&world, "absent", "broken.json");
    fs::write(world.directory.path().join("file"), "x\n").unwrap();
    link(&world, world.directory.path().join("file"), "file");
    fs::remove_file(world.path("broken")).unwrap();
    world.read();
    assert_eq!((reported(&world).len(), world.tail.survey().unreadable.len()), (4, 3));
}

#[test]
fn event_about_a_link_is_repeated_after_a_lost_group() {
    let mut world = TailFixture::new();
    link(&world, "absent", "broken");
    world.pass(Duration::from_secs(400));
    let _any = world.tail.read(&mut world.store);
    world.lose_group();
    world.read();
    assert_eq!(reported(&world).len(), 1);
}

/// An agent that runs as root could be made to ship files of other users.
#[test_requires::requires(root)]
#[test]
fn link_to_a_file_of_another_user_is_not_followed() {
    let mut world = TailFixture::new();
    let target = outside(&world, "other");
    fs::write(target.join("a.jsonl"), "secret\n").unwrap();
    for path in [&target, &target.join("a.jsonl")] {
        std::os::unix::fs::chown(path, Some(65_534), None).unwrap();
    }
    link(&world, &target, "p");
    link(&world, target.join("a.jsonl"), "a.jsonl");
    world.read();
    assert!(world.store.got.is_empty());
    let expected = ["a.jsonl", "p"].map(|name| (name.to_owned(), "link_target_owner".to_owned()));
    assert_eq!(reported(&world), expected);
}

/// Nothing of the file was read until the link was deleted.
#[test]
fn target_that_moves_below_the_root_continues() {
    let mut world = TailFixture::new();
    let session = outside(&world, "other").join("session");
    fs::write(&session, "a1\n").unwrap();
    link(&world, &session, "s.jsonl");
    assert_eq!(world.next(), lines(["a1"]));
    fs::rename(&session, world.path("t.jsonl")).unwrap();
    world.append("t.jsonl", "a2\n");
    assert_eq!(world.next(), lines_and(["a2"], [event::PATH_UNREADABLE]));
    world.append("t.jsonl", "a3\n");
    assert_eq!(world.next(), lines(["a3"]));
    assert_eq!(world.tail.survey().files, 1);
}

/// The link stays, so the file was never ended.
#[test]
fn file_whose_link_leads_nowhere_is_ended() {
    for is_open in [true, false] {
        let mut world = TailFixture::new();
        let session = outside(&world, "other").join("session");
        fs::write(&session, "a1\n").unwrap();
        link(&world, &session, "s.jsonl");
        assert_eq!(world.next(), lines(["a1"]));
        // Files that grow stay open.
        fs::write(&session, "a1\na2\nincomplete").unwrap();
        assert_eq!(world.next(), lines(["a2"]));
        if !is_open {
            world.tail.close_reopenable();
        }
        fs::remove_file(&session).unwrap();
        let expected = match is_open {
            true => lines_and(["incomplete"], [event::PATH_UNREADABLE]),
            false => lines_and([], [event::FILE_DELETED_UNREAD, event::PATH_UNREADABLE]),
        };
        let (lines, mut events) = world.next();
        events.sort_unstable();
        assert_eq!((lines, events), expected, "{is_open}");
        let survey = world.tail.survey();
        assert_eq!((survey.files, survey.unreadable.len()), (0, 1), "{is_open}");
        assert_eq!(world.next(), super::lines([]), "{is_open}");
    }
}

/// The directory may be on a file system that is not mounted: its files counted as deleted, and were
/// read again when it was there.
#[test]
fn files_below_a_broken_link_continue_when_it_is_repaired() {
    let mut world = TailFixture::new();
    let target = outside(&world, "other");
    fs::write(target.join("a.jsonl"), "a1\n").unwrap();
    link(&world, &target, "p");
    assert_eq!(world.next(), lines(["a1"]));
    let elsewhere = target.with_extension("away");
    fs::rename(&target, &elsewhere).unwrap();
    assert_eq!(world.next(), lines_and([], [event::PATH_UNREADABLE]));
    assert_eq!(world.next(), lines([]));
    let survey = world.tail.survey();
    assert_eq!((survey.files, survey.unreadable.len()), (1, 1));
    fs::rename(&elsewhere, &target).unwrap();
    fs::write(target.join("a.jsonl"), "a1\na2\n").unwrap();
    assert_eq!(world.next(), lines(["a2"]));
    assert_eq!(world.tail.survey().unreadable.len(), 0);
    // Without the link, the files are not here.
    fs::remove_file(world.path("p")).unwrap();
    assert_eq!(world.next(), lines([]));
    assert_eq!(world.tail.survey().files, 0);
}

#[test]
fn file_whose_link_leads_to_another_kind_is_ended() {
    let mut world = TailFixture::new();
    let session = outside(&world, "other").join("session");
    fs::write(&session, "a1\nincomplete").unwrap();
    link(&world, &session, "s.jsonl");
    assert_eq!(world.next(), lines(["a1"]));
    fs::remove_file(&session).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&session).status().unwrap().success());
    let (lines, mut events) = world.next();
    events.sort_unstable();
    let expected = lines_and([], [event::FILE_DELETED_UNREAD, event::PATH_UNREADABLE]);
    assert_eq!((lines, events), expected);
    let survey = world.tail.survey();
    assert_eq!((survey.files, survey.unreadable.len()), (0, 1));
}

/// The owner of the linked directory was checked, and not that of the files in it.
#[test_requires::requires(root)]
#[test]
fn file_of_another_user_in_a_linked_directory_is_not_read() {
    let mut world = TailFixture::new();
    let target = outside(&world, "other");
    fs::write(target.join("a.jsonl"), "secret\n").unwrap();
    world.write("own/b.jsonl", "b1\n");
    for path in [target.join("a.jsonl"), world.path("own/b.jsonl")] {
        std::os::unix::fs::chown(path, Some(65_534), None).unwrap();
    }
    link(&world, &target, "p");
    for _ in 0..3 {
        world.read();
        assert_eq!(world.store.lines(), ["b1"]);
        let expected = [("a.jsonl".to_owned(), "link_target_owner".to_owned())];
        assert_eq!(reported(&world), expected);
    }
}

#[test]
fn linked_file_that_was_exchanged_after_the_sweep_is_not_opened() {
    let mut world = TailFixture::new();
    let target = outside(&world, "other");
    fs::write(target.join("a.jsonl"), "a1\n").unwrap();
    link(&world, &target, "p");
    assert_eq!(world.next(), lines(["a1"]));
    fs::write(target.join("new"), "a1\na2\n").unwrap();
    fs::rename(target.join("new"), target.join("a.jsonl")).unwrap();
    world.tail.close_reopenable();
    let key = world.tail.files.at(&world.path("p/a.jsonl")).unwrap();
    assert!(!world.tail.open_file(key, &world.store).unwrap());
    assert_eq!(world.next(), lines(["a2"]));
}
