//! A receiver for `ai-agent`: takes signed batches of session records, checks their order and
//! chain, and keeps each record once, byte for byte.
//!
//! [`Receiver`] makes an axum router to mount in a server of your own; behind it stands a
//! [`Storage`], for which [`FileStore`] is the one that comes along. [`serve()`] serves a router
//! with limits on what a connection may cost. The `demo-server` binary is these three.
//!
//! What a batch must look like in itself is in [`batch`], what is done with it given what is held
//! already in [`ledger`]: policy without I/O, for other storages to use.

pub mod batch;
mod clock;
pub mod decode;
mod http;
pub mod ledger;
mod memory;
mod secrets;
mod serve;
mod stall;
pub mod stats;
pub mod store;
#[cfg(test)]
mod testing;

pub use clock::{Clock, SystemClock};
pub use http::{Limits, OPENAPI, ROUTES, Receiver, not_found, read_body};
pub use secrets::{EmptySecret, Keys, Secret};
pub use serve::{ServeOptions, serve};
pub use store::{FileStore, FileStoreOptions, OpenError, Storage, StoreError};
