//! Managed configurations of a fleet: the files that the receiver serves, and the choice among them.
//!
//! [`ConfigFolder`] reads the files and follows their changes. [`resolve()`] chooses the file for a
//! device, and is policy without I/O, like [`Rollout`] and [`check()`].

mod check;
mod file;
mod folder;
mod history;
mod precedence;
mod resolve;
mod revert;
mod rollout;
mod stats;
mod write;

#[cfg(test)]
mod tests;

pub use check::{ConfigProblem, Severity, check};
pub use file::{ConfigFile, FileProblem, is_config_name};
pub use folder::{ConfigFolder, FileSet, FolderOptions};
pub use history::{ConfigHistory, HistoryEntry};
pub use precedence::Specificity;
pub use resolve::{Choice, DeviceFacts, Exclusion, Winner, choose, resolve};
pub use revert::{RevertError, with_serial};
pub use rollout::{Rollout, RolloutError};
pub use stats::{
    BrokenConfig, ConfigFileStats, ConfigState, ConfigStats, DeviceName, DeviceRefusal,
    choose_for_device,
};
pub use write::replace_public_file;
pub(crate) use write::share_as_directory;
