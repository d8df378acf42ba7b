//! Follows changes of the configuration while a pipeline runs: from the server, from files, and by
//! order of a client or SIGHUP.

use std::{future::pending, mem, pin::Pin, time::Duration};

use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::{
    compliance_monitor::ComplianceMonitor,
    config_manager::ConfigManager,
    file_watch::{Change, INTERVAL, INTERVAL_WHILE_CHANGING},
    handle::{Orders, ReloadOrder, ReloadOutcome, ReloadReply, ReloadReport},
    managed_config::Candidate,
    poll_schedule::PollSchedule,
    sleep_detector::SleepDetector,
};
use crate::{
    pipeline::{config_status::ConfigOrigin, runner::Running},
    platform::memory,
    siem::{FetchError, FetchedConfig},
};

/// Timeout of the first request for the managed configuration, which precedes all reading.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of later requests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

type Request = Pin<Box<dyn Future<Output = Result<FetchedConfig, FetchError>> + Send>>;

/// Applies the managed configuration before any session log is read: the stored one immediately, or
/// else the server's first response. Returns the time until the next request.
///
/// With `once` a request is always made, since there will be no later one.
pub(super) async fn start(manager: &mut ConfigManager, once: bool) -> Duration {
    manager.read_highest_serial();
    if !once && manager.restore_managed() {
        return Duration::ZERO;
    }
    let Some(request) = request(manager, FIRST_REQUEST_TIMEOUT) else { return Duration::MAX };
    let (outcome, candidate) = manager.evaluate(request.await);
    match candidate {
        Some(candidate) => {
            info!(revision = candidate.revision, "managed configuration was applied");
            manager.start_with(candidate);
        }
        None if once => {
            manager.restore_managed();
        }
        None => {}
    }
    let interval = manager.loaded.settings.agent.poll_interval;
    PollSchedule::default().next(outcome, interval, fastrand::f64())
}

fn request(manager: &ConfigManager, within: Duration) -> Option<Request> {
    let (server, etag) = manager.manager()?;
    Some(Box::pin(async move { server.managed_config(etag.as_deref(), within).await }))
}

/// Follows changes of the configuration while one pipeline runs.
pub(super) struct ConfigUpdates<'a> {
    running: &'a mut Running,
    manager: &'a mut ConfigManager,
    monitor: &'a mut ComplianceMonitor,
    orders: &'a mut Orders,
    schedule: PollSchedule,
    next_request: Option<Instant>,
    request: Option<Request>,
    next_inspection: Instant,
    sleep: SleepDetector,
    /// Clients that wait for the server's part of their reload.
    clients: Vec<(ReloadReply, ReloadOutcome)>,
}

/// Event that the update loop handles next.
enum Trigger {
    Stop,
    Order(ReloadOrder),
    Inspect,
    Request,
    Fetched(Result<FetchedConfig, FetchError>),
}

impl<'a> ConfigUpdates<'a> {
    /// Follows changes; the first request to the server is made after `first`.
    pub(super) fn new(
        running: &'a mut Running,
        manager: &'a mut ConfigManager,
        monitor: &'a mut ComplianceMonitor,
        orders: &'a mut Orders,
        first: Duration,
    ) -> Self {
        manager.watch_named();
        let now = Instant::now();
        let sleep = SleepDetector::new(&*manager.context.clock);
        Self {
            running,
            manager,
            monitor,
            orders,
            schedule: PollSchedule::default(),
            next_request: now.checked_add(first),
            request: None,
            next_inspection: now + INTERVAL,
            sleep,
            clients: Vec::new(),
        }
    }

    /// Runs until the agent receives the order to stop.
    pub(super) async fn run(mut self) {
        loop {
            let goes_on = match self.next().await {
                Trigger::Stop => false,
                Trigger::Order(order) => self.reload(order).await,
                Trigger::Inspect => self.inspect().await,
                Trigger::Request => {
                    self.start_request();
                    true
                }
                Trigger::Fetched(fetched) => self.apply_fetched(fetched).await,
            };
            if !goes_on {
                return;
            }
        }
    }

    async fn next(&mut self) -> Trigger {
        let Orders { reloads, stop } = &mut *self.orders;
        tokio::select! {
            () = stop.given() => Trigger::Stop,
            Some(order) = reloads.recv() => Trigger::Order(order),
            () = sleep_until(self.next_inspection) => Trigger::Inspect,
            () = at(self.next_request), if self.request.is_none() => Trigger::Request,
            fetched = answer(&mut self.request) => Trigger::Fetched(fetched),
        }
    }

