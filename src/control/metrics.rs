//! Metrics of the agent for Prometheus. The names are listed in `docs/status.md`.
//!
//! Nothing is counted for them: each request reads what the agent knows anyway.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use metrics_endpoint::{
    Exposition, Labelled, Limits, MetricsAddress, MetricsListener, MetricsServer, Render,
    Rendering, serve,
};
use siem_protocol::agent_event::{ConfigSummary, ReceiverTrust};
use tokio::{task::spawn_blocking, time::timeout};
use tracing::{info, warn};

use super::service::STATUS_TIMEOUT;
use crate::{
    agent::AgentHandle,
    pipeline::{
        accounting::{Share, Totals},
        delivery::SinkProgress,
        ingest::IngestStatus,
        outbox::{Outbox, OutboxStats, SinkStats},
        runner::PipelineHandle,
    },
    platform::{Timestamp, memory},
    text::causes,
};

/// Digits of the configuration's hash that are shown.
const HASH_DIGITS: usize = 16;

/// Starts to serve the metrics of an agent at `address`, if there is one. On an error it logs a warning,
/// and the agent works without.
pub(crate) async fn serve_metrics(
    address: Option<MetricsAddress>,
    agent: AgentHandle,
) -> Option<MetricsServer> {
    let listener = match MetricsListener::bind(&address?).await {
        Ok(listener) => listener,
        Err(error) => {
            let error = causes(&error);
            warn!(code = "metrics_unavailable", error, "cannot serve metrics");
            return None;
        }
    };
    if let Ok(address) = listener.address() {
        info!(code = "metrics_served", %address, "serving metrics at `/metrics`");
    }
    Some(serve(listener, Arc::new(AgentMetrics::new(agent)), Limits::default()))
}

/// Metrics of a running agent.
struct AgentMetrics {
    agent: AgentHandle,
    /// True while a thread reads figures of the outbox.
    is_outbox_read: Arc<AtomicBool>,
}

impl Render for AgentMetrics {
    fn render(&self) -> Rendering<'_> {
        Box::pin(async { self.figures().await.text() })
    }
}

impl AgentMetrics {
    fn new(agent: AgentHandle) -> Self {
        Self { agent, is_outbox_read: Arc::default() }
    }

    async fn figures(&self) -> Exposition {
        let (loaded, context) = self.agent.in_force();
        let now = context.clock.now();
        let mut figures = Exposition::default();
        let version = label("version", crate::version::version());
        figures.gauges("ai_agent_build_info", "Version of the agent.", [(vec![version], 1.0)]);
        let started = seconds(self.agent.started_at());
        let help = "Time of the start, in seconds since 1970.";
        figures.gauge("process_start_time_seconds", help, started);
        if let Some(bytes) = memory::resident() {
            let help = "Resident memory of the agent.";
            figures.gauge("process_resident_memory_bytes", help, float(bytes));
        }
        let pipeline = self.agent.pipeline().ok();
        let help = "1 while records are read and delivered, 0 during a start, restart or stop.";
        figures.gauge("ai_agent_running", help, flag(pipeline.is_some()));
        add_config(&mut figures, &self.agent.config_summary(now));
        if let Some(pipeline) = pipeline {
            let limit = loaded.settings.outbox.max_bytes;
            let (trust, is_read) = (context.trust.all(), &self.is_outbox_read);
            add_pipeline(&mut figures, &pipeline, is_read, &trust, limit, now).await;
        }
        figures
    }
}

fn add_config(figures: &mut Exposition, config: &ConfigSummary) {
    if let Some(applied) = &config.applied {
        let hash: String = applied.hash.to_string().chars().take(HASH_DIGITS).collect();
        let revision = applied.revision.as_deref().unwrap_or_default();
        let labels = vec![label("hash", hash), label("revision", revision)];
        let help = "Start of the hash of the configuration in force, and its managed revision.";
        figures.gauges("ai_agent_config_info", help, [(labels, 1.0)]);
    }
    let help = "1 if the last configuration from some origin was refused.";
    figures.gauge("ai_agent_config_refused", help, flag(config.refused.is_some()));
    if let Some(age) = config.signed_age_seconds {
        let help = "Time since the last signed response of the server.";
        figures.gauge("ai_agent_config_signed_age_seconds", help, float(age));
    }
}

