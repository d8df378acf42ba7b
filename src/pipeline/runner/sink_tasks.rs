//! The tasks of the sinks: starts, replaces and ends them.

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

/// Pause after the outbox could not be written.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// The tasks, and the parameters of new ones.
pub(super) struct SinkTasks {
    pub(super) tasks: Vec<RunningSink>,
    /// Control of new tasks.
    pub(super) control: SinkControl,
    /// Settings of each sink.
    pub(super) sink_settings: BTreeMap<String, SinkSettings>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) identity: Arc<Identity>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) faults: Faults,
    /// Handles to the current tasks.
    pub(super) handles: SinkHandles,
}

/// Handles to the current tasks, shared with [`PipelineHandle`](super::PipelineHandle).
pub(super) type SinkHandles = Arc<Mutex<Vec<SinkHandle>>>;

/// A handle to a task.
#[derive(Clone)]
pub(super) struct SinkHandle {
    pub(super) name: String,
    pub(super) control: watch::Sender<SinkControl>,
    pub(super) retries: mpsc::Sender<DeadLetterRetry>,
    pub(super) progress: watch::Receiver<SinkProgress>,
}

/// The task of one sink.
pub(super) struct RunningSink {
    pub(super) name: String,
    registration: SinkRegistration,
    control: watch::Sender<SinkControl>,
    retries: mpsc::Sender<DeadLetterRetry>,
    /// Closed before everything is delivered if the task has panicked.
    pub(super) progress: watch::Receiver<SinkProgress>,
    handle: JoinHandle<()>,
}

impl SinkTasks {
    /// Starts to deliver to a sink that is registered in the outbox.
    pub(super) fn start(&mut self, name: String, sink: Box<dyn Sink>) {
        let (progress, watched) = watch::channel(SinkProgress::default());
        let (control, controlled) = watch::channel(self.control);
        let (retries, ordered) = mpsc::channel(1);
        let registration = self.registration(&name, Some(&*sink));
        let inbox = Arc::clone(&self.inbox);
        let limit = self
            .sink_settings
            .get(&name)
            .and_then(|sink_settings| sink_settings.max_bytes_per_second);
        let task = SinkTask {
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
        let handle = tokio::spawn(task.run_with_retries(controlled, ordered));
        let fault = Fault::Panicked(format!("sink `{name}`"));
        let is_done = |progress: &SinkProgress| progress.drained || progress.handed_over;
        self.faults.unless(watched.clone(), is_done, fault);
        self.tasks.push(RunningSink {
            name,
            registration,
            control,
            retries,
            progress: watched,
            handle,
        });
        self.publish_handles();
    }

    fn publish_handles(&self) {
        let to_handle =
            |RunningSink { name, control, retries, progress, .. }: &RunningSink| SinkHandle {
                name: name.clone(),
                control: control.clone(),
                retries: retries.clone(),
                progress: progress.clone(),
            };
        let handles = self.tasks.iter().map(to_handle).collect();
        *self.handles.lock().unwrap_or_else(PoisonError::into_inner) = handles;
    }

    /// Ends the current pause of every task.
    pub(super) fn resume(&self) {
        for task in &self.tasks {
            task.control.send_modify(|control| control.resumptions += 1);
        }
    }

    /// Makes every task end according to `stop`.
    pub(super) fn stop_all(&self, stop: StopMode) {
        for task in &self.tasks {
            task.control.send_modify(|control| control.stop = stop);
        }
    }

    /// Replaces the sinks and the control of all. A sink of `None` keeps its running task; a new one
    /// continues from the cursor of its predecessor.
    pub(super) async fn replace(
        &mut self,
        sinks: Vec<(String, Option<Box<dyn Sink>>)>,
        control: SinkControl,
        sink_settings: BTreeMap<String, SinkSettings>,
    ) {
        (self.control, self.sink_settings) = (control, sink_settings);
        let stays = |task: &RunningSink| {
            sinks.iter().any(|(name, sink)| *name == task.name && sink.is_none())
        };
        let (stay, leave): (Vec<_>, Vec<_>) = self.tasks.drain(..).partition(stays);
        self.tasks = stay;
        for task in &self.tasks {
            task.control.send_if_modified(|known| {
                let SinkControl { flush, resumptions, .. } = *known;
                let control = SinkControl { flush, resumptions, ..control };
                mem::replace(known, control) != control
            });
        }
        let had: Vec<SinkRegistration> =
            self.tasks.iter().chain(&leave).map(|task| task.registration.clone()).collect();
        for task in leave {
            task.control.send_modify(|control| control.stop = StopMode::HandOver);
            // Its last write to the store must finish before its successor starts.
            drop(task.handle.await);
        }
        self.publish_handles();
        let registrations: Vec<SinkRegistration> =
            sinks.iter().map(|(name, sink)| self.registration(name, sink.as_deref())).collect();
        if registrations.len() != had.len()
            || registrations.iter().any(|registration| !had.contains(registration))
        {
            self.register_sinks(registrations).await;
        }
        for (name, sink) in sinks {
            if let Some(sink) = sink {
                info!(code = "sink_restarted", sink = name, "sink restarted");
                self.start(name, sink);
            }
        }
    }

    /// Returns the registration of a sink, or without one that of the running task of this name.
    fn registration(&self, name: &str, sink: Option<&dyn Sink>) -> SinkRegistration {
        match (sink, self.tasks.iter().find(|task| task.name == name)) {
            (None, Some(task)) => task.registration.clone(),
            (sink, _) => SinkRegistration {
                name: name.to_owned(),
                destination: sink.and_then(Sink::destination),
                start: self.sink_settings.get(name).copied().unwrap_or_default().start,
            },
        }
    }

    async fn register_sinks(&self, registrations: Vec<SinkRegistration>) {
        loop {
            let (outbox, registrations) = (Arc::clone(&self.outbox), registrations.clone());
            match tokio::task::spawn_blocking(move || outbox.register_sinks(&registrations)).await {
                Ok(Err(failure)) => {
                    error!(
                        code = "sink_registration_failed",
                        cause = causes(&failure),
                        "cannot register the sinks in the outbox"
                    );
                    sleep(STORE_RETRY).await;
                }
                Ok(Ok(())) | Err(_) => break,
            }
        }
        let (outbox, inbox) = (Arc::clone(&self.outbox), Arc::clone(&self.inbox));
        let report = move || orphaned_sinks::report(&outbox, |event| inbox.report(event));
        drop(tokio::task::spawn_blocking(report).await);
    }

    /// Aborts all tasks.
    pub(super) async fn abort(self) {
        for task in self.tasks {
            task.handle.abort();
            drop(task.handle.await);
        }
    }
}
