//! Calls of file systems that may never return, each with a limited time.
//!
//! A network home without its server, a FUSE file system without its process, or a permission dialog
//! of macOS block a call for as long as they like, and nothing can interrupt it. Such a call runs on a
//! helper thread. If it does not return in time, its caller continues with an error, and its *place*
//! does not answer: further calls there fail at once, so that one thread hangs for each place and not
//! one for each retry. Once the call has returned, the place answers again.
//!
//! A place is a path that answers as a whole: a directory of sessions, the target of a link, a file
//! with an account.

mod file;
mod latest;
mod places;

use std::{
    collections::{HashMap, VecDeque},
    fmt, io, mem,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use self::places::Places;
pub use self::{
    file::{BoundedFile, OpenedFile},
    latest::Latest,
    places::SilentPlace,
};
use super::{Clock, call_scope};

/// Time within which a call must return: longer than a disk or an automatic mount needs to start.
const LIMIT: Duration = Duration::from_secs(5);
/// Time within which a call must return while the agent stops.
const LIMIT_AT_STOP: Duration = Duration::from_millis(250);
/// Maximum number of changes that are kept until there is a listener.
const MAX_UNHEARD: usize = 100;
/// Size of the stack of a helper thread.
const STACK: usize = 512 << 10;
/// Size of the stack of a single call, which may parse what it reads: that of a main thread.
const STACK_OF_ONE: usize = 8 << 20;

/// Runs calls on helper threads. Clones share the threads and the places.
#[derive(Clone)]
pub struct BoundedCalls(Arc<Handle>);

/// Ends the helper threads when the last clone is dropped.
struct Handle(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    limit: Duration,
    state: Mutex<State>,
    /// Notified when a call is queued, or the helper threads end.
    queued: Condvar,
    /// Notified when a call has returned.
    returned: Condvar,
    /// Number of places that answered again.
    revived: AtomicU64,
}

#[derive(Default)]
struct State {
    places: Places,
    queue: VecDeque<QueuedCall>,
    /// Calls that have not returned, queued ones included.
    calls: HashMap<u64, Call>,
    next_id: u64,
    /// Number of helper threads that wait for a call.
    idle: usize,
    /// Objects to drop in places that do not answer, or where another object is being dropped.
    leftovers: HashMap<PathBuf, Leftovers>,
    listener: Option<Listener>,
    /// Changes since the start, until there is a listener.
    unheard: Vec<PlaceChange>,
    is_closed: bool,
    /// True if no caller waits for long any more.
    is_stopping: bool,
}

/// Objects to drop in one place.
#[derive(Default)]
struct Leftovers {
    objects: Vec<Box<dyn Send>>,
    /// True if a call that drops them is queued or running.
    is_dropping: bool,
}

type Listener = Arc<dyn Fn(&PlaceChange) + Send + Sync>;

struct QueuedCall {
    id: u64,
    run: Box<dyn FnOnce() + Send>,
}

struct Call {
    place: PathBuf,
    /// True if the call has set its place itself, and so has got there.
    is_reached: bool,
    is_overdue: bool,
}

/// A place that stopped to answer, or answers again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaceChange {
    /// A call has not returned in time.
    Silent(SilentPlace),
    /// All calls have returned.
    Answers(SilentPlace),
}

/// A call of a file system did not return in time, or was not made because an earlier one has not
/// returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoesNotAnswer {
    /// Place that does not answer.
    pub place: PathBuf,
}

impl DoesNotAnswer {
    /// Returns the reason of an error.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl fmt::Display for DoesNotAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("does not answer: a call of its file system has not returned")
    }
}

impl std::error::Error for DoesNotAnswer {}

impl From<DoesNotAnswer> for io::Error {
    fn from(error: DoesNotAnswer) -> Self {
        Self::new(io::ErrorKind::TimedOut, error)
    }
}

/// Path that a call is about at the moment, for a call about several.
#[derive(Clone)]
pub struct CurrentPlace {
    shared: Weak<Shared>,
    id: u64,
}

impl CurrentPlace {
    /// Sets the path: if the call does not return, this place does not answer. The one that was set
    /// before has answered.
    pub fn set(&self, path: &Path) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.lock();
        let State { calls, places, .. } = &mut *state;
        let Some(call) = calls.get_mut(&self.id).filter(|call| !call.is_overdue) else { return };
        let is_reached = mem::replace(&mut call.is_reached, true);
        if call.place != path {
            let before = mem::replace(&mut call.place, path.to_owned());
            if is_reached {
                places.add_answer(&before);
            }
        }
    }
}

