//! Thread that syncs the files of epochs, so that journals can be deleted.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use tokio::sync::oneshot;
use tracing::error;

use super::{
    copy,
    epoch::{EpochFiles, Stem},
    journal, sync_directory,
};
use crate::background::lower_priority;

/// A complete journal, and the epochs with frames in it.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) path: PathBuf,
    pub(super) dirty: BTreeSet<Stem>,
    /// Channel for the result of the first attempt to delete it.
    pub(super) done: Option<oneshot::Sender<io::Result<()>>>,
}

impl Sealed {
    fn report(&mut self, result: impl FnOnce() -> io::Result<()>) {
        if let Some(done) = self.done.take() {
            drop(done.send(result()));
        }
    }
}

/// Deletes sealed journals, in order, once their content is synced elsewhere.
#[derive(Debug)]
pub(super) struct Checkpointer {
    sealed: mpsc::Sender<Sealed>,
    thread: thread::JoinHandle<()>,
    root: PathBuf,
}

impl Checkpointer {
    /// Starts the thread for the files below `root`.
    pub(super) fn start(root: PathBuf) -> io::Result<Self> {
        let (sealed, waiting) = mpsc::channel();
        let below = root.clone();
        let run = move || run_checkpointer(&below, &waiting);
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(run)?;
        Ok(Self { sealed, thread, root })
    }

    /// Queues a sealed journal.
    pub(super) fn add(&self, sealed: Sealed) {
        if self.sealed.send(sealed).is_err() {
            error!(
                code = "checkpoint_thread_ended",
                "checkpoint thread has ended, journals stay until the next start"
            );
        }
    }

    /// Waits until all queued journals are processed.
    pub(super) fn finish(self) -> PathBuf {
        drop(self.sealed);
        if self.thread.join().is_err() {
            error!(
                code = "checkpoint_thread_panicked",
                "checkpoint thread panicked, journals stay until the next start"
            );
        }
        self.root
    }
}

fn run_checkpointer(root: &Path, waiting: &mpsc::Receiver<Sealed>) {
    lower_priority();
    let mut queue = VecDeque::new();
    // After an error the unsynced content of the files may be lost from memory: it is written
    // again.
    let mut again = false;
    while let Ok(sealed) = waiting.recv() {
        queue.push_back(sealed);
        // A journal is deleted only after all before it: a restart then always finds the complete
        // end of the history.
        while let Some(sealed) = queue.front_mut() {
            let result = checkpoint(root, sealed, again);
            if let Err(error) = result {
                error!(code = "epoch_files_sync_failed", %error, journals = queue.len(), "cannot sync the files of epochs, journals stay");
                for sealed in &mut queue {
                    sealed.report(|| Err(copy(&error)));
                }
                break;
            }
            sealed.report(|| Ok(()));
            queue.pop_front();
        }
        again = !queue.is_empty();
    }
}

fn checkpoint(root: &Path, sealed: &Sealed, again: bool) -> io::Result<()> {
    if again {
        let mut files = EpochFiles::new(root.to_owned());
        journal::replay(&sealed.path, |mut frame| {
            // The lines are removed already. Later ones are in a new file, which the applier has open.
            frame.place.removes = false;
            files.apply(&frame)
        })?;
    }
    sync(root, &sealed.dirty)?;
    fs::remove_file(&sealed.path)?;
    sealed.path.parent().map_or(Ok(()), sync_directory)
}

/// Makes the files of epochs durable.
pub(super) fn sync(root: &Path, stems: &BTreeSet<Stem>) -> io::Result<()> {
    let mut directories = BTreeSet::new();
    for stem in stems {
        File::options().write(true).open(stem.index(root))?.sync_all()?;
        match File::options().write(true).open(stem.lines(root)) {
            Ok(lines) => lines.sync_all()?,
            // The epoch has no line.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        directories.insert(stem.directory(root));
    }
    for directory in directories {
        sync_directory(&directory)?;
    }
    sync_directory(root)
}
