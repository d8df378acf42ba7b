//! Tests of the sinks against servers, linked as one binary.
//!
//! `cargo nextest run -p siem-sinks --test it splunk_hec::` runs the tests of one protocol.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod elasticsearch;
mod json_http;
mod otlp;
mod splunk_hec;
mod support;
mod syslog;