/// A call that was begun.
pub struct PendingCall<T> {
    shared: Arc<Shared>,
    id: u64,
    begun: Duration,
    limit: Duration,
    result: Arc<Mutex<Option<thread::Result<T>>>>,
}

/// State of a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Polled<T> {
    /// It has returned.
    Done(T),
    /// It has not returned yet.
    Waiting,
    /// It has not returned in time.
    Overdue(DoesNotAnswer),
}

impl BoundedCalls {
    /// Creates a runner without threads; they start with the first call.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::with_limit(clock, LIMIT)
    }

    /// Creates a runner with another limit for a call.
    #[must_use]
    pub fn with_limit(clock: Arc<dyn Clock>, limit: Duration) -> Self {
        Self(Arc::new(Handle(Arc::new(Shared {
            clock,
            limit,
            state: Mutex::default(),
            queued: Condvar::new(),
            returned: Condvar::new(),
            revived: AtomicU64::new(0),
        }))))
    }

    /// Runs `call` on a helper thread and waits for its result. What `call` returns too late is
    /// dropped there.
    ///
    /// # Errors
    /// [`DoesNotAnswer`] as [`io::Error`], or the error of the call.
    ///
    /// # Panics
    /// If `call` panics.
    pub fn run<T: Send + 'static>(
        &self,
        place: &Path,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.run_with(place, |_| call())
    }

    /// Same as [`run`](Self::run) for a call that sets the place that it is about.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Panics
    /// If `call` panics.
    pub fn run_with<T: Send + 'static>(
        &self,
        place: &Path,
        call: impl FnOnce(&CurrentPlace) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let mut pending = self.begin(place, call)?;
        match pending.poll(pending.limit) {
            Polled::Done(result) => result,
            Polled::Waiting => Err(DoesNotAnswer { place: place.to_owned() }.into()),
            Polled::Overdue(error) => Err(error.into()),
        }
    }

    /// Begins `call` on a helper thread; it may set the place that it is about.
    ///
    /// # Errors
    /// [`DoesNotAnswer`] if an earlier call there has not returned; the error of the system if no
    /// thread can be started.
    pub fn begin<T: Send + 'static>(
        &self,
        place: &Path,
        call: impl FnOnce(&CurrentPlace) -> T + Send + 'static,
    ) -> io::Result<PendingCall<T>> {
        let shared = &self.0.0;
        let result = Arc::new(Mutex::new(None));
        let mut state = shared.lock();
        let limit = state.places.admit(place, shared.limit)?;
        if state.idle <= state.queue.len() {
            drop(state);
            shared.spawn()?;
            state = shared.lock();
        }
        let id = state.next_id;
        let current = CurrentPlace { shared: Arc::downgrade(shared), id };
        let run = {
            let result = Arc::clone(&result);
            let call = with_faults_of_this_thread(move || call(&current));
            Box::new(move || {
                let returned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
                *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(returned);
            })
        };
        state.add(place, run);
        drop(state);
        shared.queued.notify_one();
        let begun = shared.clock.uptime();
        Ok(PendingCall { shared: Arc::clone(shared), id, begun, limit, result })
    }

    /// Runs `action` on this thread. Calls that it makes with
    /// [`in_scope`](call_scope::in_scope) have a limited time.
    pub fn scope<T>(&self, action: impl FnOnce() -> T) -> T {
        let calls = self.clone();
        let run = move |place: &Path, call: Box<dyn FnOnce() + Send>| {
            calls.run(place, move || {
                call();
                Ok(())
            })
        };
        call_scope::with(Rc::new(run), action)
    }

    /// Returns true if a call in `place` has not returned, in time or not.
    #[must_use]
    pub fn is_busy(&self, place: &Path) -> bool {
        self.0.0.lock().calls.values().any(|call| call.place == place)
    }

    /// Drops an object on a helper thread, since that closes a file and may block. Does not wait.
    pub fn discard(&self, place: &Path, object: impl Send + 'static) {
        let shared = &self.0.0;
        let mut state = shared.lock();
        let is_silent = state.places.is_silent(place);
        let leftovers = state.leftovers.entry(place.to_owned()).or_default();
        leftovers.objects.push(Box::new(object));
        drop(state);
        if !is_silent {
            shared.drop_leftovers(place);
        }
    }

    /// Calls `listener` with each change, from any thread; with those of before if it is the first.
    pub fn listen(&self, listener: impl Fn(&PlaceChange) + Send + Sync + 'static) {
        let listener: Listener = Arc::new(listener);
        let mut state = self.0.0.lock();
        state.listener = Some(Arc::clone(&listener));
        let unheard = mem::take(&mut state.unheard);
        drop(state);
        unheard.iter().for_each(|change| listener(change));
    }

    /// Returns the places that do not answer, each with the time for which a call has not returned.
    #[must_use]
    pub fn silent(&self) -> Vec<(PathBuf, Duration)> {
        let now = self.0.0.clock.uptime();
        let silent = self.0.0.lock().places.silent();
        silent.into_iter().map(|place| (place.path, now.saturating_sub(place.since))).collect()
    }

    /// Returns how many times a place answered again.
    #[must_use]
    pub fn revived(&self) -> u64 {
        self.0.0.revived.load(Ordering::Relaxed)
    }

    /// Makes callers wait for a quarter of a second only, since the agent stops.
    pub fn stop_waiting(&self) {
        self.0.0.lock().is_stopping = true;
        self.0.0.returned.notify_all();
    }
}

