//! Runs a pipeline: the ingest thread, a task for each sink, and their end.

use std::{collections::HashSet, sync::Arc, thread, time::Duration};

use siem_protocol::{Digest, Identity};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    delivery::{Delivering, Ending, Progress},
    group::{Filling, Stages},
    ingest::{Inbox, Ingest, Report, Until},
    outbox::Outbox,
    room::Room,
};
use crate::{
    config::{Settings, Shipping},
    event::Event,
    frame::Codec,
    platform::Clock,
    stages::{Named, sink::Sink, source::Source},
    text::causes,
};

/// How long reading may take to end.
const READING_ENDS: Duration = Duration::from_millis(1500);
/// How long sinks may take to deliver what is left.
const DELIVERY_ENDS: Duration = Duration::from_secs(3);

/// What a pipeline is made of.
pub struct Pipeline {
    /// What reads, under the instances' names.
    pub sources: Vec<Named<dyn Source>>,
    /// What decides and enriches.
    pub stages: Stages,
    /// What delivers, under the instances' names.
    pub sinks: Vec<Named<dyn Sink>>,
    /// What lies between.
    pub outbox: Outbox,
    /// Wakes and stops reading; the sources were given its waker.
    pub inbox: Arc<Inbox>,
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
    reading: JoinHandle<()>,
    ending: watch::Sender<Ending>,
    sinks: Vec<(String, watch::Receiver<Progress>)>,
    deliveries: Vec<JoinHandle<()>>,
}

impl Pipeline {
    /// Starts to read and to deliver. `report` is told now and then what there is to read.
    #[must_use]
    pub fn start(self, settings: &Settings, until: Until, report: Report) -> Running {
        let outbox = Arc::new(self.outbox);
        let identity = Arc::new(self.identity);
        let (ending, _) = watch::channel(Ending::Running);
        // Frames are stored as the first sink likes them; the others encode anew.
        let codec = self.sinks.first().map_or(Codec::Zstd, |(_, sink)| sink.codec());
        let shipping = settings.shipping;
        let config = settings.config_hash();
        let filling = Filling::new(outbox.end(), config, shipping, codec);
        let mut deliveries = Vec::new();
        let sinks = self
            .sinks
            .into_iter()
            .map(|(name, sink)| {
                let (progress, watched) = watch::channel(Progress::default());
                let inbox = Arc::clone(&self.inbox);
                let delivering = Delivering {
                    name: name.clone(),
                    sink,
                    outbox: Arc::clone(&outbox),
                    identity: Arc::clone(&identity),
                    shipping,
                    max_dead_letter_bytes: settings.outbox.max_dead_letter_bytes,
                    clock: Arc::clone(&self.clock),
                    jitter: Box::new(fastrand::f64),
                    progress,
                    report: Arc::new(move |event: Event| inbox.report(event)),
                    new_epoch: Arc::new(new_epoch),
                };
                deliveries.push(tokio::spawn(delivering.run(ending.subscribe())));
                (name, watched)
            })
            .collect();
        let clock = self.clock;
        let ingest = Ingest {
            sources: self.sources,
            stages: self.stages,
            filling,
            outbox: Arc::clone(&outbox),
            room: Room::new(settings.outbox.max_bytes),
            inbox: Arc::clone(&self.inbox),
            clock: Arc::clone(&clock),
            heartbeat: settings.agent.poll_interval,
            jitter: Box::new(fastrand::f64),
            report,
            unstored: Vec::new(),
            held: HashSet::new(),
            failed: None,
            is_lost: false,
            is_beat_unstored: false,
            beat: Duration::ZERO,
            tidy: Duration::ZERO,
        };
        let reading = thread::Builder::new().name("ingest".into());
        let (done, finished) = tokio::sync::oneshot::channel();
        let spawned = reading.spawn(move || {
            ingest.run(until);
            // Nobody waits any more once the agent ends in a hurry.
            done.send(()).unwrap_or_default();
        });
        let reading = tokio::spawn(async move {
            match spawned {
                Ok(_) => drop(finished.await),
                Err(error) => tracing::error!(%error, "reading could not be started"),
            }
        });
        Running { inbox: self.inbox, outbox, clock, config, reading, ending, sinks, deliveries }
    }
}

/// The name of a new epoch: unique, and in the order of time.
#[must_use]
pub fn new_epoch() -> String {
    uuid::Uuid::now_v7().to_string()
}

impl Running {
    /// Adds an event to the entries.
    pub fn report(&self, event: Event) {
        self.inbox.report(event);
    }

    /// Waits until the store turns out to be damaged, which may be never.
    pub async fn damaged(&self) {
        let mut damage = self.outbox.watch_damage();
        if damage.wait_for(|damaged| *damaged).await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until reading has ended by itself.
    pub async fn read_out(&mut self) {
        drop((&mut self.reading).await);
    }

    /// Ends in order: sources stop, what was read is stored, sinks deliver what they can in 3 s.
    /// What is left stays in the outbox.
    pub async fn stop(mut self) {
        self.inbox.stop();
        if tokio::time::timeout(READING_ENDS, &mut self.reading).await.is_err() {
            tracing::warn!("reading did not end in time: what was not stored is read again");
        }
        self.ending.send_replace(Ending::Drained);
        let drained = async {
            for (_, sink) in &mut self.sinks {
                drop(sink.wait_for(|progress| progress.drained).await);
            }
        };
        if tokio::time::timeout(DELIVERY_ENDS, drained).await.is_err() {
            tracing::info!("not everything was delivered: the rest stays in the outbox");
        }
        self.finish().await;
    }

    /// Delivers everything that was read, and gives up when a sink does not get on for
    /// `patience`.
    ///
    /// # Errors
    /// The name of that sink and its trouble.
    pub async fn drain(mut self, patience: Duration) -> Result<u64, (String, String)> {
        self.ending.send_replace(Ending::Drained);
        let mut delivered = 0;
        for (name, sink) in &mut self.sinks {
            loop {
                let seen = sink.borrow_and_update().clone();
                if seen.drained {
                    delivered = delivered.max(seen.delivered);
                    break;
                }
                let moved = sink.wait_for(|progress| {
                    progress.drained || progress.acknowledged > seen.acknowledged
                });
                if tokio::time::timeout(patience, moved).await.is_err() {
                    let trouble = sink.borrow().trouble.clone();
                    let trouble = trouble.unwrap_or_else(|| "it takes too long".into());
                    return Err((name.clone(), trouble));
                }
            }
        }
        self.finish().await;
        Ok(delivered)
    }

    /// Stores what was reported after reading ended, for the next start to deliver, and copies the
    /// acknowledged offsets once more: that start may find the store damaged.
    async fn finish(self) {
        let Self { outbox, inbox, clock, config, deliveries, .. } = self;
        for delivery in deliveries {
            delivery.abort();
            drop(delivery.await);
        }
        let put_in_order = move |outbox: &Outbox| {
            outbox.back_up()?;
            outbox.shrink()?;
            let events = inbox.take_events();
            if events.is_empty() {
                return Ok(());
            }
            let shipping = Shipping::default();
            let mut filling = Filling::new(outbox.end(), config, shipping, Codec::Zstd);
            let now = clock.now();
            events.iter().for_each(|event| filling.event(event, now));
            outbox.commit(&filling.take(now))
        };
        let finished = tokio::task::spawn_blocking(move || {
            let done = put_in_order(&outbox);
            // A thread that is stuck must not come back to a file that the next agent has open.
            outbox.close();
            done
        });
        if let Ok(Err(failure)) = finished.await {
            tracing::warn!(cause = causes(&failure), "the outbox could not be put in order");
        }
    }
}
