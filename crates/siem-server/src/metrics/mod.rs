//! Metrics of the receiver for Prometheus. The names are listed in `docs/metrics.md`.
//!
//! What happens is counted where it happens, in the fields of [`Metrics`]. What can be read at any time
//! is read for each request.

mod durations;
mod held;

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

pub use durations::Durations;
use durations::histogram;
use held::HeldCache;
pub use metrics_endpoint::{BindError, MetricsAddress, MetricsListener, MetricsServer};
use metrics_endpoint::{Exposition, Limits, Render, Rendering};
use prometheus_client::{
    encoding::prometheus_text,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use siem_protocol::Receipt;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    connections::Connections,
    fleet::StatsQuery,
    http::path_of_route,
    quotas::QuotaKind,
    store::{FileStore, Storage},
};

/// Time that the store and the disk may take. The other figures are shown without them.
const PATIENCE: Duration = Duration::from_secs(3);

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type DurationsByPath = Family<Labels<1>, Histogram, fn() -> Histogram>;

/// Metrics of a receiver.
///
/// ```
/// # tokio_test(async {
/// use std::sync::Arc;
/// use siem_server::metrics::{Metrics, MetricsListener, serve_metrics};
///
/// let metrics = Arc::new(Metrics::default());
/// let listener = MetricsListener::bind(&"127.0.0.1:0".parse()?).await?;
/// let server = serve_metrics(listener, metrics.clone());
/// // `Receiver::with_metrics(metrics)` counts in them, until `server` is dropped.
/// # drop(server);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # });
/// # fn tokio_test(test: impl Future<Output = Result<(), Box<dyn std::error::Error>>>) {
/// #     tokio::runtime::Runtime::new().unwrap().block_on(test).unwrap();
/// # }
/// ```
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    batches: Counters<1>,
    entries: Counter,
    duplicates: Counter,
    received_bytes: Counter,
    quotas: Counters<1>,
    refusals: Family<Vec<(&'static str, String)>, Counter>,
    requests: DurationsByPath,
    stores: Durations,
    syncs: Durations,
    /// Directory whose disk is shown.
    data: Option<PathBuf>,
    /// Held while the disk is read, so that one that does not answer keeps one thread only.
    disk: Arc<Semaphore>,
    figures: OnceLock<Weak<dyn Figures>>,
    connections: OnceLock<Weak<Connections>>,
    held: HeldCache,
}

/// Figures that are read for each request.
pub(crate) trait Figures: Send + Sync {
    /// Adds the figures that are in memory.
    fn add_to(&self, figures: &mut Exposition);

    /// Adds the figures that are in files. Blocks for the file system.
    fn add_from_files(&self, figures: &mut Exposition);

    /// Returns the store.
    fn storage(&self) -> &dyn Storage;

    /// Returns a query for the totals of the fleet.
    fn stats_query(&self) -> StatsQuery;
}

impl Metrics {
    /// Creates metrics of a receiver with this store, in the directory `data`.
    #[must_use]
    pub fn of_store(store: &FileStore, data: impl Into<PathBuf>) -> Self {
        Self::new(Some(data.into()), store.sync_durations())
    }

    fn new(data: Option<PathBuf>, syncs: Durations) -> Self {
        let mut registry = Registry::with_prefix("siem_server");
        let mut metrics = Self {
            registry: Registry::default(),
            batches: Family::default(),
            entries: Counter::default(),
            duplicates: Counter::default(),
            received_bytes: Counter::default(),
            quotas: Family::default(),
            refusals: Family::default(),
            requests: Family::new_with_constructor(histogram),
            stores: Durations::default(),
            syncs,
            data,
            disk: Arc::new(Semaphore::new(1)),
            figures: OnceLock::new(),
            connections: OnceLock::new(),
            held: HeldCache::default(),
        };
        metrics.register(&mut registry);
        metrics.registry = registry;
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("batches", "Batches by outcome", self.batches.clone());
        registry.register("entries", "Entries that were stored", self.entries.clone());
        let help = "Entries that were stored before";
        registry.register("duplicate_entries", help, self.duplicates.clone());
        let help = "Bytes of bodies as sent";
        registry.register("received_bytes", help, self.received_bytes.clone());
        let help = "Requests that were refused, by status and type of problem";
        registry.register("refusals", help, self.refusals.clone());
        let help = "Batches that were refused because of a quota";
        registry.register("quota_refusals", help, self.quotas.clone());
        let help = "Time from the headers of a request to the response";
        registry.register("request_duration_seconds", help, self.requests.clone());
        let help = "Time from a decoded batch to its entries on stable storage";
        registry.register("store_duration_seconds", help, self.stores.0.clone());
        let help = "Time to write and sync the journal";
        registry.register("journal_sync_duration_seconds", help, self.syncs.0.clone());
        for quota in QuotaKind::ALL {
            drop(self.quotas.get_or_create(&[("quota", quota.as_str())]));
        }
        for outcome in ["stored", "duplicate", "refused"] {
            // Without a first value, the first increase would not be seen.
            drop(self.batches.get_or_create(&[("outcome", outcome)]));
        }
    }

