//! Store in files.

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};
use tracing::error;

use super::{
    Answer, DataFormat, EpochKey, FormatError, Storage, StoreError, StoredBatch, StoredLine,
    applier::Applier,
    checkpoint::Checkpointer,
    epoch::{EpochFiles, OPEN_EPOCHS},
    erase::StoreHandle,
    journal::Journal,
    migrate,
    recover::{self, Recovered},
    repeats::Repeats,
    writer::{self, Job, Writer},
};
use crate::{
    batch::Batch,
    fleet::StatsQuery,
    ledger::{Ledger, Range},
    life::{AccessLog, AccessWatch, Engine, RetentionClock, RetentionPolicy},
    metrics::Durations,
    stats::Stats,
    trust::{EpochOwner, Registry, lacks_devices},
};

/// Time between two removals of what is no longer kept, and of later entries of erased subjects.
const REMOVALS: Duration = Duration::from_secs(3600);

/// Time between two looks for requests of commands.
const REQUESTS: Duration = Duration::from_millis(250);

/// Longest time between two looks whether a thread has ended.
const JOINS: Duration = Duration::from_millis(5);

/// Options of a [`FileStore`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct FileStoreOptions {
    /// Size in bytes from which a journal is closed and, once its content is synced elsewhere,
    /// deleted.
    pub journal_bytes: u64,
    /// Number of batches that may wait for the writer.
    pub queue: usize,
    /// Number of epochs whose files stay open, two for each. With fewer than send, files are opened and closed for
    /// each batch.
    pub open_epochs: usize,
    /// Limits of what is kept, applied once an hour.
    pub retention: RetentionPolicy,
    /// Time that a store that is dropped waits for its disk. All acknowledged batches are in the
    /// journal then; the next start copies what is not in the files of the epochs.
    pub close_within: Duration,
    /// Simulates the free space of a disk.
    #[cfg(test)]
    pub(crate) space: Option<&'static std::sync::atomic::AtomicU64>,
}

