//! Runs a pipeline: the ingest thread, a task for each sink, and their end.

mod handle;
mod sink_tasks;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, thread, time::Duration};

pub use handle::{FlushError, IngestUnresponsive, PipelineHandle, RetryError};
use siem_protocol::{Digest, Identity};
use sink_tasks::SinkTasks;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    backpressure::Backpressure,
    config_status::SharedConfigStatus,
    delivery::{SinkControl, SinkProgress, StopMode},
    fault::{CatchUpError, Fault, Faults},
    group_builder::GroupBuilder,
    ingest::{Inbox, Ingest, IngestState, OnProgress, ReadProgress, Until, Writer},
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
        sink::{self, Sink},
        source::{Source, Waker},
    },
    text::causes,
};

/// How long reading may take to end.
const READING_ENDS: Duration = Duration::from_millis(1500);
/// How long sinks may take to deliver what is left.
const DELIVERY_ENDS: Duration = Duration::from_secs(3);
/// How often it is looked whether reading and delivery get on.
const LOOK: Duration = Duration::from_secs(1);

/// What a pipeline is made of.
pub struct Pipeline {
    /// What reads, under the instances' names.
    pub sources: Vec<Named<dyn Source>>,
    /// What decides and enriches.
    pub stages: RecordStages,
    /// What delivers, under the instances' names.
    pub sinks: Vec<Named<dyn Sink>>,
    /// What lies between.
    pub outbox: Outbox,
    /// Wakes and stops reading; the sources were given its waker.
    pub inbox: Arc<Inbox>,
    /// What became of configurations.
    pub config_status: SharedConfigStatus,
    /// Who the agent is.
    pub identity: Identity,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// A pipeline that runs.
pub struct Running {
    inbox: Arc<Inbox>,
    outbox: Arc<Outbox>,
    clock: Arc<dyn Clock>,
    config: Digest,
    /// Whether reading has ended; closed before that when its thread died.
    reading: watch::Receiver<bool>,
    /// How far reading is.
    read: watch::Receiver<ReadProgress>,
    sinks: SinkTasks,
    faults: Faults,
}

impl Pipeline {
    /// Starts to read and to deliver. `report` is told now and then what there is to read.
    #[must_use]
    pub fn start(self, settings: &Settings, until: Until, mut on_progress: OnProgress) -> Running {
        let outbox = Arc::new(self.outbox);
        let faults = Faults::new();
        faults.when(outbox.watch_damage(), Fault::OutboxDamaged);
        // Frames are stored as the first sink likes them; the others encode anew.
        let codec = self.sinks.first().map_or(Codec::Zstd, |(_, sink)| sink::codec(&**sink));
        let shipping = settings.shipping;
        let config = settings.config_hash();
        let builder = GroupBuilder::new(outbox.end(), config, shipping, codec);
        let clock = self.clock;
        let mut sinks = SinkTasks {
            tasks: Vec::new(),
            orders: orders(settings),
            sink_settings: sink_settings(settings),
            outbox: Arc::clone(&outbox),
            inbox: Arc::clone(&self.inbox),
            identity: Arc::new(self.identity),
            clock: Arc::clone(&clock),
            faults: faults.clone(),
            shown: sink_tasks::SinkHandles::default(),
        };
        self.sinks.into_iter().for_each(|(name, sink)| sinks.begin(name, sink));
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
            jitter: Box::new(fastrand::f64),
            on_progress: Box::new(move |read| {
                reads.send_replace(read);
                on_progress(read);
            }),
            state: IngestState::default(),
        };
        let (ended, reading) = watch::channel(false);
        let spawned = thread::Builder::new().name("ingest".into()).spawn(move || {
            ingest.run(until);
            ended.send_replace(true);
        });
        if let Err(error) = spawned {
            tracing::error!(code = "ingest_start_failed", %error, "reading could not be started");
        }
        faults.unless(reading.clone(), |has_ended| *has_ended, reading_died());
        Running { inbox: self.inbox, outbox, clock, config, reading, read, sinks, faults }
    }
}

fn orders(settings: &Settings) -> SinkControl {
    SinkControl::new(settings.shipping, settings.outbox.max_dead_letter_bytes)
}

