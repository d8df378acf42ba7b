//! HTTP interface of the receiver: an axum router with a [`Storage`] behind it.

mod artifact_body;
mod byte_range;
mod enroll;
mod ingest;
mod intake;
mod managed_config;
mod measure;
mod observe;
mod problem;
mod quota_check;
mod refusal_log;
mod retry_spread;
#[cfg(test)]
mod simulation;
mod statements;
mod stats_query;
mod turns;
mod updates;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{ConnectInfo, State},
    http::{
        Extensions, HeaderMap, HeaderValue,
        header::{AUTHORIZATION, RETRY_AFTER},
        request::Parts,
    },
    middleware,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
pub use ingest::read_body;
use intake::Intake;
use measure::measure;
pub use observe::OPENAPI;
use percent_encoding::percent_decode_str;
use problem::Rejection;
use quota_check::QuotaCheck;
use refusal_log::log_refusals;
pub(crate) use refusal_log::{RefusalLog, Requested};
use retry_spread::RetrySpread;
use siem_protocol::names::{header, path};
use tokio::sync::Semaphore;
use turns::{Sender, Turns};

use crate::{
    clock::{Clock, SystemClock},
    configs::{ConfigFolder, ConfigStats, FolderOptions},
    fleet::FleetThresholds,
    memory::Budget,
    metrics::{Figures, Metrics},
    quotas::QuotaLimits,
    readiness::Readiness,
    secrets::Keys,
    store::Storage,
    trust::{Grant, Registry, Scope},
    updates::ReleaseFolder,
};

/// Methods and paths of the router, below the endpoint.
pub const ROUTES: [(&str, &str); 10] = [
    ("post", path::INGEST),
    ("get", path::CONFIG),
    ("get", path::KEYS),
    ("post", path::ENROLL),
    ("get", path::UPDATE_MANIFEST),
    ("get", ARTIFACT),
    ("get", "/stats"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/openapi.json"),
];

/// Path of artifacts.
const ARTIFACT: &str = "/update/{artifact}";

/// Returns the route that a path belongs to, or `other`.
pub(crate) fn path_of_route(path: &str) -> &'static str {
    let is_artifact = path.rsplit_once('/').is_some_and(|(folder, name)| {
        folder.ends_with(path::UPDATE) && name.starts_with("ai-agent-")
    });
    if is_artifact {
        return ARTIFACT;
    }
    let mut routes = ROUTES.iter().map(|(_, route)| *route);
    routes.find(|route| path.ends_with(route)).unwrap_or("other")
}

/// Limits of a receiver.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Size of a compressed body, in bytes.
    pub compressed: usize,
    /// Size of a decoded body, or of an uncompressed one, in bytes.
    pub decoded: usize,
    /// Memory for bodies and batches of all requests together, in bytes.
    pub memory: usize,
    /// Time that a request waits for memory before it is rejected with status 503.
    pub patience: Duration,
    /// Time for which a body may arrive without a byte. In total it may take this time, and longer by what
    /// it takes at a sixteenth of `body_rate`.
    pub body_timeout: Duration,
    /// Bytes in a second that a large body must arrive with while others wait.
    pub body_rate: usize,
    /// Time over which this rate is measured.
    pub stall: Duration,
    /// Time for which the rest of a refused body is read, so that its sender sees the response.
    /// After that the connection is closed.
    pub discard: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            compressed: 16 << 20,
            decoded: 64 << 20,
            memory: 256 << 20,
            patience: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            body_rate: 16 << 10,
            stall: Duration::from_secs(3),
            discard: Duration::from_secs(10),
        }
    }
}

/// A receiver that can be mounted in a server.
///
/// ```
/// use std::sync::Arc;
/// use siem_server::{FileStore, Keys, Receiver, Secret};
///
/// # let directory = tempfile::tempdir()?;
/// let keys = Keys::new(Secret::new("token of the fleet")?, Secret::new("secret of the fleet")?);
/// let store = Arc::new(FileStore::open(directory.path())?);
/// let receiver = Receiver::new(keys, store).with_config_file(directory.path().join("config.json"));
/// let app = axum::Router::new().nest("/siem", receiver.router());
/// # drop(app);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Receiver {
    keys: Keys,
    storage: Arc<dyn Storage>,
    registry: Option<Arc<Registry>>,
    config_file: Option<PathBuf>,
    config_folder: Option<FolderOptions>,
    releases: Option<ReleaseFolder>,
    clock: Arc<dyn Clock>,
    limits: Limits,
    fleet: FleetThresholds,
    readiness: Option<Arc<Readiness>>,
    metrics: Arc<Metrics>,
    quotas: QuotaLimits,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("config_file", &self.config_file).finish_non_exhaustive()
    }
}

