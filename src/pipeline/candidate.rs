//! Whether a configuration may take the place of the one in force.

use super::{assembly, group::Stages, trial};
use crate::{
    config::{ConfigError, Loaded, Origin},
    stages::Context,
};

/// Why a managed configuration is refused whole.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Something in it is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A test that it carries fails.
    #[error(
        "the test `{test}` of the managed configuration fails in line {line}: expected {expected}, got \
         {found}"
    )]
    Test {
        /// The test's name.
        test: String,
        /// The first line that fails, from 1.
        line: usize,
        /// What the test says.
        expected: String,
        /// What became of the line.
        found: String,
    },
}

/// Builds filters and enrichers of a configuration with a managed layer, those too that are switched
/// off, and runs the tests that this layer carries.
///
/// # Errors
/// [`Refusal`]: what is in force stays.
pub fn accept(loaded: &Loaded, context: &Context) -> Result<Stages, Refusal> {
    let stages = assembly::stages(loaded, context)?;
    if let Some(error) = assembly::check_switched_off(loaded, context).into_iter().next() {
        return Err(error.into());
    }
    let own = |place: &Origin| matches!(place, Origin::Managed(_));
    for test in loaded.tests.iter().filter(|test| own(&test.place.origin)) {
        let mismatch = trial::run(test, &mut assembly::judge(loaded)?).into_iter().next();
        if let Some(trial::Mismatch { line, expected, found }) = mismatch {
            let test = test.name.clone();
            let (expected, found) = (expected.in_short().to_string(), found.in_short().to_string());
            return Err(Refusal::Test { test, line, expected, found });
        }
    }
    Ok(stages)
}
