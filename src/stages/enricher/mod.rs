//! Built-in enrichers.

mod activity;
mod host;
mod labels;

use ai_agent_stage::{BuildError, StageOptions};
pub use ai_agent_stage::{Enricher, EnricherOptions, Plugin, Record};

use super::AgentContext;

/// Builds an enricher of type `name`.
///
/// # Errors
/// [`BuildError`] if no such enricher is registered or an option is wrong.
pub fn build(
    name: &str,
    options: &StageOptions,
    context: &AgentContext,
) -> Result<Box<dyn Enricher>, BuildError> {
    ai_agent_stage::build_enricher(name, options, &context.for_stages())
}
