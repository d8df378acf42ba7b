//! Updates of the program.
//!
//! A new program is copied beside the running one, tested and renamed into its place; the previous one is
//! kept. The record beside the program says which of the two is in place and if the new one has proved
//! that it runs. Until then three parties can bring the previous one back, each on its own: the new
//! program's [`guard`], the service manager, which runs the guard of the previous program before each
//! start, and the [`supervisor`], a process of the previous program.

pub(crate) mod child;
pub(crate) mod entry;
pub(crate) mod guard;
pub(crate) mod outside;
pub(crate) mod program_files;
pub(crate) mod record;
pub(crate) mod self_test;
pub(crate) mod steps;
pub(crate) mod supervisor;
pub(crate) mod swap;

#[cfg(unix)]
#[cfg(test)]
mod tests;

mod clean_up;
mod download;
mod download_lock;
mod error;
mod install;
mod policy;
#[cfg(test)]
mod release_tests;
mod state;
mod updater;

/// Returns the directory of the running program, if it is known.
pub(crate) fn program_dir() -> Option<std::path::PathBuf> {
    ProgramFiles::of_current().ok().map(|files| files.directory().to_owned())
}

pub(crate) use self::{
    clean_up::remove_downloads,
    download::Limits,
    download_lock::DownloadLock,
    error::{UpdateError, rollback_reason},
    install::{Installation, lock},
    policy::{Decision, Wish},
    program_files::{NotReplaceable, ProgramFiles},
    record::UpdateRecord,
    state::{SharedUpdateSummary, StoredState, dir, remove_all, summary},
    steps::reach,
    swap::roll_back_by_hand,
    updater::Updater,
};
