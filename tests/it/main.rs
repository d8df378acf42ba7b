//! Integration tests of the agent, linked as one binary.
//!
//! `cargo nextest run -p ai-agent --test it reload::` runs the tests of one file.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "../support/mod.rs"]
mod support;

mod activity;
mod attacks;
mod audit_cases;
mod audit_lines;
mod audit_programs;
mod backpressure;
mod command_line;
mod compliance;
mod config;
mod config_check;
mod control;
mod conventions;
mod corpus;
mod crash;
mod cross_platform;
mod damaged_outbox;
mod dead_connections;
mod deadletter;
mod delivery;
mod detections;
mod device;
mod doctor;
mod dry_run;
mod enricher_cases;
mod enrollment;
mod exit_codes;
mod files;
mod filter_cases;
mod fleet_configs;
mod fuzz_corpora;
mod growing_files;
mod hanging_calls;
mod hooks;
mod hostile;
mod json_output;
mod large_lines;
mod layering;
mod log_codes;
mod logs;
mod managed_config;
mod managed_config_polling;
mod masking;
mod mdm;
mod metrics;
mod nul_runs;
mod odd_lines;
mod quiet_commands;
mod real_auditd;
mod real_client;
mod real_hooks;
mod receiver_page;
mod registry;
mod reliability_page;
mod reload;
mod secrets;
mod self_protection;
mod service_commands;
mod siem_pages;
mod siem_queries;
mod signed_config;
mod sinks;
mod sinks_elasticsearch;
mod sinks_hec;
mod sinks_http;
mod sinks_otlp;
mod sinks_syslog;
mod support_bundle;
mod systemd;
mod tls;
mod trust_page;