impl Default for FileStoreOptions {
    fn default() -> Self {
        Self {
            journal_bytes: 256 << 20,
            queue: 4096,
            open_epochs: OPEN_EPOCHS,
            retention: RetentionPolicy::default(),
            close_within: Duration::from_secs(30),
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

/// Lock of the directory of a store, which one process at a time holds.
#[derive(Debug)]
pub(crate) struct StoreLock {
    directory: PathBuf,
    file: Option<File>,
}

impl StoreLock {
    /// Locks `directory`, and creates it if missing.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another process holds the lock; [`OpenError::Io`] otherwise.
    pub(crate) fn take(directory: &Path) -> Result<Self, OpenError> {
        let path = directory.to_owned();
        let file = super::create_private(directory)
            .and_then(|()| super::epoch::open(&directory.join("lock")));
        let file = match file {
            Ok(file) => file,
            Err(source) => return Err(OpenError::Io { path, source }),
        };
        match file.try_lock() {
            Ok(()) => Ok(Self { directory: path, file: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path }),
            Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
        }
    }
}

impl StoreLock {
    /// Keeps the directory locked until the process ends.
    fn leak(&mut self) {
        std::mem::forget(self.file.take());
    }
}

/// Stores batches in a directory.
///
/// ```text
/// DIR/lock                              held while the store is open
/// DIR/format                            version of the directory, see [`DataFormat`]
/// DIR/journal/NUMBER.journal            batches that are not yet synced in the files below
/// DIR/machines/MACHINE/EPOCH.ndjson     the entries' lines as they were received
/// DIR/machines/MACHINE/EPOCH.index      a record of each batch: its changes as JSON, h(n) of the
///                                       numbers, and the positions of its lines in their source files
/// ```
/// MACHINE and EPOCH are the ids where these are safe as file names, otherwise a shortened form
/// with a hash. Where the oldest lines of an epoch were removed, its file begins with NUL or empty
/// lines, so that the others keep their positions. Late and redelivered lines come after the others: sort by `seq` where the order
/// matters. `repeated` in a record lists the numbers whose lines another epoch of the machine also
/// has.
///
/// A batch is acknowledged once its journal is synced; all waiting batches share one sync. When the
/// store is opened, unacknowledged batches of a crashed process are completed or rolled back. The
/// other files follow soon after the response.
#[derive(Debug)]
pub struct FileStore {
    machines: PathBuf,
    jobs: Option<mpsc::Sender<Job>>,
    writer: Mutex<Option<thread::JoinHandle<PathBuf>>>,
    requests: Option<RequestThread>,
    syncs: Durations,
    close_within: Duration,
    lock: StoreLock,
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
        Self::open_inner(StoreLock::take(directory)?, options, None)
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
        Self::open_locked(StoreLock::take(directory)?, options, registry)
    }

    /// Like [`FileStore::open_with_registry`], for a directory that is locked already.
    ///
    /// # Errors
    /// As [`FileStore::open`].
    pub(crate) fn open_locked(
        lock: StoreLock,
        options: FileStoreOptions,
        registry: Arc<Registry>,
    ) -> Result<Self, OpenError> {
        Self::open_inner(lock, options, Some(registry))
    }

    fn open_inner(
        lock: StoreLock,
        options: FileStoreOptions,
        registry: Option<Arc<Registry>>,
    ) -> Result<Self, OpenError> {
        let directory = lock.directory.clone();
        let directory = directory.as_path();
        let failed = |source| OpenError::Io { path: directory.to_owned(), source };
        let format = DataFormat::ensure(directory)?;
        if !format.is_current() {
            migrate::convert(directory).map_err(failed)?;
            format.set_current(directory)?;
        }
        let started = start(directory, options, registry.clone()).map_err(failed)?;
        let ((jobs, writer, syncs), machines) = (started, directory.join("machines"));
        let store = StoreHandle { jobs: jobs.downgrade(), machines: machines.clone() };
        let engine = Engine::new(directory.to_owned(), store, registry);
        let requests = Some(RequestThread::start(engine, options.retention).map_err(failed)?);
        let (jobs, writer) = (Some(jobs), Mutex::new(Some(writer)));
        let close_within = options.close_within;
        Ok(Self { machines, jobs, writer, requests, syncs, close_within, lock })
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

/// Thread that executes the requests of commands; see [`life`](crate::life).
#[derive(Debug)]
struct RequestThread {
    ends: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl RequestThread {
    fn start(engine: Engine, retention: RetentionPolicy) -> io::Result<Self> {
        let ends = Arc::new(AtomicBool::new(false));
        let ended = ends.clone();
        let run = move || {
            let mut applied: Option<Instant> = None;
            let mut clock = RetentionClock::new(engine.data());
            let mut access = AccessWatch::new(AccessLog::new(engine.data()));
            while !ended.load(Ordering::Acquire) {
                // A store without a registry, such as one that a restoration opens, signs no erasure: the
                // requests stay for the receiver.
                let is_due = applied.is_none_or(|applied| applied.elapsed() >= REMOVALS);
                if engine.has_registry() {
                    access.check(is_due);
                    engine.poll();
                }
                if is_due {
                    if engine.has_registry() {
                        engine.repeat_erasures();
                    }
                    if retention != RetentionPolicy::default() {
                        engine.apply_retention(&retention, &mut clock);
                    }
                    applied = Some(Instant::now());
                }
                thread::park_timeout(REQUESTS);
            }
        };
        let thread = Some(thread::Builder::new().name("requests".into()).spawn(run)?);
        Ok(Self { ends, thread })
    }
}

impl RequestThread {
    /// Lets the thread end, once a request that is being executed is completed.
    fn end(&self) {
        self.ends.store(true, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

/// Waits for a thread to end, until a deadline; `None` if it has not ended by then.
fn join_until<T>(thread: thread::JoinHandle<T>, deadline: Instant) -> Option<thread::Result<T>> {
    let mut pause = Duration::from_micros(50);
    while !thread.is_finished() {
        let rest = deadline.checked_duration_since(Instant::now())?;
        thread::sleep(rest.min(pause));
        pause = (2 * pause).min(JOINS);
    }
    Some(thread.join())
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

/// Checks that the registry has the devices that sent the stored entries.
fn check_devices(directory: &Path, owners: &[EpochOwner], registry: &Registry) -> io::Result<()> {
    let missing = registry.missing_devices(owners);
    if missing == 0 {
        return Ok(());
    }
    let trust = directory.join("trust");
    if lacks_devices(&trust)? {
        // With another state of trust a device that was revoked could enroll again.
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "`{}` is missing, but {missing} of the devices that it had sent stored entries: restore it \
                 from a backup; or create it as an empty file, then all devices have to enroll again, and \
                 those that were revoked can too",
                trust.join("devices.ndjson").display()
            ),
        ));
    }
    error!(code = "trust_devices_missing", missing, file = %trust.join("devices.ndjson").display(), "the registry lacks devices that sent stored entries: if one was revoked, it can enroll again");
    Ok(())
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
        check_devices(directory, &catalog.epoch_owners(), registry)?;
    }
    let (sender, jobs) = mpsc::channel(options.queue.max(1));
    #[cfg_attr(not(test), expect(unused_mut, reason = "only a test changes it"))]
    let mut journal = Journal::create(&journals, next_journal)?;
    #[cfg(test)]
    {
        journal.space = options.space;
    }
    let files = EpochFiles::new(machines.clone()).keep_open(options.open_epochs);
    let writer = Writer {
        jobs,
        catalog,
        repeats: Repeats::new(machines.clone()),
        journal,
        applier: Applier::start(files, Checkpointer::start(machines)?)?,
        registry,
        journal_bytes: options.journal_bytes,
        deferred: Default::default(),
        synced: None,
        syncs: Durations::default(),
    };
    Ok((sender, writer))
}

impl FileStore {
    #[cfg(test)]
    pub(crate) fn handle(&self) -> StoreHandle {
        let jobs = self.jobs.as_ref().map(mpsc::Sender::downgrade).unwrap();
        StoreHandle { jobs, machines: self.machines.clone() }
    }

    /// Sends a request to the writer and waits for the response.
    async fn request<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<T>) -> Job,
    ) -> Result<T, StoreError> {
        let (responder, response) = oneshot::channel();
        self.send(job(responder))?;
        response.await.map_err(|_| StoreError::Closed)
    }
}

impl Storage for FileStore {
    fn store(&self, batch: Batch) -> Answer<'_, StoredBatch> {
        Box::pin(async move { self.request(|to| Job::Store(Box::new(batch), to)).await? })
    }

    fn read(&self, epoch: EpochKey, range: Range, max_bytes: u64) -> Answer<'_, Vec<StoredLine>> {
        Box::pin(async move {
            let located = self.request(|to| Job::Locate(epoch.into_key(), range, to)).await?;
            let Some(located) = located else { return Ok(Vec::new()) };
            let machines = self.machines.clone();
            let read = tokio::task::spawn_blocking(move || located.read(&machines, max_bytes));
            let read = read.await.map_err(|error| StoreError::Unavailable(io::Error::other(error)));
            read?.map_err(StoreError::from_io)
        })
    }

    fn ledger(&self, epoch: EpochKey) -> Answer<'_, Option<Ledger>> {
        Box::pin(self.request(|to| Job::Ledger(epoch.into_key(), to)))
    }

