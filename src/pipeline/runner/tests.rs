use std::path::Path;

use super::*;
use crate::{
    config::{
        AgentSettings, LogFormat, OptionTable, OutboxSettings, SinkSettings, StageTable,
        UpdateSettings,
    },
    pipeline::{filter_chain::FilterChain, outbox::SinkRegistration},
    platform::SystemClock,
    stages::{
        sink::{Batch, Delivery, DeliveryFuture},
        source::{BadRow, GenerationId, Intake, Progress as Unread, Survey},
    },
};

/// Longer than any step of these tests takes: a test that waits for it has failed.
const LONG: Duration = Duration::from_secs(60);

/// A source with nothing to read, or one that panics.
struct EmptySource {
    panics: bool,
}

impl Source for EmptySource {
    fn label(&self) -> &'static str {
        "claude-sessions"
    }

    fn restore(
        &mut self,
        _rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        Ok(())
    }

    fn read(&mut self, _intake: &mut dyn Intake) -> Unread {
        assert!(!self.panics, "the source fails");
        Unread::Idle { next: LONG }
    }

    fn committed(&mut self) {}

    fn survey(&self) -> Survey {
        Survey::default()
    }
}

/// A sink with the same outcome for each batch, or one that panics.
struct FixedSink(Option<Delivery>);

impl Sink for FixedSink {
    fn deliver<'a>(&'a mut self, _batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async { self.0.clone().expect("the sink fails") })
    }
}

fn refused() -> Option<Delivery> {
    Some(Delivery::Retry { after: None, reason: "unreachable".into() })
}

fn pipeline(folder: &Path, panics: bool, answer: Option<Delivery>) -> Pipeline {
    let registration = SinkRegistration { name: "siem".into(), ..SinkRegistration::default() };
    Pipeline {
        sources: vec![("files".into(), Box::new(EmptySource { panics }))],
        stages: RecordStages::new(FilterChain::new(Vec::new()), Vec::new()),
        sinks: vec![("siem".into(), Box::new(FixedSink(answer)))],
        outbox: Arc::new(
            Outbox::open(&folder.join("outbox.redb"), &[registration], new_epoch).unwrap(),
        ),
        inbox: Arc::default(),
        config_status: SharedConfigStatus::default(),
        trust: Box::new(Default::default),
        update: Box::new(Default::default),
        identity: crate::test_context::context().identity,
        clock: Arc::new(SystemClock),
    }
}

/// Settings with an outbox of at most `max_bytes`.
fn settings(max_bytes: u64) -> Settings {
    Settings {
        hash: Digest::ZERO,
        agent: AgentSettings {
            state_dir: "/nowhere".into(),
            poll_interval: Duration::from_secs(300),
            log_format: LogFormat::Text,
            require_tls: false,
        },
        shipping: ShippingSettings {
            flush_interval: Duration::ZERO,
            ..ShippingSettings::default()
        },
        outbox: OutboxSettings { max_bytes, max_dead_letter_bytes: 1 << 20 },
        metrics_listen: None,
        pipeline: crate::config::PipelineSettings::default(),
        compliance: siem_protocol::managed::Compliance::default(),
        require_signature: true,
        managed_keys: Vec::new(),
        update: UpdateSettings::default(),
    }
}

fn start(pipeline: Pipeline, max_bytes: u64, until: Until) -> Running {
    pipeline.start(&settings(max_bytes), until, Box::new(|_| ()))
}

fn died(part: &str) -> Fault {
    Fault::Panicked(part.to_owned())
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    timeout(LONG, work).await.expect("it hangs")
}

#[tokio::test]
async fn catch_up_delivers_everything() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = pipeline(folder.path(), false, Some(Delivery::Acknowledged));
    let mut running = start(pipeline, 1 << 30, Until::CaughtUp);
    // `agent_started`, a heartbeat and `agent_stopped`.
    assert_eq!(in_time(running.catch_up(LONG)).await, Ok(3));
    running.stop().await;
}

