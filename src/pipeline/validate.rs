//! Decides whether a configuration may replace the applied one.

use super::{assembly, config_test, record_stages::RecordStages};
use crate::{
    config::{ConfigError, LayerOrigin, LoadedConfig},
    stages::AgentContext,
};

/// Reason that a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// It contains an error.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// One of its tests fails.
    #[error("test `{test}` of {origin} fails in line {line}: expected {expected}, got {found}")]
    Test {
        /// Name of the test.
        test: String,
        /// Place at which the test is defined.
        origin: String,
        /// Number of the first line that fails, from 1.
        line: usize,
        /// Outcome that the test expects.
        expected: String,
        /// Actual outcome.
        found: String,
    },
}

/// Tests of a configuration that must pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestScope {
    /// Those of the managed layer: a change by the server carries its own tests.
    Managed,
    /// Those of all layers.
    All,
}

/// Builds the filters and enrichers of a configuration, also disabled ones, and runs its tests.
///
/// # Errors
/// [`ValidationError`]: the applied configuration stays.
pub fn validate(
    loaded: &LoadedConfig,
    context: &AgentContext,
    tests: TestScope,
) -> Result<RecordStages, ValidationError> {
    let stages = assembly::stages(loaded, context)?;
    if let Some(error) = assembly::check_switched_off(loaded, context).into_iter().next() {
        return Err(error.into());
    }
    let counts = |origin: &LayerOrigin| match tests {
        TestScope::Managed => matches!(origin, LayerOrigin::Managed(_)),
        TestScope::All => true,
    };
    for test in loaded.tests.iter().filter(|test| counts(&test.location.origin)) {
        let mismatch = config_test::run(test, &mut assembly::filters(loaded)?).into_iter().next();
        if let Some(config_test::Mismatch { line, expected, found }) = mismatch {
            let origin = match &test.location.origin {
                LayerOrigin::Managed(_) => "the managed configuration".to_owned(),
                _ => test.location.to_string(),
            };
            let test = test.name.clone();
            let (expected, found) =
                (expected.without_output().to_string(), found.without_output().to_string());
            return Err(ValidationError::Test { test, origin, line, expected, found });
        }
    }
    Ok(stages)
}
