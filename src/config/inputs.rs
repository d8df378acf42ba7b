//! Inputs that a configuration is read from.

use std::path::Path;

use super::managed::ManagedSettings;
use crate::platform::{Environment, Paths};

/// Inputs that a configuration is read from.
#[derive(Clone, Copy, Debug)]
pub struct ConfigInputs<'a> {
    /// Paths of the configuration files.
    pub paths: &'a Paths,
    /// Environment variables.
    pub environment: &'a Environment,
    /// File given with `--config`; it must exist.
    pub explicit: Option<&'a Path>,
    /// Configuration that the server manages; its signature has already been checked.
    pub managed: Option<&'a ManagedSettings>,
}
