//! The protocol between `ai-agent` and the receivers of its records, version 1.
//!
//! Constants, wire types, signatures and the hash chain; no I/O. The agent and the receiver in
//! `siem-server` use these types, and so can other receivers.
//!
//! A batch consists of a header line ([`BatchHeader`]) and one line for each entry ([`Entry`]), as
//! NDJSON, compressed, and signed over the bytes sent ([`sign()`]). Each entry has a sequence
//! number without gaps and is chained to the previous one ([`Digest::chain`]), so that a receiver
//! can prove that no entry is missing, duplicated or changed.
//!
//! Shared secrets protect the exchange. What lasts is signed with a key of its own: devices and
//! receivers make [statements](statement), which are [signed notes](note), and the organisation signs
//! configurations with [minisign].

pub mod agent_event;
pub mod chain;
pub mod delivery;
pub mod entry;
pub mod identity;
pub mod json;
pub mod managed;
pub mod minisign;
pub mod names;
pub mod note;
pub mod nul_runs;
pub mod sign;
pub mod statement;
pub mod totals;
pub mod update;
mod wire;

pub use agent_event::AgentEvent;
pub use chain::Digest;
pub use entry::{Content, Cut, Entry, EntryError, Kind, Masked};
pub use identity::Identity;
pub use managed::{ManagedConfig, ManagedError};
pub use nul_runs::{LineDigests, NulRun};
pub use sign::{Signer, sign, sign_answer, verify, verify_answer};
pub use totals::Totals;
pub use wire::{
    BatchHeader, BatchId, Chain, ChainPoint, DeadLettered, Encoding, EnrollAnswer, EnrollRequest,
    KeysAnswer, Problem, Receipt,
};

/// Version of the protocol in this crate: the `protocol` of a batch's header.
pub const PROTOCOL: u32 = 1;

/// Maximum nesting depth of a record that is sent as `record`; a deeper one is sent as `raw`.
pub const MAX_RECORD_DEPTH: usize = 100;
