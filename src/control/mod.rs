//! The control protocol: typed requests to the agent, and the responses.
//!
//! `protocol` contains the messages on the control socket, `server` accepts connections, `service`
//! answers requests of a running agent, `client` connects to it. Requests about the outbox are
//! handled by the same code (`outbox_requests`, `dead_letter_requests`) in the agent and, when no
//! agent is running, in the command's own process.

pub(crate) mod client;
mod compliance_status;
mod dead_letter_requests;
mod device_requests;
mod device_status;
mod error;
mod metrics;
mod outbox_requests;
pub(crate) mod protocol;
mod server;
mod service;
pub(crate) mod status;
mod store;

pub(crate) use client::{Client, Connection, connect, execute, send_to_agent};
pub(crate) use compliance_status::compliance_status;
pub(crate) use device_status::DeviceStatus;
pub(crate) use error::RequestError;
pub(crate) use metrics::serve_metrics;
pub(crate) use protocol::{Request, Response};
pub(crate) use server::serve;
pub(crate) use service::ControlService;
pub(crate) use store::Store;