/// Resets a flag when it is dropped.
struct ResetOnDrop(Arc<AtomicBool>);

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Returns the figures of the outbox if it responds. While a disk that hangs keeps a thread that reads
/// them, no other one is started.
async fn outbox_stats(outbox: Arc<Outbox>, is_read: &Arc<AtomicBool>) -> Option<OutboxStats> {
    if is_read.swap(true, Ordering::AcqRel) {
        return None;
    }
    let reset = ResetOnDrop(Arc::clone(is_read));
    let read = move || {
        let _reset = reset;
        outbox.stats()
    };
    timeout(STATUS_TIMEOUT, spawn_blocking(read)).await.ok()?.ok()?.ok()
}

async fn add_pipeline(
    figures: &mut Exposition,
    pipeline: &PipelineHandle,
    is_outbox_read: &Arc<AtomicBool>,
    trust: &[ReceiverTrust],
    limit: u64,
    now: Timestamp,
) {
    // Before the outbox, so that it has the entries that a sink cannot deliver.
    let sinks = pipeline.sinks();
    let stats = outbox_stats(Arc::clone(pipeline.outbox()), is_outbox_read);
    let (stats, reading) = tokio::join!(stats, pipeline.ingest_status(STATUS_TIMEOUT));
    let help = "1 if reading responds.";
    figures.gauge("ai_agent_reading_responds", help, flag(reading.is_ok()));
    let help = "1 if the outbox responds.";
    figures.gauge("ai_agent_outbox_responds", help, flag(stats.is_some()));
    if let Ok(reading) = &reading {
        add_totals(figures, &reading.totals);
        add_reading(figures, reading);
    }
    if let Some(stats) = &stats {
        add_outbox(figures, stats, limit);
        add_queues(figures, &stats.sinks, trust, now);
    }
    add_deliveries(figures, &sinks, now);
}

/// Adds what was read in the current epoch: the counters start again with a new one.
fn add_totals(figures: &mut Exposition, totals: &Totals) {
    let read = Share::from(totals).read();
    figures.counter("ai_agent_read_lines", "Lines that were read.", read.lines);
    figures.counter("ai_agent_read_bytes", "Bytes of files that were read.", read.bytes);
    let filtered = totals.filtered.iter().flat_map(|(stage, reasons)| {
        reasons.iter().map(move |(reason, count)| (stage, reason, count))
    });
    let labels = |stage: &str, reason: &str| vec![label("stage", stage), label("reason", reason)];
    let samples = filtered.map(|(stage, reason, count)| (labels(stage, reason), count.lines));
    let help = "Lines that filters dropped.";
    figures.counters("ai_agent_filtered_lines", help, samples);
    let help = "Bytes of lines that filters dropped.";
    figures.counter("ai_agent_filtered_bytes", help, totals.all_filtered().bytes);
    let help = "Lines that were read again, because bytes in or near them were altered.";
    figures.counter("ai_agent_altered_lines", help, totals.altered.lines);
    let help = "Bytes that were deleted before they were read, as far as known.";
    figures.counter("ai_agent_deleted_unread_bytes", help, totals.deleted_unread.bytes);
}

fn add_reading(figures: &mut Exposition, reading: &IngestStatus) {
    let surveys = || reading.sources.iter().map(|(_, survey)| survey);
    let files = surveys().map(|survey| survey.files as f64).sum();
    figures.gauge("ai_agent_files", "Files that are followed.", files);
    let unread = surveys().map(|survey| float(survey.bytes_unread)).sum();
    figures.gauge("ai_agent_unread_bytes", "Bytes of files that are not read yet.", unread);
    let unreadable = surveys().map(|survey| survey.unreadable.len() as f64).sum();
    let help = "Files and directories that cannot be read.";
    figures.gauge("ai_agent_unreadable_paths", help, unreadable);
    let help = "Files that are not read, because a stage failed on them.";
    figures.gauge("ai_agent_held_files", help, reading.held as f64);
    let help = "1 while reading waits for space in the outbox or on the disk.";
    figures.gauge("ai_agent_reading_paused", help, flag(reading.shortage.is_some()));
    let help = "1 while nothing can be stored in the outbox.";
    figures.gauge("ai_agent_store_failing", help, flag(reading.store_failure.is_some()));
    if let Some(age) = reading.heartbeat_age {
        let help = "Time since the last heartbeat.";
        figures.gauge("ai_agent_heartbeat_age_seconds", help, age.as_secs_f64());
    }
}

