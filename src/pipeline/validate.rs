//! Decides whether a configuration may replace the applied one.

use super::{assembly, config_test, record_stages::RecordStages};
use crate::{
    config::{ConfigError, LayerOrigin, LoadedConfig, Location},
    stages::AgentContext,
};

/// Reason that a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// It contains an error.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// One of its tests fails.
    #[error(
        "test `{test}` of {} fails in line {line}: expected {expected}, got {found}",
        of(location)
    )]
    Test {
        /// Name of the test.
        test: String,
        /// Place at which the test is defined.
        location: Box<Location>,
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
    match failed_tests(loaded, tests)?.into_iter().next() {
        Some(failed) => Err(failed),
        None => Ok(stages),
    }
}

/// Runs the tests of a configuration, and returns the failed ones with the first line that fails.
///
/// # Errors
/// [`ConfigError`] for the first filter that cannot be built.
pub fn failed_tests(
    loaded: &LoadedConfig,
    tests: TestScope,
) -> Result<Vec<ValidationError>, ConfigError> {
    let counts = |origin: &LayerOrigin| match tests {
        TestScope::Managed => matches!(origin, LayerOrigin::Managed(_)),
        TestScope::All => true,
    };
    let mut failed = Vec::new();
    for test in loaded.tests.iter().filter(|test| counts(&test.location.origin)) {
        let mismatch = config_test::run(test, &mut assembly::filters(loaded)?).into_iter().next();
        failed.extend(mismatch.map(|config_test::Mismatch { line, expected, found }| {
            ValidationError::Test {
                test: test.name.clone(),
                location: Box::new(test.location.clone()),
                line,
                expected: expected.without_output().to_string(),
                found: found.without_output().to_string(),
            }
        }));
    }
    Ok(failed)
}

fn of(location: &Location) -> String {
    match &location.origin {
        LayerOrigin::Managed(_) => "the managed configuration".to_owned(),
        _ => location.to_string(),
    }
}
