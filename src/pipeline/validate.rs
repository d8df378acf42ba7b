//! Whether a configuration may take the place of the one in force.

use super::{assembly, config_test, record_stages::RecordStages};
use crate::{
    config::{ConfigError, LayerOrigin, LoadedConfig},
    stages::Context,
};

/// Why a managed configuration is refused whole.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// Something in it is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A test that it carries fails.
    #[error("the test `{test}` of {origin} fails in line {line}: expected {expected}, got {found}")]
    Test {
        /// The test's name.
        test: String,
        /// Where it stands.
        origin: String,
        /// The first line that fails, from 1.
        line: usize,
        /// What the test says.
        expected: String,
        /// What became of the line.
        found: String,
    },
}

/// Which tests of a configuration decide about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestScope {
    /// Those of its managed layer: a server's change answers for itself.
    Managed,
    /// Those of every layer.
    All,
}

/// Builds filters and enrichers of a configuration, those too that are switched off, and runs its
/// tests.
///
/// # Errors
/// [`ValidationError`]: what is in force stays.
pub fn validate(
    loaded: &LoadedConfig,
    context: &Context,
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
            let (expected, found) = (expected.in_short().to_string(), found.in_short().to_string());
            return Err(ValidationError::Test { test, origin, line, expected, found });
        }
    }
    Ok(stages)
}
