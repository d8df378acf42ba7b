//! The receiver's HTTP side: an axum router over a [`Storage`].

mod config;
mod ingest;
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

/// The paths that the router answers, with their methods; all below the endpoint.
pub const ROUTES: [(&str, &str); 5] = [
    ("post", path::INGEST),
    ("get", path::CONFIG),
    ("get", "/stats"),
    ("get", "/healthz"),
    ("get", "/openapi.json"),
];

/// What a receiver takes at most.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of a compressed body.
    pub compressed: usize,
    /// Bytes of a body once decoded, or of one that is not compressed.
    pub decoded: usize,
    /// Bytes of memory for bodies and batches, of all requests together.
    pub memory: usize,
    /// How long a request waits for memory before it is sent away with status 503.
    pub patience: Duration,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How long the rest of a refused body is read, so that its sender sees the answer. Then the
    /// connection is closed.
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

/// A receiver to be mounted in a server.
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
    /// A receiver that keeps what it takes in `storage`.
    #[must_use]
    pub fn new(keys: Keys, storage: Arc<dyn Storage>) -> Self {
        let (clock, limits) = (Arc::new(SystemClock), Limits::default());
        Self { keys, storage, config_file: None, clock, limits }
    }

    /// Serves the managed configuration from `path`, read again at each request. While there is no
    /// such file, agents are told that there is no configuration.
    #[must_use]
    pub fn with_config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.config_file = Some(path.into());
        self
    }

    /// Takes the time from `clock`.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Takes at most what `limits` says.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The router: [`ROUTES`], to be nested where the agents' endpoint is.
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
            .route(path::CONFIG, get(config::config))
            .route("/stats", get(observe::stats))
            .route("/healthz", get(observe::healthz))
            .route("/openapi.json", get(observe::openapi))
            .with_state(shared)
    }
}

/// What all requests share.
struct Shared {
    keys: Keys,
    storage: Arc<dyn Storage>,
    config_file: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    limits: Limits,
    /// Memory for bodies as they travel.
    bodies: Budget,
    /// Memory for decoded batches, until they are stored.
    texts: Budget,
    /// How many batches are decoded at a time.
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

/// Answers what no route answers, for a server that has nothing else on it.
pub async fn not_found() -> Response {
    Rejection::Route.into_response()
}
