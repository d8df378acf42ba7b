//! Protocols of SIEMs, for the agent and the receiver.
//!
//! A sink gets entries as lines of `siem-protocol`, maps each to an [`event`] with the names
//! of ECS or OpenTelemetry, cuts what is larger than the SIEM accepts into [parts](mod@part), packs
//! events into [requests](mod@request), and interprets the responses. It neither waits nor retries:
//! that is decided by a policy outside, from the [`Delivery`] that a sink returns.

pub mod clock;
pub mod compression;
pub mod elasticsearch;
pub mod event;
mod fields;
pub mod http;
mod json;
pub mod json_http;
pub mod lines;
pub mod otlp;
pub mod part;
mod problem;
pub mod request;
pub mod splunk_hec;
pub mod syslog;
pub mod tls;

use std::{future::Future, time::Duration};

use siem_protocol::{
    BatchHeader,
    delivery::{Acknowledged, Delivery},
};

/// Consecutive entries to deliver.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Header: identity of the sender, epoch and hash of the configuration.
    pub header: &'a BatchHeader,
    /// The entries as NDJSON: a line for each, with its newline.
    pub lines: &'a [u8],
    /// Time that the delivery may take, if that is more than the sink's own timeout.
    pub patience: Option<Duration>,
}

impl<'a> Batch<'a> {
    /// Returns the lines of the entries, without newlines.
    pub fn entries(self) -> impl Iterator<Item = &'a [u8]> {
        let mut start = 0;
        let ends = memchr::memchr_iter(b'\n', self.lines).chain([self.lines.len()]);
        let lines = ends.map(move |end| {
            let line = &self.lines[start..end];
            start = end + 1;
            line
        });
        lines.filter(|line| !line.is_empty())
    }
}

/// Delivers batches to a SIEM, one at a time.
pub trait SiemSink: Send {
    /// Delivers a batch. If the future is dropped, the batch counts as not delivered.
    fn deliver(&mut self, batch: Batch<'_>) -> impl Future<Output = Delivery> + Send;

    /// Destination without secrets, such as a URL.
    fn destination(&self) -> String;

    /// Number of bytes sent during the last delivery, with any result.
    fn bytes_sent(&self) -> u64;

    /// Meaning of [`Delivery::Acknowledged`] and of accepted entries.
    fn acknowledged(&self) -> Acknowledged;

    /// Tests the connection without sending an entry, at most for `within`. Returns a description
    /// of the receiver for people, such as `Elasticsearch 9.1.0`.
    ///
    /// # Errors
    /// The reason why a batch would not be accepted, without secrets.
    fn probe(&mut self, within: Duration) -> impl Future<Output = Result<String, String>> + Send;

    /// Returns whether the last successful [`probe`](Self::probe) proved that the receiver accepts
    /// entries with these settings, and not only that something responds.
    fn probe_is_proof(&self) -> bool {
        true
    }
}
