//! Events that the agent itself reports.

pub use ai_agent_stage::Event;
