//! Integration tests of the agent, linked as one binary.
//!
//! `cargo nextest run -p ai-agent --test it reload::` runs the tests of one file.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "../support/mod.rs"]
mod support;

mod audit_cases;
mod audit_lines;
mod backpressure;
mod command_line;
mod compliance;
mod config;
mod control;
mod corpus;
mod crash;
mod damage;
mod deadletter;
mod delivery;
mod doctor;
mod dry_run;
mod edits;
mod files;
mod fixtures;
mod fuzz_corpora;
mod growth;
mod hooks;
mod large_lines;
mod log_codes;
mod logs;
mod managed;
mod mdm;
mod odd_lines;
mod polling;
mod real_auditd;
mod real_client;
mod real_hooks;
mod registry;
mod reliability;
mod reload;
mod secrets;
mod sinks;
mod systemd;
mod three_systems;
mod tls;
