//! Servers and signatures that the tests of several crates share.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(
    missing_docs,
    reason = "the fields of fixtures are named after what they are in the protocol"
)]

pub mod accept;
pub mod assembly;
pub mod hec_server;
pub mod http_server;
pub mod minisign;
pub mod osmem;
pub mod otlp_server;
pub mod release_server;
pub mod rotel;
pub mod rsyslog;
