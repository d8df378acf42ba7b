//! Runs a pipeline: starts the ingest thread and a task for each sink, and ends them.

mod handle;
mod sink_tasks;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

pub use handle::{PipelineHandle, RetryError};
use siem_protocol::{Digest, Identity};
use sink_tasks::SinkTasks;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    backpressure::Backpressure,
    config_status::SharedConfigStatus,
    delivery::{RefusedEntries, SinkControl, SinkProgress, StopMode},
    fault::{CatchUpError, Fault, Faults},
    group_builder::GroupBuilder,
    ingest::{
        Inbox, Ingest, IngestState, OnProgress, ReadProgress, TrustReporter, Until, UpdateReporter,
        Writer,
    },
    orphaned_sinks,
    outbox::{Outbox, OutboxError},
    record_stages::RecordStages,
    reload::Reload,
};
use crate::{
    config::{Settings, ShippingSettings, SinkSettings},
    event::Event,
    frame::Codec,
    platform::Clock,
    stages::{
        Named,
        enricher::Enricher,
        sink::{self, Sink},
        source::{Source, Waker},
    },
    text::causes,
};

/// Time within which reading must end.
const INGEST_STOP_TIMEOUT: Duration = Duration::from_millis(1500);
/// Time that sinks have to deliver the rest.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// Interval at which the progress of reading and delivery is checked.
const PROGRESS_CHECK: Duration = Duration::from_secs(1);

/// The parts of a pipeline.
pub struct Pipeline {
    /// Sources, under their instance names.
    pub sources: Vec<Named<dyn Source>>,
    /// Filters and enrichers.
    pub stages: RecordStages,
    /// Sinks, under their instance names.
    pub sinks: Vec<Named<dyn Sink>>,
    /// The outbox between them.
    pub outbox: Arc<Outbox>,
    /// Inbox of the ingest thread. The sources have its waker.
    pub inbox: Arc<Inbox>,
    /// Status of the configuration.
    pub config_status: SharedConfigStatus,
    /// Trust between device and receivers.
    pub trust: TrustReporter,
    /// State of updates.
    pub update: UpdateReporter,
    /// Identity of the agent.
    pub identity: Identity,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// A running pipeline.
pub struct Running {
    inbox: Arc<Inbox>,
    outbox: Arc<Outbox>,
    clock: Arc<dyn Clock>,
    config: Digest,
    /// True if reading has ended; closed before that if its thread has panicked.
    reading: watch::Receiver<bool>,
    /// Progress of reading.
    read: watch::Receiver<ReadProgress>,
    /// Enrichers of the ingest thread, once it has ended.
    enrichers: Arc<Mutex<Vec<Named<dyn Enricher>>>>,
    sinks: SinkTasks,
    faults: Faults,
}

impl Pipeline {
    /// Starts to read and to deliver. `on_progress` regularly receives the progress of catching up.
    #[must_use]
    pub fn start(self, settings: &Settings, until: Until, mut on_progress: OnProgress) -> Running {
        let outbox = self.outbox;
        let inbox = Arc::clone(&self.inbox);
        outbox.on_acknowledged(Box::new(move || inbox.delivered()));
        let faults = Faults::new();
        faults.when(outbox.watch_damage(), Fault::OutboxDamaged);
        // Frames are stored in the encoding of the first sink; the others encode them again.
        let codec = self.sinks.first().map_or(Codec::Zstd, |(_, sink)| sink::codec(&**sink));
        let shipping = settings.shipping;
        let config = settings.config_hash();
        let builder = GroupBuilder::new(outbox.end(), config, shipping, codec);
        let clock = self.clock;
        let mut sinks = SinkTasks {
            tasks: Vec::new(),
            control: sink_control(settings),
            sink_settings: sink_settings(settings),
            outbox: Arc::clone(&outbox),
            inbox: Arc::clone(&self.inbox),
            identity: Arc::new(self.identity),
            clock: Arc::clone(&clock),
            faults: faults.clone(),
            handles: sink_tasks::SinkHandles::default(),
        };
        self.sinks.into_iter().for_each(|(name, sink)| sinks.start(name, sink));
        let (reads, read) = watch::channel(ReadProgress::default());
        let ingest = Ingest {
            sources: self.sources,
            stages: self.stages,
            builder,
            writer: Writer::new(Arc::clone(&outbox), codec),
            outbox: Arc::clone(&outbox),
            backpressure: Backpressure::new(settings.outbox.max_bytes),
            inbox: Arc::clone(&self.inbox),
            clock: Arc::clone(&clock),
            heartbeat: settings.agent.poll_interval,
            config_status: self.config_status,
            trust: self.trust,
            update: self.update,
            jitter: Box::new(fastrand::f64),
            on_progress: Box::new(move |read| {
                reads.send_replace(read);
                on_progress(read);
            }),
            state: IngestState::default(),
        };
        let (ended, reading) = watch::channel(false);
        let enrichers = Arc::new(Mutex::new(Vec::new()));
        let last_enrichers = Arc::clone(&enrichers);
        let spawned = thread::Builder::new().name("ingest".into()).spawn(move || {
            let enrichers = ingest.run(until);
            *last_enrichers.lock().unwrap_or_else(PoisonError::into_inner) = enrichers;
            ended.send_replace(true);
        });
        if let Err(error) = spawned {
            tracing::error!(code = "ingest_start_failed", %error, "cannot start the ingest thread");
        }
        faults.unless(reading.clone(), |has_ended| *has_ended, ingest_panicked());
        Running {
            inbox: self.inbox,
            outbox,
            clock,
            config,
            reading,
            read,
            enrichers,
            sinks,
            faults,
        }
    }
}

fn sink_control(settings: &Settings) -> SinkControl {
    SinkControl::new(settings.shipping, settings.outbox.max_dead_letter_bytes)
}

/// Returns the settings of each sink.
fn sink_settings(settings: &Settings) -> BTreeMap<String, SinkSettings> {
    settings.pipeline.sinks.iter().map(|table| (table.name.clone(), table.sink_settings)).collect()
}

/// Returns the name of a new epoch: unique, and ordered by time.
#[must_use]
pub fn new_epoch() -> String {
    uuid::Uuid::now_v7().to_string()
}

fn ingest_panicked() -> Fault {
    Fault::Panicked("reading".to_owned())
}

impl Running {
    /// Adds an event to the entries.
    pub fn report(&self, event: Event) {
        self.inbox.report(event);
    }