/// It waited forever for space that only an unreachable receiver could free.
#[tokio::test]
async fn catch_up_gives_up_on_a_full_outbox_without_deliveries() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = pipeline(folder.path(), false, refused());
    let mut running = start(pipeline, 0, Until::CaughtUp);
    in_time(running.sinks.tasks[0].progress.wait_for(|progress| progress.problem.is_some()))
        .await
        .unwrap();
    let unfinished = in_time(running.catch_up(Duration::from_millis(20))).await.unwrap_err();
    assert!(matches!(unfinished, CatchUpError::Reading(_)), "{unfinished:?}");
    let message = unfinished.to_string();
    assert!(message.contains("sink `siem` delivers nothing: unreachable"), "{message}");
    running.stop().await;
}

#[tokio::test]
async fn catch_up_gives_up_on_a_store_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = pipeline(folder.path(), false, Some(Delivery::Acknowledged));
    pipeline.outbox.close();
    let mut running = start(pipeline, 1 << 30, Until::CaughtUp);
    let unfinished = in_time(running.catch_up(Duration::from_millis(20))).await.unwrap_err();
    let message = unfinished.to_string();
    assert!(message.starts_with("reading is stalled"), "{message}");
    assert!(message.contains("cannot open the outbox `"), "{message}");
    running.stop().await;
}

/// The agent kept running without reading, or reported that everything was delivered.
#[tokio::test]
async fn panic_of_the_ingest_thread_is_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    let acknowledged = || Some(Delivery::Acknowledged);
    let running = start(pipeline(folder.path(), true, acknowledged()), 1 << 30, Until::Stopped);
    assert_eq!(in_time(running.failed()).await, died("reading"));
    in_time(running.stop()).await;
    // The next pipeline can open the store.
    let mut running =
        start(pipeline(folder.path(), true, acknowledged()), 1 << 30, Until::CaughtUp);
    let unfinished = in_time(running.catch_up(LONG)).await;
    assert_eq!(unfinished, Err(died("reading").into()));
    in_time(running.stop()).await;
}

/// Delivery ended silently, and waiting for its end never finished and used a whole core.
#[tokio::test]
async fn panic_of_a_sink_is_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    let running = start(pipeline(folder.path(), false, None), 1 << 30, Until::Stopped);
    assert_eq!(in_time(running.failed()).await, died("sink `siem`"));
    in_time(running.stop()).await;
    let mut running = start(pipeline(folder.path(), false, None), 1 << 30, Until::CaughtUp);
    let unfinished = in_time(running.catch_up(LONG)).await;
    assert_eq!(unfinished, Err(died("sink `siem`").into()));
    assert_eq!(in_time(running.drain(LONG)).await, Err(died("sink `siem`").into()));
    in_time(running.stop()).await;
}

/// Settings with batches of one entry and a rate limit.
fn rate_limited(max_bytes_per_second: u64) -> Settings {
    let sink_settings = SinkSettings {
        max_bytes_per_second: Some(max_bytes_per_second),
        ..SinkSettings::default()
    };
    let table = StageTable {
        name: "siem".into(),
        stage: "taker".into(),
        enabled: true,
        sink_settings,
        options: OptionTable::from_toml(""),
    };
    let mut settings = settings(1 << 30);
    settings.pipeline.sinks.push(table);
    settings.shipping.batch_size = 1;
    settings
}

/// Each batch waits longer than the patience: a rate limit is not a stall.
#[tokio::test]
async fn catch_up_waits_for_a_rate_limit() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = pipeline(folder.path(), false, Some(Delivery::Acknowledged));
    let mut running = pipeline.start(&rate_limited(1 << 8), Until::CaughtUp, Box::new(|_| ()));
    assert_eq!(in_time(running.catch_up(Duration::from_millis(600))).await, Ok(3));
    running.stop().await;
}

/// The next batch is due in minutes; the shutdown does not wait for it.
#[tokio::test]
async fn shutdown_does_not_wait_for_a_rate_limit() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = pipeline(folder.path(), false, Some(Delivery::Acknowledged));
    let mut running = pipeline.start(&rate_limited(1), Until::Stopped, Box::new(|_| ()));
    in_time(running.sinks.tasks[0].progress.wait_for(|progress| progress.delivered == 1))
        .await
        .unwrap();
    running.report(Event::info("test", serde_json::json!({})));
    in_time(
        running.sinks.tasks[0].progress.wait_for(|progress| progress.rate_limited_until.is_some()),
    )
    .await
    .unwrap();
    let begun = Instant::now();
    running.stop().await;
    assert!(begun.elapsed() < DRAIN_TIMEOUT);
}

