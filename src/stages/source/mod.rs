//! Built-in sources.

mod claude_sessions;
mod hook_spool;

use std::time::Duration;

pub use ai_agent_stage::{
    BadRow, Chunk, GenerationId, Intake, Piece, Plugin, Progress, Source, SourceOptions, Survey,
    Waker,
};
use ai_agent_stage::{BuildError, StageOptions};

use super::AgentContext;

/// Builds a source of type `name`.
///
/// # Errors
/// [`BuildError`] if no such source is registered or an option is wrong.
pub fn build(
    name: &str,
    options: &StageOptions,
    context: &AgentContext,
    waker: Waker,
) -> Result<Box<dyn Source>, BuildError> {
    ai_agent_stage::build_source(name, options, &context.for_stages(), waker)
}

/// Longest time between two reads of a source, even if it requests a longer one.
pub const LONGEST_SLEEP: Duration = Duration::from_secs(300);
