//! Who is signed in, what the organisation's policy says of it, and what a hook answers.
//!
//! [`account`] reads what Claude Code and Claude Desktop keep, [`policy`] judges it, [`hook_response`] puts
//! the judgement into words for the client's hooks. The two latter are pure. Nothing here needs
//! the network, the outbox or the daemon: a hook process does all of it by itself, at each call.

pub mod account;
pub mod cache;
pub mod client_files;
pub mod client_settings;
pub mod desktop;
mod event_data;
pub mod hook_input;
pub mod hook_response;
pub mod policy;
pub mod policy_file;
pub mod spool;
pub mod violation_tracker;

pub use account::{Account, SignInState};
pub use policy::{Evaluation, PolicyFinding};