impl Receiver {
    /// Creates a receiver that stores batches in `storage`.
    #[must_use]
    pub fn new(keys: Keys, storage: Arc<dyn Storage>) -> Self {
        let (clock, limits) = (Arc::new(SystemClock), Limits::default());
        let fleet = FleetThresholds::default();
        Self {
            keys,
            storage,
            registry: None,
            config_file: None,
            config_folder: None,
            releases: None,
            clock,
            limits,
            fleet,
            readiness: None,
            metrics: Arc::default(),
            quotas: QuotaLimits::default(),
        }
    }

    /// Enrolls devices in `registry`, and accepts its tokens besides those of the [`Keys`].
    #[must_use]
    pub fn with_registry(mut self, registry: Arc<Registry>) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Serves the managed configuration from `path`, which is read again when it changes. If the file
    /// does not exist, agents get the response that there is no configuration.
    #[must_use]
    pub fn with_config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.config_file = Some(path.into());
        self
    }

    /// Serves the managed configurations of a folder. A file that
    /// [`with_config_file`](Self::with_config_file) names is served to devices for which the folder has
    /// none, in place of the fallback of the options.
    #[must_use]
    pub fn with_config_folder(mut self, options: FolderOptions) -> Self {
        self.config_folder = Some(options);
        self
    }

    /// Serves the releases of the agent in this folder, which is read with each request.
    #[must_use]
    pub fn with_releases(mut self, folder: ReleaseFolder) -> Self {
        self.releases = Some(folder);
        self
    }

    /// Replaces the clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Replaces the limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Replaces the limits from which `/stats` shows a problem.
    #[must_use]
    pub fn with_fleet(mut self, thresholds: FleetThresholds) -> Self {
        self.fleet = thresholds;
        self
    }

    /// Responds to `/readyz` with the state of `readiness`. Without it, the receiver is always ready.
    #[must_use]
    pub fn with_readiness(mut self, readiness: Arc<Readiness>) -> Self {
        self.readiness = Some(readiness);
        self
    }

    /// Replaces the quotas.
    #[must_use]
    pub fn with_quotas(mut self, quotas: QuotaLimits) -> Self {
        self.quotas = quotas;
        self
    }

    /// Counts in `metrics`.
    #[must_use]
    pub fn with_metrics(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// Builds the router with [`ROUTES`], to be nested at the endpoint of the agents.
    pub fn router(self) -> Router {
        let limits = self.limits;
        let mut folder = self.config_folder.unwrap_or_default();
        folder.fallback = self.config_file.or(folder.fallback);
        (folder.is_server, folder.clock) = (true, self.clock.clone());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared {
            keys: self.keys,
            storage: self.storage,
            registry: self.registry,
            configs: ConfigFolder::new(folder),
            config_stats: Mutex::default(),
            releases: self.releases,
            downloads: Turns::new(updates::DOWNLOADS, limits.patience),
            clock: self.clock,
            limits,
            fleet: self.fleet,
            readiness: self.readiness,
            metrics: self.metrics,
            quotas: QuotaCheck::new(self.quotas),
            intake: Intake::new(limits.memory / 2, &limits),
            texts: Budget::new(limits.memory / 2, limits.patience),
            retries: RetrySpread::default(),
            refusals: RefusalLog::default(),
            cores: Arc::new(Semaphore::new(cores)),
            stats_turn: Semaphore::new(1),
        });
        shared.metrics.set_figures(Arc::downgrade(&(shared.clone() as Arc<dyn Figures>)));
        managed_config::halt_all_exceeded(&shared);
        Router::new()
            .route(path::INGEST, post(ingest::ingest))
            .route(path::CONFIG, get(managed_config::config))
            .route(path::KEYS, get(enroll::keys))
            .route(path::ENROLL, post(enroll::enroll))
            .route(path::UPDATE_MANIFEST, get(updates::manifest))
            .route(ARTIFACT, get(updates::artifact))
            .route("/stats", get(observe::stats))
            .route("/healthz", get(observe::healthz))
            .route("/readyz", get(readyz))
            .route("/openapi.json", get(observe::openapi))
            // Inside of the log, which takes the refusal from the response.
            .layer(middleware::from_fn_with_state(shared.clone(), measure))
            .layer(middleware::from_fn_with_state(shared.clone(), log_refusals))
            .with_state(shared)
    }
}