    /// Makes sources, delivery and the heartbeat check at once what they wait for: after the machine has
    /// slept, their waits would be too long.
    pub fn resume(&self) {
        self.inbox.resume();
        self.sinks.resume();
    }

    /// Returns a function that tells whether the ingest thread is responsive: whether its current
    /// step takes less than the given time.
    pub fn liveness_probe(&self) -> impl Fn(Duration) -> bool + Send + use<> {
        let (inbox, clock) = (Arc::clone(&self.inbox), Arc::clone(&self.clock));
        move |limit| inbox.is_responsive(clock.uptime(), limit)
    }

    /// Returns a handle for other parts of the agent.
    #[must_use]
    pub fn handle(&self) -> PipelineHandle {
        PipelineHandle::new(&self.outbox, &self.inbox, &self.clock, &self.sinks.handles)
    }

    /// Returns the waker of the ingest thread, for new sources.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.inbox.waker()
    }

    /// Applies another configuration: everything read before is stored under the previous one. Waits
    /// as long as the store fails.
    pub async fn reload(&mut self, reload: Reload) {
        let Reload { settings, reconfiguration, sinks } = reload;
        self.config = reconfiguration.config;
        // Fails when reading has ended, by a fault or at shutdown.
        self.inbox.reconfigure(reconfiguration).await.ok();
        self.sinks.replace(sinks, sink_control(&settings), sink_settings(&settings)).await;
    }

    /// Waits for a fault, possibly forever.
    pub fn failed(&self) -> impl Future<Output = Fault> + Send + use<> {
        self.faults.first()
    }

