//! Store in files.

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    Answer, DataFormat, FormatError, Storage, StoreError, StoredBatch,
    applier::Applier,
    checkpoint::Checkpointer,
    epoch::EpochFiles,
    journal::Journal,
    recover::{self, Recovered},
    repeats::Repeats,
    writer::{self, Job, Writer},
};
use crate::{batch::Batch, fleet::StatsQuery, metrics::Durations, stats::Stats, trust::Registry};

/// Options of a [`FileStore`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct FileStoreOptions {
    /// Size in bytes from which a journal is closed and, once its content is synced elsewhere,
    /// deleted.
    pub journal_bytes: u64,
    /// Number of batches that may wait for the writer.
    pub queue: usize,
    /// Simulates the free space of a disk.
    #[cfg(test)]
    pub(crate) space: Option<&'static std::sync::atomic::AtomicU64>,
}

impl Default for FileStoreOptions {
    fn default() -> Self {
        Self {
            journal_bytes: 256 << 20,
            queue: 4096,
            #[cfg(test)]
            space: None,
        }
    }
}

/// Reason why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("`{path}` is in use by another receiver")]
    InUse {
        /// Directory of the store.
        path: PathBuf,
    },
    /// The version of the directory is not supported or cannot be determined.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The directory cannot be created or read, or recovery failed.
    #[error("cannot open the store in `{path}`")]
    Io {
        /// Directory of the store.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Stores batches in a directory.
///
/// ```text
/// DIR/lock                              held while the store is open
/// DIR/format                            version of the directory, see [`DataFormat`]
/// DIR/journal/NUMBER.journal            batches that are not yet synced in the files below
/// DIR/machines/MACHINE/EPOCH.ndjson     the entries' lines as they were received
/// DIR/machines/MACHINE/EPOCH.notes      changes by each batch, a JSON object a line
/// DIR/machines/MACHINE/EPOCH.chain      h(n) of the numbers covered, 32 bytes each
/// DIR/machines/MACHINE/EPOCH.starts     start offsets of the lines in their source files
/// ```
/// MACHINE and EPOCH are the ids where these are safe as file names, otherwise a shortened form
/// with a hash. Late and redelivered lines come after the others: sort by `seq` where the order
/// matters. `repeated` in a note lists the numbers whose lines another epoch of the machine also
/// has.
///
/// A batch is acknowledged once its journal is synced; all waiting batches share one sync. When the
/// store is opened, unacknowledged batches of a crashed process are completed or rolled back. The
/// other files follow soon after the response.
#[derive(Debug)]
pub struct FileStore {
    jobs: Option<mpsc::Sender<Job>>,
    writer: Mutex<Option<thread::JoinHandle<PathBuf>>>,
    syncs: Durations,
    _lock: File,
}

impl FileStore {
    /// Opens the store in `directory`, creates it if missing, and repairs the effects of a crash.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another process has it open; [`OpenError::Io`] otherwise.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Self::open_with(directory, FileStoreOptions::default())
    }

    /// Like [`FileStore::open`], with options.
    ///
    /// # Errors
    /// As [`FileStore::open`].
    pub fn open_with(directory: &Path, options: FileStoreOptions) -> Result<Self, OpenError> {
        Self::open_inner(directory, options, None)
    }

    /// Like [`FileStore::open_with`], for a receiver that knows devices: epochs belong to the
    /// devices in `registry`. Without it, all batches count as unsealed.
    ///
    /// # Errors
    /// As [`FileStore::open`].
    pub fn open_with_registry(
        directory: &Path,
        options: FileStoreOptions,
        registry: Arc<Registry>,
    ) -> Result<Self, OpenError> {
        Self::open_inner(directory, options, Some(registry))
    }

    fn open_inner(
        directory: &Path,
        options: FileStoreOptions,
        registry: Option<Arc<Registry>>,
    ) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io { path: directory.to_owned(), source };
        let lock = super::create_private(directory)
            .and_then(|()| super::epoch::open(&directory.join("lock")))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::InUse { path: directory.to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        DataFormat::ensure(directory)?;
        let (jobs, writer, syncs) = start(directory, options, registry).map_err(failed)?;
        Ok(Self { jobs: Some(jobs), writer: Mutex::new(Some(writer)), syncs, _lock: lock })
    }

    /// Returns the time that each write of the journal takes.
    pub(crate) fn sync_durations(&self) -> Durations {
        self.syncs.clone()
    }

    fn send(&self, job: Job) -> Result<(), StoreError> {
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                StoreError::Busy { retry_after: Duration::from_secs(1) }
            }
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        })
    }
}

fn start(
    directory: &Path,
    options: FileStoreOptions,
    registry: Option<Arc<Registry>>,
) -> io::Result<(mpsc::Sender<Job>, thread::JoinHandle<PathBuf>, Durations)> {
    let (sender, writer) = prepare(directory, options, registry)?;
    let syncs = writer.syncs.clone();
    let run = move || writer.run();
    let thread = thread::Builder::new().name("writer".into()).spawn(run)?;
    Ok((sender, thread, syncs))
}

/// Recovers the store and creates the writer, which does not run yet.
pub(super) fn prepare(
    directory: &Path,
    options: FileStoreOptions,
    registry: Option<Arc<Registry>>,
) -> io::Result<(mpsc::Sender<Job>, Writer)> {
    let (journals, machines) = (directory.join("journal"), directory.join("machines"));
    super::create_private(&journals)?;
    super::create_private(&machines)?;
    super::sync_directory(directory)?;
    let Recovered { catalog, next_journal } = recover::recover(&journals, &machines)?;
    if let Some(registry) = &registry {
        // The process may have ended between the adoption of an epoch and this.
        for key in catalog.confirmed_by_continuity() {
            writer::confirm(registry, &key)?;
        }
        catalog.all_owners().for_each(|key| registry.note_owner(key));
    }
    let (sender, jobs) = mpsc::channel(options.queue.max(1));
    #[cfg_attr(not(test), expect(unused_mut, reason = "only a test changes it"))]
    let mut journal = Journal::create(&journals, next_journal)?;
    #[cfg(test)]
    {
        journal.space = options.space;
    }
    let writer = Writer {
        jobs,
        catalog,
        repeats: Repeats::new(machines.clone()),
        journal,
        applier: Applier::start(EpochFiles::new(machines.clone()), Checkpointer::start(machines)?)?,
        registry,
        journal_bytes: options.journal_bytes,
        deferred: Default::default(),
        synced: None,
        syncs: Durations::default(),
    };
    Ok((sender, writer))
}

impl Storage for FileStore {
    fn store(&self, batch: Batch) -> Answer<'_, StoredBatch> {
        Box::pin(async move {
            let (responder, response) = oneshot::channel();
            self.send(Job::Store(Box::new(batch), responder))?;
            response.await.map_err(|_| StoreError::Closed)?
        })
    }

    fn stats(&self, query: StatsQuery) -> Answer<'_, Stats> {
        Box::pin(async move {
            let (responder, response) = oneshot::channel();
            self.send(Job::Stats(Box::new(query), responder))?;
            response.await.map_err(|_| StoreError::Closed)
        })
    }
}

impl Drop for FileStore {
    /// Waits until all accepted batches are written and synced.
    fn drop(&mut self) {
        self.jobs = None;
        let writer = self.writer.lock().ok().and_then(|mut writer| writer.take());
        if let Some(Err(_)) = writer.map(thread::JoinHandle::join) {
            tracing::error!(code = "store_writer_panicked", "writer of the store panicked");
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