/// State shared by all requests.
struct Shared {
    keys: Keys,
    storage: Arc<dyn Storage>,
    registry: Option<Arc<Registry>>,
    /// Managed configurations.
    configs: ConfigFolder,
    /// Answers of devices to them, and when they were counted.
    config_stats: Mutex<Option<(Instant, Option<ConfigStats>)>>,
    /// Releases of the agent.
    releases: Option<ReleaseFolder>,
    /// Turns of artifacts that are sent.
    downloads: Turns,
    clock: Arc<dyn Clock>,
    limits: Limits,
    /// Limits from which `/stats` shows a problem.
    fleet: FleetThresholds,
    readiness: Option<Arc<Readiness>>,
    metrics: Arc<Metrics>,
    quotas: QuotaCheck,
    /// Memory and turns for bodies as sent.
    intake: Intake,
    /// Times after which refused senders should try again.
    retries: RetrySpread,
    refusals: RefusalLog,
    /// Memory for decoded batches, until they are stored.
    texts: Budget,
    /// Number of batches that are decoded at the same time.
    cores: Arc<Semaphore>,
    /// Held by the request for statistics that the store answers.
    stats_turn: Semaphore,
}

impl Shared {
    /// Returns the sender of a request, as far as its headers tell.
    fn sender(&self, parts: &Parts) -> Sender {
        self.intake.turns.sender(&parts.headers, peer(&parts.extensions))
    }

    /// Lets the sender of a request that was refused under load return at a time of its own.
    fn spread(&self, response: &mut Response) {
        let after = self.retries.refuse(Instant::now()).as_secs();
        let least = response.headers().get(RETRY_AFTER).and_then(|least| least.to_str().ok());
        let least = least.and_then(|least| least.parse().ok()).unwrap_or_default();
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.max(least)));
    }

    /// Checks the bearer token, which must have one of `scopes`. A token that is bound to a machine
    /// is accepted only from a request that names this machine in its header.
    async fn authorize(&self, headers: &HeaderMap, scopes: &[Scope]) -> Result<Grant, Rejection> {
        let token = bearer_token(headers).ok_or(Rejection::Token)?;
        let grant = if self.keys.know_token(token) {
            Grant::all()
        } else {
            let (registry, token) = (self.registry.clone(), token.to_vec());
            let registry = registry.ok_or(Rejection::Token)?;
            run_blocking(move || registry.grant(&token)).await?.ok_or(Rejection::Token)?
        };
        if !grant.has_any(scopes) {
            return Err(Rejection::Scope);
        }
        match grant.machine() {
            Some(machine) if !names_machine(headers, machine) => Err(Rejection::OtherMachine),
            _ => Ok(grant),
        }
    }
}

/// Runs what reads or writes files, such as those of the registry, outside the threads that serve requests:
/// a disk that does not answer must stop neither probes nor signals.
async fn run_blocking<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Rejection> {
    tokio::task::spawn_blocking(run).await.map_err(|_| Rejection::Panicked)
}

/// Returns the bearer token of a request. The name of the scheme has no case.
fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// Reports whether the identity header of a request names `machine`.
fn names_machine(headers: &HeaderMap, machine: &str) -> bool {
    let value = headers.get(header::MACHINE_ID).and_then(|value| value.to_str().ok());
    let decoded = value.and_then(|value| percent_decode_str(value).decode_utf8().ok());
    decoded.is_some_and(|named| named == machine)
}

/// Returns the address of the sender of a request, or of the proxy before the receiver.
fn peer(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip())
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    match &shared.readiness {
        Some(readiness) => readiness.respond().await,
        None => observe::json(&serde_json::json!({ "ready": true, "reasons": [] })),
    }
}

/// Response to unknown paths, for a server without other routes.
pub async fn not_found() -> Response {
    Rejection::Route.into_response()
}

/// Response to a request whose headers are larger than permitted.
pub(crate) fn headers_too_large() -> Response {
    Rejection::HeadersTooLarge.into_response()
}

/// Counts a request whose headers are too large: no receiver in a router sees it.
pub(crate) fn count_headers_too_large(metrics: &Metrics) {
    let rejection = Rejection::HeadersTooLarge;
    metrics.count_refusal(rejection.status(), rejection.problem_type());
}