    fn scan(&self, after: Option<EpochKey>, limit: usize) -> Answer<'_, Vec<EpochKey>> {
        Box::pin(self.request(move |to| Job::Scan(after, limit, to)))
    }

    fn stats(&self, query: StatsQuery) -> Answer<'_, Stats> {
        Box::pin(self.request(|to| Job::Stats(Box::new(query), to)))
    }
}

impl Drop for FileStore {
    /// Waits until all accepted batches are written and synced, but no longer than
    /// [`FileStoreOptions::close_within`]: a disk may never answer. The directory then stays locked
    /// until the process ends, since threads may still write to it.
    fn drop(&mut self) {
        let deadline = Instant::now() + self.close_within;
        // A request that is being executed is completed.
        let requests = self.requests.take().and_then(|mut requests| {
            requests.end();
            requests.thread.take()
        });
        let executed = requests.map(|thread| join_until(thread, deadline));
        if let Some(Some(Err(_))) = executed {
            tracing::error!(
                code = "life_thread_panicked",
                "thread that executes requests of commands panicked"
            );
        }
        self.jobs = None;
        let writer = self.writer.lock().ok().and_then(|mut writer| writer.take());
        let written = writer.map(|thread| join_until(thread, deadline).map(|it| it.map(drop)));
        if let Some(Some(Err(_))) = written {
            tracing::error!(code = "store_writer_panicked", "writer of the store panicked");
        }
        if matches!(executed, Some(None)) || matches!(written, Some(None)) {
            let waited = self.close_within;
            tracing::error!(code = "store_not_closed", directory = %self.lock.directory.display(), ?waited, "the store is not closed: its disk does not answer, or an erasure takes long");
            self.lock.leak();
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