/// How each sink is fed.
fn sink_settings(settings: &Settings) -> BTreeMap<String, SinkSettings> {
    settings.pipeline.sinks.iter().map(|table| (table.name.clone(), table.sink_settings)).collect()
}

/// The name of a new epoch: unique, and in the order of time.
#[must_use]
pub fn new_epoch() -> String {
    uuid::Uuid::now_v7().to_string()
}

fn reading_died() -> Fault {
    Fault::Panicked("reading".to_owned())
}

impl Running {
    /// Adds an event to the entries.
    pub fn report(&self, event: Event) {
        self.inbox.report(event);
    }

    /// Tells, for so long a time, whether reading gets on.
    pub fn pulse(&self) -> impl Fn(Duration) -> bool + Send + use<> {
        let (inbox, clock) = (Arc::clone(&self.inbox), Arc::clone(&self.clock));
        move |limit| inbox.is_responsive(clock.uptime(), limit)
    }

    /// What can be asked of it, by anybody and at any time.
    #[must_use]
    pub fn view(&self) -> PipelineHandle {
        PipelineHandle::new(&self.outbox, &self.inbox, &self.clock, &self.sinks.shown)
    }

    /// What wakes reading, for sources that are to take the place of others.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.inbox.waker()
    }

    /// Goes on under another configuration: what is read from now on is judged by it, and what was
    /// judged before is stored. Waits for that as long as the store fails.
    pub async fn reload(&mut self, reload: Reload) {
        let Reload { settings, reconfiguration, sinks } = reload;
        self.config = reconfiguration.config;
        // Gone without an answer when reading has ended, which is a fault or the end.
        self.inbox.reconfigure(reconfiguration).await.ok();
        self.sinks.replace(sinks, orders(&settings), sink_settings(&settings)).await;
    }

    /// Waits for what the pipeline can't go on with, which may never come.
    pub fn failed(&self) -> impl Future<Output = Fault> + Send + use<> {
        self.faults.first()
    }

    /// Reads everything once and delivers it; how many entries were delivered. Gives up when
    /// nothing gets on for `patience`. To be stopped afterwards in any case.
    ///
    /// # Errors
    /// [`CatchUpError`] says what keeps it.
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

    /// Ends in order: sources stop, what was read is stored, sinks deliver what they can in 3 s.
    /// What is left stays in the outbox. Events that could not be stored are given back, for the
    /// pipeline that follows.
    pub async fn stop(mut self) -> Vec<Event> {
        if !self.end_reading().await {
            tracing::warn!(
                code = "ingest_stop_timeout",
                "reading did not end in time: what was not stored is read again"
            );
        }
        self.sinks.end(StopMode::WhenDrained);
        let end = Instant::now() + DELIVERY_ENDS;
        let drained = async {
            for sink in &mut self.sinks.tasks {
                // One that may not send any more in time is not waited for.
                let is_done = |progress: &SinkProgress| {
                    progress.drained || progress.rate_limited_until.is_some_and(|until| until > end)
                };
                drop(sink.progress.wait_for(is_done).await);
            }
        };
        if timeout(DELIVERY_ENDS, drained).await.is_err() {
            tracing::info!(
                code = "delivery_incomplete",
                "not everything was delivered: the rest stays in the outbox"
            );
        }
        self.finish().await
    }

    /// Stops reading; whether it has ended in time.
    async fn end_reading(&mut self) -> bool {
        self.inbox.stop();
        timeout(READING_ENDS, self.reading.wait_for(|has_ended| *has_ended)).await.is_ok()
    }

    /// Waits until reading has ended by itself. A full outbox makes it wait for the sinks: as long
    /// as one of them gets on, so will reading.
    async fn read_out(&mut self, patience: Duration) -> Result<(), CatchUpError> {
        let (mut place, mut since) = (self.place(), Instant::now());
        loop {
            let ended = self.reading.wait_for(|has_ended| *has_ended);
            match timeout(LOOK.min(patience), ended).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => return Err(reading_died().into()),
                Err(_) => {}
            }
            let now = self.place();
            if now != place || self.is_paced() {
                (place, since) = (now, Instant::now());
            } else if since.elapsed() >= patience {
                return Err(CatchUpError::Reading(self.obstacles().await.join("; ")));
            }
        }
    }

    /// How far reading and each sink are.
    fn place(&self) -> (u64, u64, Vec<u64>) {
        let sinks = self.sinks.tasks.iter();
        let acknowledged = sinks.map(|sink| sink.progress.borrow().acknowledged);
        (self.inbox.swept_files(), self.read.borrow().read, acknowledged.collect())
    }

    /// Whether a sink waits only until it may send more.
    fn is_paced(&self) -> bool {
        self.sinks.tasks.iter().any(|sink| sink.progress.borrow().rate_limited_until.is_some())
    }

    /// Stops reading and says what keeps it, as far as that is known.
    async fn obstacles(&mut self) -> Vec<String> {
        let mut obstacles = Vec::new();
        if let Some(free) = self.outbox.free_space().filter(|free| Backpressure::is_low(*free)) {
            obstacles
                .push(format!("the disk of the outbox has {free} bytes free, which is too few"));
        }
        // Who reads tries again and again, and only the log knows why. When nobody reads any more,
        // an attempt of one's own tells the same.
        if self.end_reading().await {
            let (outbox, clock, config) =
                (Arc::clone(&self.outbox), Arc::clone(&self.clock), self.config);
            let attempt = tokio::task::spawn_blocking(move || {
                let shipping = ShippingSettings::default();
                let mut builder = GroupBuilder::new(outbox.end(), config, shipping, Codec::Zstd);
                outbox.commit(&builder.finish(clock.now()))
            });
            match timeout(READING_ENDS, attempt).await {
                // A new epoch that begins in between is no obstacle.
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
            if let Some(trouble) = &sink.progress.borrow().problem {
                obstacles.push(format!("sink `{}` takes nothing: {trouble}", sink.name));
            }
        }
        if obstacles.is_empty() {
            obstacles.push("it takes too long".to_owned());
        }
        obstacles
    }

    /// Delivers everything that was read.
    async fn drain(&mut self, patience: Duration) -> Result<u64, CatchUpError> {
        self.sinks.end(StopMode::WhenDrained);
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
                    // Nobody is there any more who would ever say that it is done.
                    Ok(false) => return Err(Fault::Panicked(format!("sink `{name}`")).into()),
                    // It waits for what is sure to come.
                    Err(_) if sink.borrow().rate_limited_until.is_some() => {}
                    Err(_) => {
                        let trouble = sink.borrow().problem.clone();
                        let trouble = trouble.unwrap_or_else(|| "it takes too long".into());
                        return Err(CatchUpError::Delivery { sink: name.clone(), trouble });
                    }
                }
            }
        }
        Ok(delivered)
    }

    /// Stores what was reported after reading ended, for the next start to deliver, and copies the
    /// acknowledged offsets once more: that start may find the store damaged.
    async fn finish(self) -> Vec<Event> {
        let Self { outbox, inbox, clock, config, sinks, .. } = self;
        sinks.abort().await;
        let put_in_order = move |outbox: &Outbox, events: &[Event]| {
            outbox.persist_acks()?;
            outbox.back_up()?;
            outbox.shrink(clock.uptime())?;
            if events.is_empty() {
                return Ok(());
            }
            let shipping = ShippingSettings::default();
            let mut builder = GroupBuilder::new(outbox.end(), config, shipping, Codec::Zstd);
            let now = clock.now();
            events.iter().for_each(|event| builder.add_event(event, now));
            outbox.commit(&builder.finish(now))
        };
        let finished = tokio::task::spawn_blocking(move || {
            let events = inbox.take_unstored_events();
            let done = put_in_order(&outbox, &events);
            // A thread that is stuck must not come back to a file that the next agent has open.
            outbox.close();
            done.map_err(|failure| (failure, events))
        });
        let Ok(Err((failure, events))) = finished.await else { return Vec::new() };
        tracing::warn!(
            code = "outbox_cleanup_failed",
            cause = causes(&failure),
            "the outbox could not be put in order"
        );
        events
    }
}
