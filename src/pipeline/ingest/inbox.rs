//! The inbox of the ingest thread: everything that other threads send to it.

use std::{
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::{super::group_life_cycle::GroupChange, IngestStatus, reconfigure::Reconfiguration};
use crate::{event::Event, pipeline::outbox::Outbox, stages::source::Waker};

/// Work on the outbox that runs while no group is being stored.
pub(super) type Job = Box<dyn FnOnce(&Outbox) + Send>;

/// Wakes, stops and instructs the ingest thread. Events in it outlive the thread.
#[derive(Default)]
pub struct Inbox {
    mail: Mutex<Mail>,
    wake: Condvar,
    /// Set once reading must end. Outside of `mail`, since it is also read between two chunks.
    stopped: AtomicBool,
    /// True if the thread waits for an acknowledgement.
    wakes_on_delivery: AtomicBool,
}

#[derive(Default)]
struct Mail {
    events: UnstoredEvents,
    /// Largest number of files that a sweep has seen.
    swept_files: u64,
    reconfiguration: Option<Box<Reconfiguration>>,
    status_requests: Vec<oneshot::Sender<IngestStatus>>,
    jobs: Vec<Job>,
    /// Current activity of the thread; `None` before its first step.
    activity: Option<Activity>,
    woken: bool,
    /// True if the machine has slept since the last step.
    has_slept: bool,
}

/// Events that are not stored, by the group that they are in.
#[derive(Default)]
struct UnstoredEvents {
    /// In no group yet.
    reported: Vec<Event>,
    /// In the open group.
    open: Vec<Event>,
    /// In the group that is being stored.
    storing: Vec<Event>,
}

impl UnstoredEvents {
    fn on_group_change(&mut self, change: GroupChange) {
        match change {
            GroupChange::Storing => self.storing = mem::take(&mut self.open),
            GroupChange::Stored { .. } => self.storing.clear(),
            GroupChange::Lost => {
                self.storing.append(&mut self.open);
                self.open = mem::take(&mut self.storing);
            }
        }
    }
}

/// An activity of the ingest thread, and the uptime at which it started.
#[derive(Clone, Copy, Debug)]
enum Activity {
    Step(Duration),
    Wait(Duration),
}

impl Inbox {
    /// Wakes the thread: there may be something to read.
    pub fn wake(&self) {
        self.deliver(|_| ());
    }

    /// Sets whether an acknowledgement wakes the thread.
    pub(super) fn wake_on_delivery(&self, wakes: bool) {
        self.wakes_on_delivery.store(wakes, Ordering::SeqCst);
    }

    /// Wakes the thread if it waits for an acknowledgement, of which there was one.
    pub fn delivered(&self) {
        if self.wakes_on_delivery.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Wakes the thread after the machine has slept: everything that waits for a time is due.
    pub fn resume(&self) {
        self.deliver(|mail| mail.has_slept = true);
    }

    pub(super) fn take_has_slept(&self) -> bool {
        mem::take(&mut self.mail().has_slept)
    }

    /// Adds an event to the entries.
    pub fn report(&self, event: Event) {
        self.deliver(|mail| mail.events.reported.push(event));
    }

    /// Replaces parts of the thread at the next border between two groups, and returns a receiver
    /// that is notified afterwards. A reconfiguration that is still pending is replaced.
    pub fn reconfigure(&self, mut reconfiguration: Reconfiguration) -> oneshot::Receiver<()> {
        let (applied, is_applied) = oneshot::channel();
        reconfiguration.applied = Some(applied);
        self.deliver(|mail| mail.reconfiguration = Some(Box::new(reconfiguration)));
        is_applied
    }

    pub(super) fn has_reconfiguration(&self) -> bool {
        self.mail().reconfiguration.is_some()
    }

    pub(super) fn take_reconfiguration(&self) -> Option<Box<Reconfiguration>> {
        self.mail().reconfiguration.take()
    }

    /// Requests the status of the thread, which answers between two steps and while it waits. The
    /// receiver fails when reading has ended.
    pub fn request_status(&self) -> oneshot::Receiver<IngestStatus> {
        let (answer, answered) = oneshot::channel();
        self.deliver(|mail| {
            if !self.is_stopped() {
                mail.status_requests.push(answer);
            }
        });
        answered
    }

    pub(super) fn take_status_requests(&self) -> Vec<oneshot::Sender<IngestStatus>> {
        mem::take(&mut self.mail().status_requests)
    }

    /// Runs `job` on the thread while no group is being stored, so that a group never starts before
    /// entries that the job appends. The receiver fails when reading ends before that.
    pub fn run_between_groups<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Outbox) -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (done, is_done) = oneshot::channel();
        self.deliver(|mail| {
            if !self.is_stopped() {
                // Fails when the client no longer waits.
                mail.jobs.push(Box::new(move |outbox| drop(done.send(job(outbox)))));
            }
        });
        is_done
    }

    pub(super) fn has_jobs(&self) -> bool {
        !self.mail().jobs.is_empty()
    }

    pub(super) fn take_jobs(&self) -> Vec<Job> {
        mem::take(&mut self.mail().jobs)
    }

    /// Returns a handle with which sources wake the thread.
    pub fn waker(self: &Arc<Self>) -> Waker {
        let inbox = Arc::clone(self);
        Arc::new(move || inbox.wake())
    }

    /// Ends reading: the open group is stored and the thread returns.
    pub fn stop(&self) {
        // Before the lock is taken: a thread that checks the flag under the lock sees it from then on.
        self.stopped.store(true, Ordering::Relaxed);
        let mut mail = self.mail();
        let unanswered = (mem::take(&mut mail.status_requests), mem::take(&mut mail.jobs));
        drop(mail);
        // Dropping the senders notifies the clients that no response will follow.
        drop(unanswered);
        self.wake.notify_one();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Records that the thread starts a step at `uptime`.
    pub(super) fn start_step(&self, uptime: Duration) {
        self.mail().activity = Some(Activity::Step(uptime));
    }

    /// Returns whether the thread waits, or started its current step less than `limit` ago.
    pub fn is_responsive(&self, uptime: Duration, limit: Duration) -> bool {
        match self.mail().activity {
            Some(Activity::Step(since)) => uptime.saturating_sub(since) < limit,
            Some(Activity::Wait(_)) | None => true,
        }
    }

    /// Returns the time since the thread started its current step; `None` before its first step.
    pub fn since_activity(&self, uptime: Duration) -> Option<Duration> {
        let (Activity::Step(since) | Activity::Wait(since)) = self.mail().activity?;
        Some(uptime.saturating_sub(since))
    }

    /// Waits until the thread is woken or stopped, at most for `longest`.
    pub(super) fn wait(&self, longest: Duration, uptime: Duration) {
        let mut mail = self.mail();
        mail.activity = Some(Activity::Wait(uptime));
        let is_idle = |mail: &mut Mail| !mail.woken && !self.is_stopped();
        let waited = self.wake.wait_timeout_while(mail, longest, is_idle);
        waited.unwrap_or_else(PoisonError::into_inner).0.woken = false;
    }

    /// Waits for `longest` even if the thread is woken. Returns `true` early if there are status
    /// requests to answer, and `false` early if reading must end.
    pub(super) fn pause(&self, longest: Duration, uptime: Duration) -> bool {
        let mut mail = self.mail();
        mail.activity = Some(Activity::Wait(uptime));
        let is_idle = |mail: &mut Mail| !self.is_stopped() && mail.status_requests.is_empty();
        let waited = self.wake.wait_timeout_while(mail, longest, is_idle);
        let (mail, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !self.is_stopped() && !mail.status_requests.is_empty()
    }

    /// Keeps an event of the open group until that is stored.
    pub(super) fn keep_open(&self, event: Event) {
        self.mail().events.open.push(event);
    }

    /// Returns the events of the open group.
    pub(super) fn open_events(&self) -> Vec<Event> {
        self.mail().events.open.clone()
    }

    pub(super) fn on_group_change(&self, change: GroupChange) {
        self.mail().events.on_group_change(change);
    }

    /// Takes all events that are not stored. Call after the thread has ended.
    pub fn take_unstored_events(&self) -> Vec<Event> {
        let UnstoredEvents { reported, open, storing } = mem::take(&mut self.mail().events);
        [storing, open, reported].concat()
    }

    /// Takes the events that are in no group yet.
    pub fn take_reported_events(&self) -> Vec<Event> {
        mem::take(&mut self.mail().events.reported)
    }

    /// Records that a sweep has seen `files` files.
    pub(super) fn note_swept_files(&self, files: u64) {
        let mut mail = self.mail();
        mail.swept_files = mail.swept_files.max(files);
    }

    /// Returns the largest number of files that a sweep has seen: the first sweep makes progress
    /// although nothing is read.
    pub fn swept_files(&self) -> u64 {
        self.mail().swept_files
    }

    fn deliver(&self, change: impl FnOnce(&mut Mail)) {
        let mut mail = self.mail();
        change(&mut mail);
        mail.woken = true;
        drop(mail);
        self.wake.notify_one();
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A watchdog that took waiting for a hang would restart an idle agent; one that did not notice
    /// a hang would never restart it.
    #[test]
    fn hanging_step_is_unresponsive_and_waiting_is_not() {
        let inbox = Inbox::default();
        let (limit, later) = (Duration::from_secs(60), Duration::from_secs(3600));
        assert!(inbox.is_responsive(later, limit), "before the first step");
        assert_eq!(inbox.since_activity(later), None);
        inbox.start_step(Duration::ZERO);
        assert!(inbox.is_responsive(Duration::from_secs(59), limit));
        assert!(!inbox.is_responsive(Duration::from_secs(61), limit));
        inbox.pause(Duration::ZERO, Duration::from_secs(61));
        assert!(inbox.is_responsive(later, limit), "a pause for a full disk is not a hang");
        assert_eq!(inbox.since_activity(Duration::from_secs(62)), Some(Duration::from_secs(1)));
    }

    #[test]
    fn lost_events_keep_their_order() {
        let inbox = Inbox::default();
        let event = |name| Event::info(name, serde_json::json!({}));
        inbox.keep_open(event("one"));
        inbox.on_group_change(GroupChange::Storing);
        inbox.keep_open(event("two"));
        inbox.on_group_change(GroupChange::Lost);
        inbox.report(event("three"));
        let names: Vec<_> = inbox.open_events().iter().map(|event| event.name).collect();
        assert_eq!(names, ["one", "two"]);
        let names: Vec<_> = inbox.take_unstored_events().iter().map(|event| event.name).collect();
        assert_eq!(names, ["one", "two", "three"]);
    }
}
