//! `[retention]`: how long records are kept.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::{Size, Time};
use crate::life::RetentionPolicy;

/// How long records are kept.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RetentionTable {
    /// Time for which entries are kept; zero keeps all.
    pub max_age: Time,
    /// Size of all records, beyond which the oldest entries are removed; zero is no limit.
    pub max_bytes: Size,
}

impl RetentionTable {
    /// Returns the limits that are set.
    #[must_use]
    pub fn policy(&self) -> RetentionPolicy {
        RetentionPolicy {
            max_age: Some(self.max_age.0).filter(|age| !age.is_zero()),
            max_bytes: Some(self.max_bytes.0).filter(|bytes| *bytes > 0),
        }
    }
}
