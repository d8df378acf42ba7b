//! Serves metrics in the text format of Prometheus to programs on the same machine.
//!
//! [`MetricsAddress`] is a loopback address or a Unix socket. [`serve`] answers `GET /metrics` there,
//! with bounds on what a client can cost. [`Exposition`] writes figures that are read for each request.
//!
//! The agent and the receiver share this crate. A server of its own, of some 200 lines, keeps an HTTP
//! library out of the agent.

mod address;
mod bind;
mod exposition;
mod server;

pub use address::{AddressError, MetricsAddress};
pub use bind::{BindError, MetricsListener};
pub use exposition::{CONTENT_TYPE, Exposition, Labelled};
pub use server::{Limits, MetricsServer, Render, Rendering, serve};