/// Settings with a flush interval of a day.
fn daily_flush() -> Settings {
    let mut settings = settings(1 << 30);
    settings.shipping.flush_interval = Duration::from_secs(86400);
    settings
}

#[tokio::test]
async fn flush_sends_queued_entries_and_none_that_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = pipeline(folder.path(), false, Some(Delivery::Acknowledged));
    let running = pipeline.start(&daily_flush(), Until::Stopped, Box::new(|_| ()));
    let view = running.handle();
    running.report(Event::info("test", serde_json::json!({})));
    in_time(running.outbox.watch().wait_for(|head| head.last_seq >= 2)).await.unwrap();
    assert_eq!(view.outbox().cursor("siem").unwrap().acknowledged.seq, 0);
    assert_eq!(in_time(view.flush(LONG)).await.unwrap(), 2);
    assert_eq!(in_time(view.flush(LONG)).await.unwrap(), 0);
    running.report(Event::info("test", serde_json::json!({})));
    in_time(running.outbox.watch().wait_for(|head| head.last_seq >= 3)).await.unwrap();
    let waiting = view.outbox().stats().unwrap();
    assert_eq!((waiting.entries, waiting.sinks[0].acknowledged), (1, 2));
    let (_, progress) = &view.sinks()[0];
    assert!(progress.acknowledged_at.is_some() && progress.problem.is_none());
    running.stop().await;
}

#[tokio::test]
async fn stalled_flush_names_the_reason_and_a_final_one_does_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = pipeline(folder.path(), false, refused());
    let running = pipeline.start(&daily_flush(), Until::Stopped, Box::new(|_| ()));
    let view = running.handle();
    in_time(running.outbox.watch().wait_for(|head| head.last_seq >= 1)).await.unwrap();
    let late = in_time(view.flush(Duration::from_millis(50))).await.unwrap_err();
    assert_eq!(
        late.to_string(),
        "sink `siem` has not acknowledged everything: 1 entry is queued, unreachable"
    );
    let (_, progress) = &view.sinks()[0];
    assert!(progress.retry_at.is_some() && progress.last_error.is_some() && !progress.is_held);
    assert!(in_time(view.ingest_status(LONG)).await.is_ok());
    let flushing = tokio::spawn({
        let view = view.clone();
        async move { view.flush(LONG).await.is_err() }
    });
    running.stop().await;
    assert!(in_time(flushing).await.unwrap());
    assert!(in_time(view.flush(LONG)).await.is_err());
    assert!(in_time(view.ingest_status(LONG)).await.is_err());
}

/// Refuses the first batch for an hour.
struct RecoveringSink {
    has_refused: bool,
}

impl Sink for RecoveringSink {
    fn deliver<'a>(&'a mut self, _batch: &'a Batch) -> DeliveryFuture<'a> {
        let after = Some(Duration::from_secs(3600));
        Box::pin(async move {
            match std::mem::replace(&mut self.has_refused, true) {
                false => Delivery::Retry { after, reason: "unreachable".into() },
                true => Delivery::Acknowledged,
            }
        })
    }
}

/// After the machine had slept, delivery waited for the rest of its delay.
#[tokio::test]
async fn resume_ends_a_delay_and_adds_a_heartbeat() {
    let folder = tempfile::tempdir().unwrap();
    let mut pipeline = pipeline(folder.path(), false, None);
    pipeline.sinks =
        vec![("siem".into(), Box::new(RecoveringSink { has_refused: false }) as Box<dyn Sink>)];
    let running = start(pipeline, 1 << 30, Until::Stopped);
    let mut progress = running.sinks.tasks[0].progress.clone();
    in_time(progress.wait_for(|progress| progress.problem.is_some())).await.unwrap();
    running.resume();
    // `agent_started` and the heartbeat.
    in_time(progress.wait_for(|progress| progress.acknowledged >= 2)).await.unwrap();
    running.stop().await;
}
