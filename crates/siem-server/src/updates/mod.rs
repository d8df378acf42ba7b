//! Releases of the agent in a folder: its catalog, and the artifacts that it lists.
//!
//! Nothing of the folder is kept in memory: a change counts for the next request.

mod add;
mod edit;
mod folder;
mod remove;

pub use add::{AddError, AddedRelease, add_releases};
pub use edit::{EditError, edit_catalog};
pub(crate) use folder::CATALOG;
pub use folder::{CatalogError, OpenedArtifact, ReleaseFolder};
pub use remove::{RemoveError, remove_release};
