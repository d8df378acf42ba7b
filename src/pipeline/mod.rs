//! Puts stages together and runs them: sources into the outbox, and out of it into the sinks.

pub mod accounting;
pub mod assembly;
pub mod candidate;
pub mod delivery;
pub mod dry_run;
pub mod facts;
pub mod fault;
pub mod group;
pub mod ingest;
pub mod judge;
pub mod outbox;
pub mod reload;
pub mod removed;
pub mod room;
pub mod runner;
#[cfg(test)]
mod simulation;
pub mod trial;
