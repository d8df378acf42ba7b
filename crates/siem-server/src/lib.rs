//! A receiver for `ai-agent`: accepts signed batches of session records, verifies their order and
//! their hash chain, and stores each record once, byte for byte.
//!
//! [`Receiver`] builds an axum router to mount in another server. It stores batches in a
//! [`Storage`]; [`FileStore`] is the implementation for receivers, [`MemoryStore`] one for tests. [`serve()`] serves a router with
//! limits on the cost of a connection. The `demo-server` binary combines the three.
//!
//! [`batch`] checks a batch on its own, and [`ledger`] decides what a batch changes about the
//! entries already stored. Both are policy without I/O, which other storages can use.

mod background;
pub mod backup;
pub mod batch;
mod clock;
pub mod config;
pub mod configs;
mod connections;
pub mod decode;
mod entry_lines;
mod error_text;
pub mod fleet;
mod http;
pub mod ledger;
pub mod life;
mod log;
mod memory;
pub mod metrics;
mod notify;
mod open_files;
pub mod proxies;
mod quotas;
mod readiness;
mod regular_file;
pub mod run;
mod secret_file;
mod secrets;
mod serve;
pub mod stats;
pub mod store;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod trust;
pub mod updates;
mod write_timeout;

pub use clock::{Clock, SystemClock};
pub use entry_lines::with_origin;
pub use http::{Limits, OPENAPI, ROUTES, Receiver, not_found, read_body};
pub use log::init_log;
pub use open_files::raise_open_files;
pub use quotas::QuotaLimits;
pub use readiness::{NotReady, Readiness, probe_router};
pub use secret_file::{SecretError, SecretKind};
pub use secrets::{EmptySecret, Keys, Secret};
pub use serve::{ServeOptions, Transport, serve, serve_with};
pub use store::{
    DataFormat, EpochKey, FileStore, FileStoreOptions, FormatError, HeldPoint, MemoryStore,
    OpenError, Storage, StoreError, StoredBatch, StoredLine,
};
