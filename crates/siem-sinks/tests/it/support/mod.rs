//! Fixtures: batches of entries, and a corpus of odd lines.

pub(crate) mod bulk_server;
pub(crate) mod entries;
pub(crate) mod odd_lines;

pub(crate) use test_support::{
    assembly, hec_server, http_server, osmem, otlp_server, rotel, rsyslog,
};
