//! A tree of small session files, and a tail that follows it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use ai_agent::internals::{
    event::Event,
    platform::{Clock, Timestamp},
    tail::{Chunk, FileKey, GenerationId, Intake, Progress, Tail, TailOptions, fresh_generation},
};

/// The fixed time of these benches, so that nothing becomes due.
const NOW: Timestamp = Timestamp(1_795_291_200_000);

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        NOW
    }

    fn uptime(&self) -> Duration {
        Duration::ZERO
    }
}

/// An intake that counts lines and keeps the checkpoints.
#[derive(Default)]
pub struct Taken {
    rows: BTreeMap<GenerationId, Vec<u8>>,
    /// Number of lines.
    pub lines: usize,
}

impl Intake for Taken {
    fn take(&mut self, chunk: Chunk<'_>) {
        self.lines += chunk.pieces.len();
        match chunk.checkpoint {
            Some(row) => self.rows.insert(chunk.origin.generation.clone(), row.to_vec()),
            None => self.rows.remove(&chunk.origin.generation),
        };
    }

    fn report(&mut self, _event: Event) {}

    fn forget(&mut self, _file: FileKey) {}

    fn store_row(&mut self, _name: &str, _row: &[u8], _events: Vec<Event>) {}

    fn has_room(&self) -> bool {
        true
    }

    fn saw(&self, _files: u64) {}

    fn checkpoint(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        self.rows.get(generation).cloned()
    }
}

/// Writes `files` files of two lines, a hundred per directory, last modified a day ago.
pub fn write(root: &Path, files: usize) {
    let yesterday = UNIX_EPOCH + Duration::from_millis(NOW.0) - Duration::from_secs(86_400);
    for number in 0..files {
        let directory = root.join(format!("-home-dev-{:04}", number / 100));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(format!("{number:08}-0000-4000-8000-000000000000.jsonl"));
        fs::write(&path, format!("{{\"type\":\"user\",\"n\":{number:08}}}\n{{}}\n")).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(yesterday).unwrap();
    }
}

/// Creates a tail for the files below `root`, without a watcher.
#[must_use]
pub fn tail(root: &Path) -> Tail {
    let options =
        TailOptions { roots: vec![root.to_owned()], watch: false, ..TailOptions::default() };
    Tail::new(options, Arc::new(Still), Box::new(fresh_generation), Arc::new(|| {}))
}

/// Reads all lines.
pub fn read(tail: &mut Tail, taken: &mut Taken) {
    while tail.read(taken) == Progress::More {}
    tail.sealed();
    tail.committed();
}

/// Restarts from the stored rows, and sweeps over all files.
pub fn sweep_again(tail: &mut Tail, taken: &mut Taken) {
    let rows = &mut taken.rows.clone().into_iter();
    tail.restore(rows).expect("the rows are its own");
    read(tail, taken);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_sweep_looks_at_every_file_and_reads_none() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), 250);
        let (mut tail, mut taken) = (tail(folder.path()), Taken::default());
        read(&mut tail, &mut taken);
        assert_eq!((taken.lines, tail.survey().sweeps), (500, 1));
        sweep_again(&mut tail, &mut taken);
        assert_eq!((taken.lines, tail.survey().sweeps), (500, 2));
        assert_eq!(tail.survey().files, 250);
    }
}
