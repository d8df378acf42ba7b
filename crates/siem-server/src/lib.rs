//! A receiver.
#![expect(dead_code, reason = "what uses it comes with the router")]

pub mod batch;
mod clock;
pub mod decode;
pub mod ledger;
mod memory;
mod secrets;
pub mod stats;
pub mod store;
#[cfg(test)]
mod testing;

pub use clock::{Clock, SystemClock};
pub use secrets::{EmptySecret, Keys, Secret};
