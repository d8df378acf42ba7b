//! The tasks of the sinks: begun, replaced while others run, and ended.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use siem_protocol::Identity;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};
use tracing::{error, info};

use super::{
    super::{
        delivery::{DeadLetterRetry, RateLimit, SinkControl, SinkProgress, SinkTask, StopMode},
        fault::{Fault, Faults},
        ingest::Inbox,
        orphaned_sinks,
        outbox::{Outbox, SinkRegistration},
    },
    new_epoch,
};
use crate::{
    config::SinkSettings, event::Event, platform::Clock, stages::sink::Sink, text::causes,
};

/// How long a store is left alone that can't be written.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// The tasks, and what new ones are begun with.
pub(super) struct SinkTasks {
    pub(super) tasks: Vec<RunningSink>,
    /// What a new task is told.
    pub(super) orders: SinkControl,
    /// How each sink is fed.
    pub(super) sink_settings: BTreeMap<String, SinkSettings>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) identity: Arc<Identity>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) faults: Faults,
    /// The tasks, for whoever asks.
    pub(super) shown: SinkHandles,
}

/// The tasks that there are at present, for whoever asks.
pub(super) type SinkHandles = Arc<Mutex<Vec<SinkHandle>>>;

/// A task as others see it.
#[derive(Clone)]
pub(super) struct SinkHandle {
    pub(super) name: String,
    pub(super) orders: watch::Sender<SinkControl>,
    pub(super) retries: mpsc::Sender<DeadLetterRetry>,
    pub(super) progress: watch::Receiver<SinkProgress>,
}

/// The task of one sink.
pub(super) struct RunningSink {
    pub(super) name: String,
    seat: SinkRegistration,
    orders: watch::Sender<SinkControl>,
    retries: mpsc::Sender<DeadLetterRetry>,
    /// Closed before everything is delivered when the task died.
    pub(super) progress: watch::Receiver<SinkProgress>,
    handle: JoinHandle<()>,
}

impl SinkTasks {
    /// Begins to deliver to a sink that has a place in the outbox.
    pub(super) fn begin(&mut self, name: String, sink: Box<dyn Sink>) {
        let (progress, watched) = watch::channel(SinkProgress::default());
        let (orders, told) = watch::channel(self.orders);
        let (retries, ordered) = mpsc::channel(1);
        let seat = self.seat(&name, Some(&*sink));
        let inbox = Arc::clone(&self.inbox);
        let limit = self
            .sink_settings
            .get(&name)
            .and_then(|sink_settings| sink_settings.max_bytes_per_second);
        let delivering = SinkTask {
            name: name.clone(),
            sink,
            outbox: Arc::clone(&self.outbox),
            identity: Arc::clone(&self.identity),
            rate_limit: limit.map(RateLimit::new),
            clock: Arc::clone(&self.clock),
            jitter: Box::new(fastrand::f64),
            progress,
            report: Arc::new(move |event: Event| inbox.report(event)),
            new_epoch: Arc::new(new_epoch),
        };
        let handle = tokio::spawn(delivering.run_with_retries(told, ordered));
        let death = Fault::Panicked(format!("sink `{name}`"));
        let is_done = |progress: &SinkProgress| progress.drained || progress.handed_over;
        self.faults.unless(watched.clone(), is_done, death);
        self.tasks.push(RunningSink { name, seat, orders, retries, progress: watched, handle });
        self.show();
    }

    fn show(&self) {
        let to_handle =
            |RunningSink { name, orders, retries, progress, .. }: &RunningSink| SinkHandle {
                name: name.clone(),
                orders: orders.clone(),
                retries: retries.clone(),
                progress: progress.clone(),
            };
        let handles = self.tasks.iter().map(to_handle).collect();
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = handles;
    }

    /// Tells every task how to end.
    pub(super) fn end(&self, stop: StopMode) {
        for task in &self.tasks {
            task.orders.send_modify(|orders| orders.stop = stop);
        }
    }

    /// Goes on with these sinks under these orders; where there is none for a name, the one that is
    /// there stays. Others go on from where the ones before them are.
    pub(super) async fn replace(
        &mut self,
        sinks: Vec<(String, Option<Box<dyn Sink>>)>,
        orders: SinkControl,
        sink_settings: BTreeMap<String, SinkSettings>,
    ) {
        (self.orders, self.sink_settings) = (orders, sink_settings);
        let stays = |task: &RunningSink| {
            sinks.iter().any(|(name, sink)| *name == task.name && sink.is_none())
        };
        let (stay, leave): (Vec<_>, Vec<_>) = self.tasks.drain(..).partition(stays);
        self.tasks = stay;
        for task in &self.tasks {
            task.orders.send_if_modified(|known| {
                let orders = SinkControl { flush: known.flush, ..orders };
                mem::replace(known, orders) != orders
            });
        }
        let had: Vec<SinkRegistration> =
            self.tasks.iter().chain(&leave).map(|task| task.seat.clone()).collect();
        for task in leave {
            task.orders.send_modify(|orders| orders.stop = StopMode::HandOver);
            // What it does with the store comes to its end before another goes on.
            drop(task.handle.await);
        }
        self.show();
        let seats: Vec<SinkRegistration> =
            sinks.iter().map(|(name, sink)| self.seat(name, sink.as_deref())).collect();
        if seats.len() != had.len() || seats.iter().any(|seat| !had.contains(seat)) {
            self.take_seats(seats).await;
        }
        for (name, sink) in sinks {
            if let Some(sink) = sink {
                info!(code = "sink_restarted", sink = name, "sink begins anew");
                self.begin(name, sink);
            }
        }
    }

    /// The place of a sink; without one, of the task of this name that stays.
    fn seat(&self, name: &str, sink: Option<&dyn Sink>) -> SinkRegistration {
        match (sink, self.tasks.iter().find(|task| task.name == name)) {
            (None, Some(task)) => task.seat.clone(),
            (sink, _) => SinkRegistration {
                name: name.to_owned(),
                destination: sink.and_then(Sink::destination),
                start: self.sink_settings.get(name).copied().unwrap_or_default().start,
            },
        }
    }

    async fn take_seats(&self, seats: Vec<SinkRegistration>) {
        loop {
            let (outbox, seats) = (Arc::clone(&self.outbox), seats.clone());
            match tokio::task::spawn_blocking(move || outbox.register_sinks(&seats)).await {
                Ok(Err(failure)) => {
                    error!(
                        code = "sink_registration_failed",
                        cause = causes(&failure),
                        "the outbox could not be told of other sinks"
                    );
                    sleep(STORE_RETRY).await;
                }
                Ok(Ok(())) | Err(_) => break,
            }
        }
        let (outbox, inbox) = (Arc::clone(&self.outbox), Arc::clone(&self.inbox));
        let tell = move || orphaned_sinks::report(&outbox, |event| inbox.report(event));
        drop(tokio::task::spawn_blocking(tell).await);
    }

    /// Ends all tasks where they are.
    pub(super) async fn abort(self) {
        for task in self.tasks {
            task.handle.abort();
            drop(task.handle.await);
        }
    }
}
