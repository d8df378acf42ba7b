//! Fixtures: a scripted HTTP server, batches of entries, and a corpus of odd lines.
#![allow(dead_code, reason = "each protocol uses some of it")]

pub(crate) mod assembly;
pub(crate) mod bulk_server;
pub(crate) mod entries;
pub(crate) mod hec_server;
pub(crate) mod http_server;
pub(crate) mod odd_lines;
pub(crate) mod osmem;
pub(crate) mod otlp_server;
pub(crate) mod rotel;
pub(crate) mod rsyslog;