    /// Returns a function that counts the entries that receivers have refused, also after
    /// [`stop`](Self::stop).
    pub fn refusals(&self) -> impl Fn() -> RefusedEntries + use<> {
        let progress = self.sinks.tasks.iter().map(|sink| sink.progress.clone());
        let progress: Vec<_> = progress.collect();
        move || {
            let mut refused = RefusedEntries::default();
            progress.iter().for_each(|sink| refused += sink.borrow().refused);
            refused
        }
    }

    /// Reads everything once and delivers it. Returns the number of delivered entries. Gives up
    /// without progress for `patience`. Call [`stop`](Self::stop) afterwards in any case.
    ///
    /// # Errors
    /// [`CatchUpError`] names the obstacle.
    pub async fn catch_up(&mut self, patience: Duration) -> Result<u64, CatchUpError> {
        let fault = self.faults.first();
        let work = async {
            self.read_out(patience).await?;
            self.drain(patience).await
        };
        tokio::select! {
            biased;
            fault = fault => Err(fault.into()),
            done = work => done,
        }
    }

    /// Shuts down: sources stop, everything read is stored, and sinks deliver what they can in 3 s.
    /// The rest stays in the outbox. Returns the events that could not be stored, for the next
    /// pipeline.
    pub async fn stop(mut self) -> Vec<Event> {
        if !self.end_reading().await {
            tracing::warn!(
                code = "ingest_stop_timeout",
                "reading did not end in time: records that are not stored will be read again"
            );
        }
        self.sinks.stop_all(StopMode::WhenDrained);
        let end = Instant::now() + DRAIN_TIMEOUT;
        let drained = async {
            for sink in &mut self.sinks.tasks {
                // A sink that waits for longer by itself, as for its rate limit, is not waited for.
                let is_done = |progress: &SinkProgress| {
                    progress.drained || progress.waits_until().is_some_and(|until| until > end)
                };
                drop(sink.progress.wait_for(is_done).await);
            }
        };
        if timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::info!(
                code = "delivery_incomplete",
                "not everything was delivered: the rest remains in the outbox"
            );
        }
        self.finish().await
    }

    /// Stops reading. Returns whether it has ended in time.
    async fn end_reading(&mut self) -> bool {
        self.inbox.stop();
        timeout(INGEST_STOP_TIMEOUT, self.reading.wait_for(|has_ended| *has_ended)).await.is_ok()
    }

    /// Waits until reading has ended without a stop request. With a full outbox, reading waits
    /// for the sinks: it makes progress as long as one of them does.
    async fn read_out(&mut self, patience: Duration) -> Result<(), CatchUpError> {
        let (mut position, mut since) = (self.position(), Instant::now());
        loop {
            let ended = self.reading.wait_for(|has_ended| *has_ended);
            match timeout(PROGRESS_CHECK.min(patience), ended).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => return Err(ingest_panicked().into()),
                Err(_) => {}
            }
            let now = self.position();
            if now != position || self.is_paced() {
                (position, since) = (now, Instant::now());
            } else if since.elapsed() >= patience {
                return Err(CatchUpError::Reading(self.obstacles().await.join("; ")));
            }
        }
    }

    /// Returns how far reading and each sink are.
    fn position(&self) -> (u64, u64, Vec<u64>) {
        let sinks = self.sinks.tasks.iter();
        let acknowledged = sinks.map(|sink| sink.progress.borrow().acknowledged);
        (self.inbox.swept_files(), self.read.borrow().read, acknowledged.collect())
    }

    /// Returns whether a sink waits although nothing is wrong, as for its rate limit.
    fn is_paced(&self) -> bool {
        self.sinks.tasks.iter().any(|sink| sink.progress.borrow().waits_until().is_some())
    }

    /// Stops reading and returns the known obstacles.
    async fn obstacles(&mut self) -> Vec<String> {
        let mut obstacles = Vec::new();
        if let Some(free) = self.outbox.free_space().filter(|free| Backpressure::is_low(*free)) {
            obstacles.push(format!("the disk of the outbox has only {free} bytes free"));
        }
        // The ingest thread retries and only logs the cause. Once it has ended, an attempt here fails
        // with the same cause.
        if self.end_reading().await {
            let (outbox, clock, config) =
                (Arc::clone(&self.outbox), Arc::clone(&self.clock), self.config);
            let attempt = tokio::task::spawn_blocking(move || {
                let shipping = ShippingSettings::default();
                let mut builder = GroupBuilder::new(outbox.end(), config, shipping, Codec::Zstd);
                outbox.commit(&builder.finish(clock.now()))
            });
            match timeout(INGEST_STOP_TIMEOUT, attempt).await {
                // A new epoch that starts in between is not an obstacle.
                Ok(Ok(Err(failure))) if !matches!(failure, OutboxError::Stale { .. }) => {
                    obstacles.push(causes(&failure));
                }
                _ => {}
            }
        }
        for sink in self.outbox.orphaned_sinks().iter().flatten() {
            obstacles.push(orphaned_sinks::obstacle(sink));
        }
        for sink in &self.sinks.tasks {
            if let Some(problem) = &sink.progress.borrow().problem {
                obstacles.push(format!("sink `{}` delivers nothing: {problem}", sink.name));
            }
        }
        if obstacles.is_empty() {
            obstacles.push("no progress in time".to_owned());
        }
        obstacles
    }

    /// Waits until everything that was read is delivered.
    async fn drain(&mut self, patience: Duration) -> Result<u64, CatchUpError> {
        self.sinks.stop_all(StopMode::WhenDrained);
        let mut delivered = 0;
        for sink_tasks::RunningSink { name, progress: sink, .. } in &mut self.sinks.tasks {
            loop {
                let seen = sink.borrow_and_update().clone();
                if seen.drained {
                    delivered = delivered.max(seen.delivered);
                    break;
                }
                let moved = sink.wait_for(|progress| {
                    progress.drained || progress.acknowledged > seen.acknowledged
                });
                let moved = timeout(patience, moved).await.map(|moved| moved.is_ok());
                match moved {
                    Ok(true) => {}
                    // The task has panicked and will never report its end.
                    Ok(false) => return Err(Fault::Panicked(format!("sink `{name}`")).into()),
                    // It continues by itself.
                    Err(_) if sink.borrow().waits_until().is_some() => {}
                    Err(_) => {
                        let problem = sink.borrow().problem.clone();
                        let problem = problem.unwrap_or_else(|| "no progress in time".into());
                        return Err(CatchUpError::Delivery { sink: name.clone(), problem });
                    }
                }
            }
        }
        Ok(delivered)
    }

    /// Stores the events that were reported after reading ended, for the next start to deliver, and
    /// copies the acknowledged offsets once more, in case that start finds the store damaged.
    async fn finish(self) -> Vec<Event> {
        let Self { outbox, inbox, clock, config, enrichers, sinks, .. } = self;
        sinks.abort().await;
        let clean_up = move |outbox: &Outbox, events: &[Event]| {
            outbox.persist_acks()?;
            outbox.back_up()?;
            outbox.shrink(clock.uptime())?;
            if events.is_empty() {
                return Ok(());
            }
            let shipping = ShippingSettings::default();
            let mut builder = GroupBuilder::new(outbox.end(), config, shipping, Codec::Zstd);
            let now = clock.now();
            let enrichers = &mut *enrichers.lock().unwrap_or_else(PoisonError::into_inner);
            events.iter().for_each(|event| builder.add_event(event, enrichers, now));
            outbox.commit(&builder.finish(now))
        };
        let finished = tokio::task::spawn_blocking(move || {
            let events = inbox.take_unstored_events();
            let done = clean_up(&outbox, &events);
            // A stuck thread must not write to a file that the next agent has open.
            outbox.close();
            done.map_err(|failure| (failure, events))
        });
        let Ok(Err((failure, events))) = finished.await else { return Vec::new() };
        tracing::warn!(
            code = "outbox_cleanup_failed",
            cause = causes(&failure),
            "cannot clean up the outbox"
        );
        events
    }
}
