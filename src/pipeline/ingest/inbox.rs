//! What wakes the ingest thread.

use std::{
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{IngestStatus, reconfigure::Reconfiguration};
use crate::{event::Event, pipeline::outbox::Outbox, stages::source::Waker};

/// IngestState on the outbox for which the thread comes to rest.
pub(super) type Job = Box<dyn FnOnce(&Outbox) + Send>;

/// What wakes the ingest thread, and what it is told.
#[derive(Default)]
pub struct Inbox {
    mail: Mutex<Mail>,
    wake: Condvar,
    stopped: AtomicBool,
    /// When the turn began that the thread is in, in milliseconds that the agent is up; zero while
    /// it waits.
    turn: AtomicU64,
}

#[derive(Default)]
struct Mail {
    events: Vec<Event>,
    /// In the group at hand, and not stored yet.
    unstored: Vec<Event>,
    /// In the group that is being stored.
    storing: Vec<Event>,
    /// How many files the sweep that came the furthest has seen.
    seen: u64,
    /// What is to take the place of parts of the thread's.
    exchange: Option<Box<Reconfiguration>>,
    /// Who wants to know how reading stands.
    asking: Vec<oneshot::Sender<IngestStatus>>,
    /// What is to be done while nothing is on its way to the store.
    jobs: Vec<Job>,
    /// When the thread began its last turn.
    turned: Option<Instant>,
    woken: bool,
    stop: bool,
}

impl Inbox {
    /// There may be something to read.
    pub fn wake(&self) {
        self.mail().woken = true;
        self.wake.notify_one();
    }

    /// Adds an event to the entries.
    pub fn report(&self, event: Event) {
        let mut mail = self.mail();
        mail.events.push(event);
        mail.woken = true;
        drop(mail);
        self.wake.notify_one();
    }

    /// Lets `exchange` take the place of what the thread works with, at its next border between two
    /// groups, and says when it has. One at a time: another that is not taken yet never will be.
    pub fn exchange(&self, mut exchange: Reconfiguration) -> oneshot::Receiver<()> {
        let (taken, is_taken) = oneshot::channel();
        exchange.taken = Some(taken);
        let mut mail = self.mail();
        mail.exchange = Some(Box::new(exchange));
        mail.woken = true;
        drop(mail);
        self.wake.notify_one();
        is_taken
    }

    /// Whether there is an exchange to take.
    pub(super) fn has_exchange(&self) -> bool {
        self.mail().exchange.is_some()
    }

    /// Takes the exchange.
    pub(super) fn take_exchange(&self) -> Option<Box<Reconfiguration>> {
        self.mail().exchange.take()
    }

    /// Asks how reading stands: answered between two turns, and while the thread waits.
    pub fn ask(&self) -> oneshot::Receiver<IngestStatus> {
        let (answer, answered) = oneshot::channel();
        let mut mail = self.mail();
        if !mail.stop {
            mail.asking.push(answer);
        }
        mail.woken = true;
        drop(mail);
        // Also whoever waits whatever comes.
        self.wake.notify_one();
        answered
    }

    /// Has `job` done by the thread while it has nothing on its way to the store: what is appended
    /// meanwhile makes nothing stale. Not done at all when reading ends before.
    pub fn at_rest<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Outbox) -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (done, is_done) = oneshot::channel();
        let mut mail = self.mail();
        if !mail.stop {
            // Whoever no longer waits does not want to know.
            mail.jobs.push(Box::new(move |outbox| drop(done.send(job(outbox)))));
        }
        mail.woken = true;
        drop(mail);
        self.wake.notify_one();
        is_done
    }

    /// How long ago the thread began its last turn; none before the first.
    pub fn since_turn(&self) -> Option<Duration> {
        self.mail().turned.map(|turned| turned.elapsed())
    }

    /// Notes that a turn begins, and takes who wants to know how reading stands.
    pub(super) fn turn(&self) -> Vec<oneshot::Sender<IngestStatus>> {
        let mut mail = self.mail();
        mail.turned = Some(Instant::now());
        mem::take(&mut mail.asking)
    }

    /// Whether there is a job to do.
    pub(super) fn has_jobs(&self) -> bool {
        !self.mail().jobs.is_empty()
    }

    /// Takes the jobs.
    pub(super) fn take_jobs(&self) -> Vec<Job> {
        mem::take(&mut self.mail().jobs)
    }

    /// What wakes it, for sources.
    pub fn waker(self: &Arc<Self>) -> Waker {
        let woken = Arc::clone(self);
        Arc::new(move || woken.wake())
    }

    /// Ends reading: what is in the group is stored, and the thread returns.
    pub fn stop(&self) {
        // Also seen in mid-group, where nobody reads mail.
        self.stopped.store(true, Ordering::Relaxed);
        let mut mail = self.mail();
        mail.stop = true;
        // Whoever waits for an answer that does not come any more is told so by this.
        let unheard = (mem::take(&mut mail.asking), mem::take(&mut mail.jobs));
        drop(mail);
        drop(unheard);
        self.wake.notify_one();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The thread begins to do something.
    pub(super) fn begins(&self, uptime: Duration) {
        let millis = u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX);
        self.turn.store(millis.max(1), Ordering::Relaxed);
    }

    /// Whether the thread waits for something to do, or began with what it does less than `limit`
    /// ago.
    pub fn gets_on(&self, uptime: Duration, limit: Duration) -> bool {
        let turn = self.turn.load(Ordering::Relaxed);
        turn == 0 || uptime.saturating_sub(Duration::from_millis(turn)) < limit
    }

    /// Waits for something to do, at most for `longest`.
    pub(super) fn wait(&self, longest: Duration) {
        self.turn.store(0, Ordering::Relaxed);
        let mail = self.mail();
        let idle = |mail: &mut Mail| !mail.woken && !mail.stop;
        let waited = self.wake.wait_timeout_while(mail, longest, idle);
        let (mut mail, _) = waited.unwrap_or_else(PoisonError::into_inner);
        mail.woken = false;
    }

    /// Waits for `longest` whatever comes, unless it is the end, or somebody asks: then it says so.
    pub(super) fn pause(&self, longest: Duration) -> bool {
        self.turn.store(0, Ordering::Relaxed);
        let goes_on = |mail: &mut Mail| !mail.stop && mail.asking.is_empty();
        let waited = self.wake.wait_timeout_while(self.mail(), longest, goes_on);
        let (mail, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !mail.stop && !mail.asking.is_empty()
    }

    /// Keeps an event that is in the group at hand until that is stored.
    pub(super) fn keep(&self, event: Event) {
        self.mail().unstored.push(event);
    }

    /// What is kept is in the group that is being stored now.
    pub(super) fn storing(&self) {
        let mut mail = self.mail();
        mail.storing = mem::take(&mut mail.unstored);
    }

    /// The group that was being stored is.
    pub(super) fn stored(&self) {
        self.mail().storing.clear();
    }

    /// The group that was being stored is not: what is in it is kept for another.
    pub(super) fn take_back(&self) {
        let mut mail = self.mail();
        let mut all = mem::take(&mut mail.storing);
        all.append(&mut mail.unstored);
        mail.unstored = all;
    }

    /// What is kept.
    pub(super) fn unstored(&self) -> Vec<Event> {
        self.mail().unstored.clone()
    }

    /// Takes all events that are not stored, when nobody reads any more.
    pub fn take_left(&self) -> Vec<Event> {
        let mut mail = self.mail();
        let mut left = mem::take(&mut mail.storing);
        left.append(&mut mail.unstored);
        left.append(&mut mail.events);
        left
    }

    /// Says that a sweep has seen so many files.
    pub(super) fn saw(&self, files: u64) {
        let mut mail = self.mail();
        mail.seen = mail.seen.max(files);
    }

    /// How many files the sweep that came the furthest has seen: the first may take long, and gets
    /// on though nothing is read.
    pub fn seen(&self) -> u64 {
        self.mail().seen
    }

    /// Takes the events that were reported and not added yet.
    pub fn take_events(&self) -> Vec<Event> {
        mem::take(&mut self.mail().events)
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody would start an agent anew that hangs, or everybody one that has nothing to do.
    #[test]
    fn a_turn_that_does_not_end_shows_and_waiting_is_none() {
        let inbox = Inbox::default();
        let (limit, later) = (Duration::from_secs(60), Duration::from_secs(3600));
        assert!(inbox.gets_on(later, limit), "nothing was begun");
        inbox.begins(Duration::ZERO);
        assert!(inbox.gets_on(Duration::from_secs(59), limit));
        assert!(!inbox.gets_on(Duration::from_secs(61), limit));
        inbox.pause(Duration::ZERO);
        assert!(inbox.gets_on(later, limit), "a disk that is full is no reason to die");
    }
}
