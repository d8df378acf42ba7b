//! Built-in stages, and the services of the agent for them.
//!
//! The stage API is the crate `ai-agent-stage`. A stage is one file; it registers itself with
//! `inventory::submit!`, so that adding one needs no second edit, here or in another crate.

// Stages of other crates: without these lines the linker leaves them out.
use ai_agent_auditd as _;
use ai_agent_cel as _;

mod context;
pub mod enricher;
pub mod filter;
mod log_follower;
mod session_lines;
mod sessions;
pub mod sink;
pub mod source;

pub use ai_agent_stage::{BuildError, Record, StageKind, StageOptions, registered as all};
pub use context::AgentContext;
pub use log_follower::{LogOptions, follow_log};
pub use sessions::{SessionKey, Sessions, SharedRoots};

/// A stage under the name of its instance.
pub type Named<S> = (String, Box<S>);
