//! The thread that syncs epochs' files, so that journals can go.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use tracing::error;

use super::{
    epoch::{EpochFiles, Stem},
    journal, sync_directory,
};

/// A journal that is complete, and the epochs that it holds something of.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) path: PathBuf,
    pub(super) dirty: BTreeSet<Stem>,
}

/// Takes sealed journals away, in order, once their content is synced elsewhere.
#[derive(Debug)]
pub(super) struct Checkpointer {
    sealed: mpsc::Sender<Sealed>,
    thread: thread::JoinHandle<()>,
    root: PathBuf,
}

impl Checkpointer {
    /// Starts the thread for the epochs' files below `root`.
    pub(super) fn start(root: PathBuf) -> io::Result<Self> {
        let (sealed, waiting) = mpsc::channel();
        let below = root.clone();
        let run = move || work(&below, &waiting);
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(run)?;
        Ok(Self { sealed, thread, root })
    }

    /// Hands a sealed journal over.
    pub(super) fn add(&self, sealed: Sealed) {
        if self.sealed.send(sealed).is_err() {
            error!(
                code = "checkpoint_thread_ended",
                "the checkpoint thread is gone, journals stay until the next start"
            );
        }
    }

    /// Waits until all that was handed over is done.
    pub(super) fn finish(self) -> PathBuf {
        drop(self.sealed);
        if self.thread.join().is_err() {
            error!(
                code = "checkpoint_thread_panicked",
                "the checkpoint thread panicked, journals stay until the next start"
            );
        }
        self.root
    }
}

fn work(root: &Path, waiting: &mpsc::Receiver<Sealed>) {
    let mut queue = VecDeque::new();
    // After an error the files' unsynced content may be gone from memory: it is written again.
    let mut again = false;
    while let Ok(sealed) = waiting.recv() {
        queue.push_back(sealed);
        // A journal only goes after all before it have gone: what a restart finds is then always
        // the whole end of the story.
        while let Some(sealed) = queue.front() {
            if let Err(error) = checkpoint(root, sealed, again) {
                error!(code = "epoch_files_sync_failed", %error, journals = queue.len(), "could not sync epochs' files, journals stay");
                break;
            }
            queue.pop_front();
        }
        again = !queue.is_empty();
    }
}

fn checkpoint(root: &Path, sealed: &Sealed, again: bool) -> io::Result<()> {
    if again {
        let mut files = EpochFiles::new(root.to_owned());
        journal::replay(&sealed.path, |frame| files.apply(&frame))?;
    }
    sync(root, &sealed.dirty)?;
    fs::remove_file(&sealed.path)?;
    sealed.path.parent().map_or(Ok(()), sync_directory)
}

/// Makes epochs' files durable.
pub(super) fn sync(root: &Path, stems: &BTreeSet<Stem>) -> io::Result<()> {
    let mut directories = BTreeSet::new();
    for stem in stems {
        for path in stem.all(root) {
            File::options().write(true).open(path)?.sync_all()?;
        }
        directories.insert(stem.directory(root));
    }
    for directory in directories {
        sync_directory(&directory)?;
    }
    sync_directory(root)
}
