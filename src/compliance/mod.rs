//! Compliance: the account that is signed in, the organisation's policy on accounts, and responses
//! to hooks.
//!
//! [`account`] reads the files of Claude Code and Claude Desktop, [`policy`] evaluates the account,
//! [`hook_response`] turns the result into a response to the client's hooks. The latter two are
//! pure functions. Nothing here needs the network, the outbox or the daemon: a hook process does
//! all of it on each call.

pub mod account;
pub mod account_files;
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
pub mod unknown_accounts;
pub mod violation_tracker;

pub use account::{Account, SignInState};
pub use policy::{Evaluation, PolicyFinding};
