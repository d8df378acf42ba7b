//! Built-in filters.

mod compact;
mod dedupe;
mod ignore_types;
mod mask;
mod meta;
mod path;
mod pattern;
mod sidechain;
mod tool_call;

#[cfg(test)]
use ai_agent_stage::{BuildError, FilterOptions, StageOptions};
pub use ai_agent_stage::{Change, Filter, Match, Verdict, build_filter as build};

/// Builds a filter from its options in TOML.
#[cfg(test)]
fn from_toml<O: FilterOptions>(text: &str) -> Result<O::Filter, BuildError> {
    text.parse::<StageOptions>()?.parse::<O>()?.build()
}
