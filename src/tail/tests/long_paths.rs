//! Paths that are longer than a system call accepts.

use std::{
    ffi::OsStr,
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::*;

/// Creates directories below `above` until the path has `len` bytes; returns the innermost one.
fn deep_directory(above: &Path, len: usize) -> (PathBuf, OwnedFd) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut directory = openat(CWD, above, flags, Mode::empty()).unwrap();
    let mut path = above.to_owned();
    let name = "d".repeat(200);
    while path.as_os_str().len() < len {
        rustix::fs::mkdirat(&directory, &name, Mode::RWXU).unwrap();
        directory = openat(&directory, &name, flags, Mode::empty()).unwrap();
        path.push(&name);
    }
    (path, directory)
}

fn append(directory: &OwnedFd, name: impl AsRef<OsStr>, bytes: &str) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND;
    let name = Path::new(name.as_ref());
    let file = openat(directory, name, flags, Mode::RUSR | Mode::WUSR).unwrap();
    File::from(file).write_all(bytes.as_bytes()).unwrap();
}

/// The directories were not read beyond that length, and with a watcher an error for each of them
/// turned the watcher off.
#[test]
fn paths_longer_than_path_max_are_read() {
    for watch in [false, true] {
        let mut world = TailFixture::with(TailOptions { watch, ..TailOptions::default() });
        // One file whose directory has a path of permitted length, and one far below.
        let (_, border) = deep_directory(&world.path(""), 3850);
        let name = format!("{}.jsonl", "n".repeat(200));
        append(&border, &name, "a1\n");
        let (path, deep) = {
            fs::create_dir(world.path("below")).unwrap();
            deep_directory(&world.path("below"), 9000)
        };
        append(&deep, "b.jsonl", "b1\n");
        let (mut came, events) = world.next();
        came.sort();
        assert_eq!((came, events), lines(["a1", "b1"]), "{watch}");
        append(&border, &name, "a2\n");
        append(&deep, "b.jsonl", "b2\n");
        world.restart();
        let (mut came, events) = world.next();
        came.sort();
        assert_eq!((came, events), lines(["a2", "b2"]), "{watch}");
        assert!(world.tail.survey().unreadable.is_empty());
        assert_eq!(world.tail.survey().is_watching, watch);
        rustix::fs::unlinkat(&deep, "b.jsonl", rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!(world.next(), lines([]), "{watch}");
        assert_eq!(world.tail.survey().files, 1, "{}", path.as_os_str().len());
    }
}