    async fn reload(&mut self, order: ReloadOrder) -> bool {
        let client = match order {
            ReloadOrder::Client(reply) => {
                info!(code = "reload_by_command", "reloading the configuration, by a command");
                Some(reply)
            }
            ReloadOrder::HangUp => {
                info!(code = "reload_by_signal", "reloading the configuration, by SIGHUP");
                None
            }
        };
        let candidate = self.manager.read_files_by_order();
        self.request_soon();
        self.manager.handle.check_for_update();
        let goes_on = self.apply(candidate, ConfigOrigin::Files).await;
        self.clients.extend(client.map(|reply| (reply, self.manager.outcome.clone())));
        goes_on
    }

    async fn inspect(&mut self) -> bool {
        if self.sleep.has_slept(&*self.manager.context.clock) {
            self.resume();
        }
        let stamps = self.manager.stamps();
        let change = self.manager.watch.compare(&stamps);
        let pause = match change {
            Change::InProgress => INTERVAL_WHILE_CHANGING,
            Change::None | Change::Complete => INTERVAL,
        };
        self.next_inspection = Instant::now() + pause;
        for event in self.manager.files.inspect() {
            self.running.report(event);
        }
        self.check_compliance();
        if change != Change::Complete {
            return true;
        }
        info!(code = "config_files_changed", "configuration files have changed");
        let candidate = self.manager.read_changed_files(stamps);
        self.request_soon();
        self.apply(candidate, ConfigOrigin::Files).await
    }

    /// Checks everything that waits for a time, after the machine has slept.
    fn resume(&mut self) {
        info!(code = "resumed_after_sleep", "the machine has slept: everything is checked now");
        self.running.resume();
        self.monitor.read_again();
        self.request_soon();
        self.manager.handle.check_for_update();
    }

    /// Schedules a request to the server after the files were read: an earlier one may have failed
    /// because of a token that is now fixed.
    fn request_soon(&mut self) {
        (self.request, self.next_request) = (None, Some(Instant::now()));
    }

    fn start_request(&mut self) {
        self.request = request(self.manager, REQUEST_TIMEOUT);
        if self.request.is_none() {
            self.next_request = None;
            self.reply(None);
        }
    }

    async fn apply_fetched(&mut self, fetched: Result<FetchedConfig, FetchError>) -> bool {
        self.request = None;
        let (outcome, candidate) = self.manager.evaluate(fetched);
        let interval = self.manager.loaded.settings.agent.poll_interval;
        let pause = self.schedule.next(outcome, interval, fastrand::f64());
        self.next_request = Instant::now().checked_add(pause);
        let goes_on = self.apply(candidate, ConfigOrigin::Server).await;
        self.reply(Some(self.manager.outcome.clone()));
        goes_on
    }

    /// Puts a candidate in force, if there is one. Returns false when the agent receives the order to
    /// stop meanwhile.
    async fn apply(&mut self, candidate: Option<Candidate>, from: ConfigOrigin) -> bool {
        let goes_on = self.put_in_force(candidate, from).await;
        // A configuration takes a multiple of its size while it is read, and twice while it replaces
        // another.
        memory::release_free();
        goes_on
    }

    async fn put_in_force(&mut self, candidate: Option<Candidate>, from: ConfigOrigin) -> bool {
        let waker = self.running.waker();
        let reload = candidate.and_then(|candidate| self.manager.replace(candidate, from, &waker));
        for event in self.manager.take_events() {
            self.running.report(event);
        }
        self.manager.watch_named();
        let Some(reload) = reload else { return true };
        tokio::select! {
            () = self.running.reload(reload) => {}
            () = self.orders.stop.given() => return false,
        }
        self.manager.mark_applied();
        self.check_compliance();
        let revision = self.manager.context.revision.get();
        let hash = self.manager.loaded.settings.config_hash().to_string();
        info!(code = "config_applied", revision, hash, "configuration is in force");
        true
    }

    fn check_compliance(&mut self) {
        let ConfigManager { loaded, files, .. } = &mut *self.manager;
        for event in self.monitor.check(&loaded.settings, files) {
            self.running.report(event);
        }
    }

    /// Sends the outcome to the clients that wait for it.
    fn reply(&mut self, server: Option<ReloadOutcome>) {
        for (reply, files) in mem::take(&mut self.clients) {
            // A client that has disconnected needs no reply.
            reply.send(ReloadReport { files, server: server.clone() }).ok();
        }
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => pending().await,
    }
}

async fn answer(request: &mut Option<Request>) -> Result<FetchedConfig, FetchError> {
    match request {
        Some(request) => request.await,
        None => pending().await,
    }
}