fn add_outbox(figures: &mut Exposition, stats: &OutboxStats, limit: u64) {
    let help = "Entries that were stored in the current epoch.";
    figures.counter("ai_agent_stored_entries", help, stats.last_seq);
    let help = "Entries that some sink has not acknowledged.";
    figures.gauge("ai_agent_outbox_entries", help, float(stats.entries));
    let help = "Size of the stored entries.";
    figures.gauge("ai_agent_outbox_bytes", help, float(stats.bytes));
    let help = "Size of the stored entries at which reading waits.";
    figures.gauge("ai_agent_outbox_limit_bytes", help, float(limit));
    let help = "Size of the file of the outbox.";
    figures.gauge("ai_agent_outbox_file_bytes", help, float(stats.file_bytes));
    let help = "Entries that receivers refused for good, kept with the reason.";
    figures.gauge("ai_agent_dead_letters", help, float(stats.dead_letters));
}

/// Adds the queue of each sink, and the state of the device at its receiver.
fn add_queues(
    figures: &mut Exposition,
    sinks: &[SinkStats],
    trust: &[ReceiverTrust],
    now: Timestamp,
) {
    let queued = sinks.iter().map(|sink| (of(&sink.name), float(sink.entries)));
    let help = "Entries that the sink has not acknowledged.";
    figures.gauges("ai_agent_sink_queued_entries", help, queued);
    let oldest = sinks.iter().map(|sink| {
        let age = sink.oldest.map_or(0.0, |at| (now - at).as_secs_f64());
        (of(&sink.name), age)
    });
    let help = "Age of the oldest entry that the sink has not acknowledged; 0 if there is none.";
    figures.gauges("ai_agent_sink_oldest_entry_age_seconds", help, oldest);
    let states = sinks.iter().filter_map(|sink| {
        let trust = trust.iter().find(|it| sink.destination.as_ref() == Some(&it.endpoint))?;
        let mut labels = of(&sink.name);
        labels.push(label("state", trust.state.as_str()));
        labels.push(label("level", trust.level.as_deref().unwrap_or_default()));
        Some((labels, 1.0))
    });
    let help =
        "State of the device at the receiver, and the lowest level that the receiver accepts.";
    figures.gauges("ai_agent_sink_trust_info", help, states);
}

/// Adds what sinks did since the start.
fn add_deliveries(figures: &mut Exposition, sinks: &[(String, SinkProgress)], now: Timestamp) {
    let each = |value: fn(&SinkProgress) -> u64| -> Vec<Labelled<u64>> {
        sinks.iter().map(|(name, progress)| (of(name), value(progress))).collect()
    };
    let help = "Entries that were acknowledged.";
    figures.counters("ai_agent_sink_delivered_entries", help, each(|sink| sink.delivered));
    let help = "Entries that count as delivered without proof.";
    figures.counters("ai_agent_sink_unproven_entries", help, each(|sink| sink.unproven));
    let help = "Attempts to send a batch that failed, and were or will be repeated.";
    figures.counters("ai_agent_sink_retries", help, each(|sink| sink.retries));
    let help = "Entries that the receiver refused for good.";
    let refused = each(|sink| sink.refused.dead_letters + sink.refused.unidentified);
    figures.counters("ai_agent_sink_refused_entries", help, refused);
    let help = "1 while nothing is delivered, because of an error.";
    let failing = sinks.iter().map(|(name, sink)| (of(name), flag(sink.problem.is_some())));
    figures.gauges("ai_agent_sink_failing", help, failing);
    let help = "1 while delivery waits, and waiting alone may not help.";
    let held = sinks.iter().map(|(name, sink)| (of(name), flag(sink.is_held)));
    figures.gauges("ai_agent_sink_held", help, held);
    let help = "Time since the last acknowledgement.";
    let ages = sinks
        .iter()
        .filter_map(|(name, sink)| Some((of(name), (now - sink.acknowledged_at?).as_secs_f64())));
    figures.gauges("ai_agent_sink_acknowledgement_age_seconds", help, ages);
}

fn label(name: &'static str, value: impl Into<String>) -> (&'static str, String) {
    (name, value.into())
}

/// Labels of a sink.
fn of(sink: &str) -> Vec<(&'static str, String)> {
    vec![label("sink", sink)]
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// Values above 2^53 are rounded.
fn float(value: u64) -> f64 {
    value as f64
}

fn seconds(time: Timestamp) -> f64 {
    float(time.0) / 1000.0
}
