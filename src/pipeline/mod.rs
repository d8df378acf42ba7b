//! Assembles stages into a pipeline and runs it: from the sources into the outbox, and from the
//! outbox to the sinks.

pub mod accounting;
pub mod assembly;
pub mod backpressure;
pub mod config_status;
pub mod config_test;
pub mod delivery;
pub mod dry_run;
pub mod fault;
pub mod filter_chain;
pub mod group;
pub mod group_builder;
pub mod group_life_cycle;
pub mod ingest;
pub mod orphaned_sinks;
pub mod outbox;
mod own_files;
pub mod record_stages;
pub mod reload;
pub mod runner;
#[cfg(test)]
mod simulation;
pub mod validate;
