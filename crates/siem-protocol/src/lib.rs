//! The protocol between `ai-agent` and the receivers of its records, version 1.
//!
//! Constants, wire types, signatures and the chain; no I/O. The agent writes with these, the
//! receiver in `siem-server` reads with them, and a receiver of your own can do the same.
//!
//! A batch is a header line ([`BatchHeader`]) and one line for each entry ([`Entry`]), as NDJSON,
//! compressed, and signed over the bytes that travel ([`sign()`]). Every entry has a sequence number
//! without gaps and is chained to the one before it ([`Digest::chain`]), so that a receiver can
//! prove that nothing is missing, doubled or changed.

pub mod chain;
pub mod entry;
pub mod event;
pub mod identity;
pub mod json;
pub mod managed;
pub mod names;
pub mod sign;
pub mod totals;
mod wire;

pub use chain::Digest;
pub use entry::{Content, Cut, Entry, EntryError, Kind, Masked};
pub use event::AgentEvent;
pub use identity::Identity;
pub use managed::{ManagedConfig, ManagedError};
pub use sign::{Signer, sign, sign_answer, verify, verify_answer};
pub use totals::Totals;
pub use wire::{BatchHeader, BatchId, Chain, ChainPoint, DeadLettered, Encoding, Problem, Receipt};

/// The version of the protocol that this crate speaks: the `protocol` of a batch's header.
pub const PROTOCOL: u32 = 1;

/// How deep a record may nest to travel as `record`; a deeper one travels as `raw`.
pub const MAX_RECORD_DEPTH: usize = 100;
