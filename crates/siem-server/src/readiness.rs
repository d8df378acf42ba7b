//! Readiness of a receiver for requests: `GET /readyz`.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde::Serialize;
use serde_json::{Value, json};
use siem_protocol::names::content_type;

/// Time for which the result of a check of the disk counts.
const CACHED: Duration = Duration::from_secs(1);
/// Time after which a disk counts as one that does not answer.
const DISK_TIMEOUT: Duration = Duration::from_secs(3);
/// File that is written to check the disk. Backups leave out what has this ending.
const PROBE_FILE: &str = "ready.new";

/// State of a receiver: draining or not, and the state of its disk.
#[derive(Debug)]
pub struct Readiness {
    directory: PathBuf,
    min_free: u64,
    is_draining: AtomicBool,
    /// True while the disk is checked, which may hang.
    is_checking: AtomicBool,
    checked: Mutex<Option<(Instant, Vec<NotReady>)>>,
}

/// Reason why a receiver is not ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotReady {
    /// Stable name.
    pub code: &'static str,
    /// Text for people.
    pub message: String,
}

impl NotReady {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl Readiness {
    /// Checks a data directory, on whose disk `min_free` bytes must be free.
    #[must_use]
    pub fn new(directory: &Path, min_free: u64) -> Arc<Self> {
        Arc::new(Self {
            directory: directory.to_owned(),
            min_free,
            is_draining: AtomicBool::new(false),
            is_checking: AtomicBool::new(false),
            checked: Mutex::default(),
        })
    }

    /// Makes the receiver not ready, since it stops.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Returns all reasons why the receiver is not ready.
    pub async fn reasons(self: &Arc<Self>) -> Vec<NotReady> {
        let mut reasons = Vec::new();
        if self.is_draining.load(Ordering::Relaxed) {
            reasons.push(NotReady::new("draining", "the receiver stops"));
        }
        reasons.extend(self.disk().await);
        reasons
    }

    async fn disk(self: &Arc<Self>) -> Vec<NotReady> {
        let is_current = |at: &Instant| at.elapsed() < CACHED;
        if let Some((_, reasons)) = self.checked().as_ref().filter(|(at, _)| is_current(at)) {
            return reasons.clone();
        }
        let stalled = || vec![NotReady::new("disk_stalled", "the disk does not answer")];
        if self.is_checking.swap(true, Ordering::AcqRel) {
            // Another request checks, or its check hangs.
            return self.checked().as_ref().map_or_else(stalled, |(_, reasons)| reasons.clone());
        }
        let this = self.clone();
        let check = tokio::task::spawn_blocking(move || {
            let reasons = disk_reasons(&this.directory, this.min_free);
            *this.checked() = Some((Instant::now(), reasons.clone()));
            this.is_checking.store(false, Ordering::Release);
            reasons
        });
        match tokio::time::timeout(DISK_TIMEOUT, check).await {
            Ok(Ok(reasons)) => reasons,
            Ok(Err(_)) | Err(_) => {
                let reasons = stalled();
                *self.checked() = Some((Instant::now(), reasons.clone()));
                reasons
            }
        }
    }

    fn checked(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Vec<NotReady>)>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Builds the response to `GET /readyz`.
    pub(crate) async fn respond(self: &Arc<Self>) -> Response {
        let reasons = self.reasons().await;
        let status = match reasons.as_slice() {
            [] => StatusCode::OK,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        respond(status, &json!({ "ready": reasons.is_empty(), "reasons": reasons }))
    }
}

fn respond(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, content_type::JSON)], body.to_string()).into_response()
}

/// Router with `/healthz` and `/readyz` alone, for a listener without TLS.
pub fn probe_router(readiness: Arc<Readiness>) -> Router {
    Router::new()
        .route("/healthz", get(async || respond(StatusCode::OK, &json!({ "status": "ok" }))))
        .route("/readyz", get(async |State(it): State<Arc<Readiness>>| it.respond().await))
        .with_state(readiness)
}

fn disk_reasons(directory: &Path, min_free: u64) -> Vec<NotReady> {
    let mut reasons = Vec::new();
    if let Err(error) = write_probe(&directory.join(PROBE_FILE)) {
        let message = format!("cannot write to the data directory: {error}");
        reasons.push(NotReady::new("store_unwritable", message));
    }
    match free_bytes(directory) {
        Ok(Some(free)) if free < min_free => {
            let message = format!("{free} bytes are free on the disk, expected {min_free}");
            reasons.push(NotReady::new("disk_low", message));
        }
        Ok(_) => {}
        Err(error) => {
            let message = format!("cannot read the free space of the disk: {error}");
            reasons.push(NotReady::new("disk_unreadable", message));
        }
    }
    reasons
}

fn write_probe(path: &Path) -> io::Result<()> {
    let written = fs::File::create(path).and_then(|mut file| file.write_all(b"ready\n"));
    // A full disk leaves an empty file.
    let removed = fs::remove_file(path);
    written.and(removed)
}

/// Returns the bytes that the receiver can still write; `None` where the system does not say.
#[cfg(unix)]
fn free_bytes(directory: &Path) -> io::Result<Option<u64>> {
    let found = rustix::fs::statvfs(directory)?;
    Ok(Some(found.f_bavail.saturating_mul(found.f_frsize)))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> io::Result<Option<u64>> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn codes(readiness: &Arc<Readiness>) -> Vec<&'static str> {
        readiness.reasons().await.iter().map(|reason| reason.code).collect()
    }

    #[tokio::test]
    async fn writable_directory_with_free_space_is_ready() {
        let directory = tempfile::tempdir().unwrap();
        let readiness = Readiness::new(directory.path(), 1);
        assert!(codes(&readiness).await.is_empty());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        readiness.drain();
        assert_eq!(codes(&readiness).await, ["draining"]);
    }

    #[tokio::test]
    async fn absent_directory_is_not_ready() {
        let directory = tempfile::tempdir().unwrap();
        let readiness = Readiness::new(&directory.path().join("absent"), 1);
        assert_eq!(codes(&readiness).await[0], "store_unwritable");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn disk_below_the_floor_is_not_ready() {
        let directory = tempfile::tempdir().unwrap();
        let readiness = Readiness::new(directory.path(), u64::MAX);
        assert_eq!(codes(&readiness).await, ["disk_low"]);
        let first = readiness.checked().as_ref().unwrap().0;
        codes(&readiness).await;
        assert_eq!(readiness.checked().as_ref().unwrap().0, first, "the result is cached");
    }
}
