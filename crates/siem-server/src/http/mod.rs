//! HTTP interface of the receiver: an axum router with a [`Storage`] behind it.

mod ingest;
mod managed_config;
mod observe;
mod problem;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderMap, header::AUTHORIZATION},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
pub use ingest::read_body;
pub use observe::OPENAPI;
use problem::Rejection;
use siem_protocol::names::path;
use tokio::sync::Semaphore;

use crate::{
    clock::{Clock, SystemClock},
    memory::Budget,
    secrets::Keys,
    store::Storage,
};

/// Methods and paths of the router, below the endpoint.
pub const ROUTES: [(&str, &str); 5] = [
    ("post", path::INGEST),
    ("get", path::CONFIG),
    ("get", "/stats"),
    ("get", "/healthz"),
    ("get", "/openapi.json"),
];

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
    /// Time that a body may take to arrive.
    pub body_timeout: Duration,
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
    config_file: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    limits: Limits,
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
        Self { keys, storage, config_file: None, clock, limits }
    }

    /// Serves the managed configuration from `path`, which is read for each request. If the file
    /// does not exist, agents get the response that there is no configuration.
    #[must_use]
    pub fn with_config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.config_file = Some(path.into());
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

    /// Builds the router with [`ROUTES`], to be nested at the endpoint of the agents.
    pub fn router(self) -> Router {
        let limits = self.limits;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared {
            keys: self.keys,
            storage: self.storage,
            config_file: self.config_file,
            clock: self.clock,
            limits,
            bodies: Budget::new(limits.memory / 4, limits.patience),
            texts: Budget::new(limits.memory / 4 * 3, limits.patience),
            cores: Semaphore::new(cores),
        });
        Router::new()
            .route(path::INGEST, post(ingest::ingest))
            .route(path::CONFIG, get(managed_config::config))
            .route("/stats", get(observe::stats))
            .route("/healthz", get(observe::healthz))
            .route("/openapi.json", get(observe::openapi))
            .with_state(shared)
    }
}

/// State shared by all requests.
struct Shared {
    keys: Keys,
    storage: Arc<dyn Storage>,
    config_file: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    limits: Limits,
    /// Memory for bodies as sent.
    bodies: Budget,
    /// Memory for decoded batches, until they are stored.
    texts: Budget,
    /// Number of batches that are decoded at the same time.
    cores: Semaphore,
}

impl Shared {
    /// Checks the bearer token.
    fn authorize(&self, headers: &HeaderMap) -> Result<(), Rejection> {
        let value = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        let (scheme, token) = value.and_then(|value| value.split_at_checked(7)).unwrap_or_default();
        if scheme.eq_ignore_ascii_case(b"bearer ") && self.keys.know_token(token) {
            Ok(())
        } else {
            Err(Rejection::Token)
        }
    }
}

/// Response to unknown paths, for a server without other routes.
pub async fn not_found() -> Response {
    Rejection::Route.into_response()
}