    /// Counts a request with the path and its duration.
    pub(crate) fn count_request(&self, path: &str, duration: Duration) {
        let label = [("path", path_of_route(path))];
        self.requests.get_or_create(&label).observe(duration.as_secs_f64());
    }

    /// Counts a refused request, by the type of its problem.
    pub(crate) fn count_refusal(&self, status: u16, problem: &str) {
        let reason = problem.rsplit(':').next().unwrap_or_default();
        let labels = vec![("status", status.to_string()), ("reason", reason.to_owned())];
        self.refusals.get_or_create(&labels).inc();
    }

    /// Counts a batch that is over a quota.
    pub(crate) fn count_quota(&self, quota: QuotaKind) {
        self.quotas.get_or_create(&[("quota", quota.as_str())]).inc();
    }

    /// Counts a body.
    pub(crate) fn count_received(&self, bytes: usize) {
        self.received_bytes.inc_by(bytes as u64);
    }

    /// Counts a batch that was stored, some of its entries before.
    pub(crate) fn count_stored(&self, receipt: &Receipt) {
        let outcome = if receipt.accepted == 0 { "duplicate" } else { "stored" };
        self.batches.get_or_create(&[("outcome", outcome)]).inc();
        self.entries.inc_by(receipt.accepted);
        self.duplicates.inc_by(receipt.duplicates);
    }

    /// Counts a batch that was refused.
    pub(crate) fn count_refused_batch(&self) {
        self.batches.get_or_create(&[("outcome", "refused")]).inc();
    }

    /// Measures how long the store takes.
    pub(crate) fn count_store(&self, begun: Instant) {
        self.stores.count_since(begun);
    }

    /// Sets the source of the figures that are read for each request, once.
    pub(crate) fn set_figures(&self, figures: Weak<dyn Figures>) {
        // A second receiver with the same metrics counts in them, and its figures are not shown.
        drop(self.figures.set(figures));
    }

    /// Sets the connections that are shown, once.
    pub(crate) fn set_connections(&self, connections: &Arc<Connections>) {
        drop(self.connections.set(Arc::downgrade(connections)));
    }

    fn add_connections(&self, figures: &mut Exposition) {
        let Some(connections) = self.connections.get().and_then(Weak::upgrade) else { return };
        let (busy, idle, limit) = connections.counts();
        let samples = [("busy", busy), ("idle", idle)]
            .map(|(state, number)| (vec![("state", state.to_owned())], number as f64));
        let help = "Open connections: with a request, and without one.";
        figures.gauges("siem_server_connections", help, samples);
        let help = "Connections that can be open.";
        figures.gauge("siem_server_connections_limit", help, limit as f64);
    }

    async fn text(&self) -> String {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry).expect("a string can be written");
        let mut figures = Exposition::default();
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        figures.gauges("siem_server_build_info", "Version of the receiver.", [(version, 1.0)]);
        self.add_connections(&mut figures);
        let source = self.figures.get().and_then(Weak::upgrade);
        let disk_figures = self.disk_figures(source.clone()).await;
        if let Some(source) = source {
            source.add_to(&mut figures);
            self.held.add_to(&mut figures, &*source).await;
        }
        text.push_str(&figures.text());
        text.push_str(&disk_figures.unwrap_or_default().text());
        text
    }

    /// Returns the figures of the disk; `None` if it does not answer.
    async fn disk_figures(&self, source: Option<Arc<dyn Figures>>) -> Option<Exposition> {
        let permit = self.disk.clone().try_acquire_owned().ok()?;
        let data = self.data.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut figures = Exposition::default();
            if let Some((free, size)) = data.and_then(|data| disk_space(&data)) {
                let help = "Free space on the disk of the data directory.";
                figures.gauge("siem_server_disk_free_bytes", help, free);
                let help = "Size of the disk of the data directory.";
                figures.gauge("siem_server_disk_size_bytes", help, size);
            }
            if let Some(source) = source {
                source.add_from_files(&mut figures);
            }
            figures
        });
        timeout(PATIENCE, reading).await.ok()?.ok()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(None, Durations::default())
    }
}

impl Render for Metrics {
    fn render(&self) -> Rendering<'_> {
        Box::pin(self.text())
    }
}

/// Starts to serve metrics, until the result is dropped.
#[must_use]
pub fn serve_metrics(listener: MetricsListener, metrics: Arc<Metrics>) -> MetricsServer {
    metrics_endpoint::serve(listener, metrics, Limits::default())
}

#[cfg(unix)]
fn disk_space(path: &std::path::Path) -> Option<(f64, f64)> {
    let found = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks as f64 * found.f_frsize as f64;
    Some((bytes(found.f_bavail), bytes(found.f_blocks)))
}

#[cfg(not(unix))]
fn disk_space(_: &std::path::Path) -> Option<(f64, f64)> {
    None
}

#[cfg(test)]
mod tests;
