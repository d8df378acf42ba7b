//! The tail on real directories: files that grow, move, shrink and are deleted.

mod altered;
mod appended;
mod backfill_hold;
mod case_table;
mod deleted;
mod file_lifecycles;
#[cfg(unix)]
mod file_system_faults;
#[cfg(unix)]
mod hanging_calls;
mod held_by_writer;
#[cfg(unix)]
mod links;
mod long_lines;
#[cfg(unix)]
mod long_paths;
#[cfg(unix)]
mod nul_runs;
mod proptests;
mod renamed;
mod rewritten;

mod watcher;

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use siem_protocol::names::event;
use tempfile::TempDir;

use super::{testing::MemoryStore, watcher::Hint, *};
use crate::tail::testing::ShiftedClock;

/// A directory, a tail on it, and everything that the tail handed over.
struct TailFixture {
    options: TailOptions,
    clock: Arc<ShiftedClock>,
    tail: Tail,
    store: MemoryStore,
    /// Dropped last: on Windows a directory stays as long as a watcher holds it.
    directory: TempDir,
}

impl TailFixture {
    fn new() -> Self {
        Self::with(TailOptions { watch: false, ..TailOptions::default() })
    }

    fn with(options: TailOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        let options = TailOptions { roots: vec![root], ..options };
        let clock = ShiftedClock::shared();
        let tail =
            Tail::new(options.clone(), clock.clone(), Box::new(fresh_generation), Arc::new(|| {}));
        Self { directory, options, clock, tail, store: MemoryStore::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("root").join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn append(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let mut options = OpenOptions::new();
        let mut file = options.append(true).create(true).open(self.path(name)).unwrap();
        file.write_all(bytes.as_ref()).unwrap();
    }

    /// Advances the clock until a sweep is due, and reads everything, a few chunks per group.
    fn read(&mut self) {
        self.pass(Duration::from_secs(400));
        self.read_on();
    }

    fn pass(&mut self, time: Duration) {
        self.clock.advance(time);
    }

    fn read_on(&mut self) {
        let started = Instant::now();
        while self.tail.read(&mut self.store) == Progress::More {
            self.store.commit();
            self.tail.sealed();
            self.tail.committed();
            assert!(started.elapsed() < Duration::from_secs(60), "reading does not end");
        }
        self.store.commit();
        self.tail.sealed();
        self.tail.committed();
    }

    /// Restarts the agent with the stored rows.
    fn restart(&mut self) {
        self.store.roll_back();
        let clock = self.clock.clone();
        self.tail =
            Tail::new(self.options.clone(), clock, Box::new(fresh_generation), Arc::new(|| {}));
        self.tail.restore(&mut self.store.stored_rows()).unwrap();
    }

    /// Makes the store fail: the group is discarded, and the tail is restored from the rows.
    fn lose_group(&mut self) {
        self.store.roll_back();
        self.tail.restore(&mut self.store.stored_rows()).unwrap();
    }

    /// Returns the lines and events since the last call.
    fn take(&mut self) -> (Vec<String>, Vec<&'static str>) {
        let taken = (self.store.lines(), self.store.event_names());
        self.store.got.clear();
        self.store.events.clear();
        taken
    }

    /// Reads, and returns the new lines and events.
    fn next(&mut self) -> (Vec<String>, Vec<&'static str>) {
        self.read();
        self.take()
    }
}

fn lines<const N: usize>(lines: [&str; N]) -> (Vec<String>, Vec<&'static str>) {
    (lines.map(str::to_owned).to_vec(), Vec::new())
}

fn lines_and<const N: usize, const M: usize>(
    lines: [&str; N],
    events: [&'static str; M],
) -> (Vec<String>, Vec<&'static str>) {
    (lines.map(str::to_owned).to_vec(), events.to_vec())
}
