//! Integration tests of the receiver, linked as one binary.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "../common/mod.rs"]
mod common;

mod admin;
mod attacks;
mod backup;
mod body;
mod bounds;
mod config;
mod configs;
mod enroll;
mod faults;
mod fleet;
mod ingest;
mod life;
mod line;
mod metrics;
mod openapi;
mod process;
mod quotas;
#[cfg(unix)]
mod serve;
mod service;
mod settings;
mod stats;
mod trust;
mod updates;
mod verify;