#[cfg(test)]
impl BoundedCalls {
    /// Creates a runner for which `place` does not answer until the sender is dropped.
    pub(crate) fn with_silent(place: &Path) -> (Self, mpsc::Sender<()>) {
        let calls = Self::with_limit(Arc::new(super::SystemClock), Duration::from_millis(100));
        let (release, released) = mpsc::channel::<()>();
        let hang = move || {
            released.recv().unwrap_or_default();
            Ok(())
        };
        assert!(calls.run(place, hang).is_err());
        (calls, release)
    }
}

impl fmt::Debug for BoundedCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundedCalls").field("silent", &self.silent()).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.queued.notify_all();
    }
}

impl State {
    fn add(&mut self, place: &Path, run: Box<dyn FnOnce() + Send>) {
        let id = self.next_id;
        self.next_id += 1;
        let call = Call { place: place.to_owned(), is_reached: false, is_overdue: false };
        self.calls.insert(id, call);
        self.queue.push_back(QueuedCall { id, run });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a helper thread, which counts as idle.
    fn spawn(self: &Arc<Self>) -> io::Result<()> {
        let shared = Arc::clone(self);
        self.lock().idle += 1;
        let spawned = thread::Builder::new()
            .name("file-system".into())
            .stack_size(STACK)
            .spawn(move || shared.help());
        if let Err(error) = spawned {
            self.lock().idle -= 1;
            return Err(error);
        }
        Ok(())
    }

    /// Runs calls until the runner is dropped.
    fn help(self: Arc<Self>) {
        let mut state = self.lock();
        loop {
            let Some(QueuedCall { id, run }) = state.queue.pop_front() else {
                // One thread waits for the next call; more are needed only while calls hang.
                if state.is_closed || state.idle > 2 {
                    state.idle -= 1;
                    return;
                }
                state = self.queued.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.idle -= 1;
            let is_last = state.idle == 0;
            drop(state);
            if is_last {
                // The next one is started here, so that it has the priority of this thread and not
                // that of a caller in the background. If that fails, the next call tries again.
                drop(self.spawn());
            }
            run();
            self.record_return(id);
            state = self.lock();
            state.idle += 1;
        }
    }

    fn record_return(self: &Arc<Self>, id: u64) {
        let mut state = self.lock();
        let Some(Call { place, is_overdue, .. }) = state.calls.remove(&id) else { return };
        if !is_overdue {
            state.places.add_answer(&place);
            drop(state);
            self.returned.notify_all();
            return;
        }
        let revived = state.places.remove_overdue(&place);
        drop(state);
        self.returned.notify_all();
        if let Some(revived) = revived {
            self.revived.fetch_add(1, Ordering::Relaxed);
            self.drop_leftovers(&place);
            self.notify(PlaceChange::Answers(revived));
        }
    }

    fn record_overdue(&self, state: &mut State, id: u64, since: Duration) -> Option<PlaceChange> {
        let Call { place, is_overdue, .. } = state.calls.get_mut(&id)?;
        if mem::replace(is_overdue, true) {
            return None;
        }
        state.places.add_overdue(place, since).map(PlaceChange::Silent)
    }

    fn notify(&self, change: PlaceChange) {
        let mut state = self.lock();
        match state.listener.clone() {
            Some(listener) => {
                drop(state);
                listener(&change);
            }
            None if state.unheard.len() < MAX_UNHEARD => state.unheard.push(change),
            None => {}
        }
    }

    /// Drops the objects that were discarded in a place, on a helper thread.
    fn drop_leftovers(self: &Arc<Self>, place: &Path) {
        let mut state = self.lock();
        if state.leftovers.get(place).is_none_or(|leftovers| leftovers.is_dropping) {
            return;
        }
        if state.idle <= state.queue.len() {
            drop(state);
            // Without a thread they are dropped with the next ones.
            if self.spawn().is_err() {
                return;
            }
            state = self.lock();
        }
        // Another thread may have begun meanwhile.
        let leftovers = state.leftovers.get_mut(place);
        let Some(leftovers) = leftovers.filter(|leftovers| !leftovers.is_dropping) else { return };
        leftovers.is_dropping = true;
        let (shared, its_place) = (Arc::downgrade(self), place.to_owned());
        let run = move || {
            while let Some(shared) = shared.upgrade() {
                let mut state = shared.lock();
                let leftovers = state.leftovers.get_mut(&its_place);
                let next = leftovers.and_then(|leftovers| leftovers.objects.pop());
                if next.is_none() {
                    state.leftovers.remove(&its_place);
                    return;
                }
                drop(state);
                drop(next);
            }
        };
        state.add(place, Box::new(run));
        drop(state);
        self.queued.notify_one();
    }
}

impl<T> PendingCall<T> {
    /// Waits for the result, at most for `wait`. Must not be called again once it is done.
    ///
    /// # Panics
    /// If the call has panicked.
    pub fn poll(&mut self, wait: Duration) -> Polled<T> {
        let begun = Instant::now();
        let mut state = self.shared.lock();
        while state.calls.contains_key(&self.id) {
            let wait = if state.is_stopping { wait.min(LIMIT_AT_STOP) } else { wait };
            let rest = wait.saturating_sub(begun.elapsed());
            if rest.is_zero() {
                return self.poll_unreturned(state, wait);
            }
            let waited = self.shared.returned.wait_timeout(state, rest);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        match result {
            Some(Ok(result)) => Polled::Done(result),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Polled::Waiting,
        }
    }

    fn poll_unreturned(&self, mut state: MutexGuard<'_, State>, waited: Duration) -> Polled<T> {
        let is_stopping = state.is_stopping;
        let limit = if is_stopping { self.limit.min(LIMIT_AT_STOP) } else { self.limit };
        let is_over =
            waited >= limit || self.shared.clock.uptime().saturating_sub(self.begun) >= limit;
        let call = state.calls.get(&self.id);
        let place = call.map(|call| call.place.clone()).unwrap_or_default();
        if !is_over {
            return match is_stopping {
                true => Polled::Overdue(DoesNotAnswer { place }),
                false => Polled::Waiting,
            };
        }
        let change = self.shared.record_overdue(&mut state, self.id, self.begun);
        drop(state);
        // A quarter of a second is no reason to report a place.
        if let Some(change) = change.filter(|_| !is_stopping) {
            self.shared.notify(change);
        }
        Polled::Overdue(DoesNotAnswer { place })
    }
}

/// Runs a single `call` of this process on a thread of its own, and waits for its result.
///
/// # Errors
/// [`DoesNotAnswer`] as [`io::Error`] after `limit`; the error of the system if no thread can be
/// started.
pub fn run_once<T: Send + 'static>(
    place: &Path,
    limit: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, result) = mpsc::sync_channel(1);
    // The receiver may have given up.
    let run = move || drop(sender.send(call()));
    thread::Builder::new().name("file-system".into()).stack_size(STACK_OF_ONE).spawn(run)?;
    result.recv_timeout(limit).map_err(|_| DoesNotAnswer { place: place.to_owned() }.into())
}

/// Makes `call` meet the faults that a test injected into this thread.
#[cfg(all(test, unix))]
fn with_faults_of_this_thread<T>(call: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let fault = super::faults::current();
    move || super::faults::with(fault, call)
}

#[cfg(not(all(test, unix)))]
fn with_faults_of_this_thread<T>(call: impl FnOnce() -> T) -> impl FnOnce() -> T {
    call
}

#[cfg(test)]
mod tests;
