//! Symlinks below the roots: which of them are followed.
//!
//! A project directory or a session may be a symlink, as managers of dotfiles create them. A link is
//! followed if that cannot reveal files of another user and cannot lead in a circle.

use std::{
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use siem_protocol::agent_event::UnreadableReason;

use super::directory_walk::{self, RootDirectory};
use crate::platform::{
    file::{self, FileInfo, FileKind, Stamp},
    links::{self, LinkTarget},
};

/// Decides which links are followed. The calls may block for as long as a file system likes:
/// `FileAccess` runs them with a limited time.
#[derive(Clone, Debug, Default)]
pub(super) struct LinkRules {
    /// Home directory, without symlinks.
    home: Option<PathBuf>,
    roots: Vec<RootDirectory>,
}

/// Reason why a link is not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LinkProblem {
    /// It leads to nothing.
    Broken,
    /// It leads to a FIFO, device or socket.
    Kind(PathBuf),
    /// Its target belongs to another user.
    Owner(PathBuf),
    /// Its target contains a root.
    ContainsRoot(PathBuf),
    /// Its target contains the home directory.
    ContainsHome(PathBuf),
}

impl LinkRules {
    /// Creates the rules for links below `roots`; `home` must have no symlinks.
    pub(super) fn new(home: Option<PathBuf>, roots: &[RootDirectory]) -> Self {
        Self { home, roots: roots.to_vec() }
    }

    /// Returns the id of the volume of the root above `path`.
    pub(super) fn volume_of_root(&self, path: &Path) -> Option<u64> {
        self.root_of(path)?.volume
    }

    /// Follows a link.
    ///
    /// # Errors
    /// A [`LinkProblem`], or the error of the system.
    pub(super) fn resolve(&self, link: &Path) -> io::Result<LinkTarget> {
        let target = links::resolve(link).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => LinkProblem::Broken.into(),
            _ => error,
        })?;
        let path = || target.path.clone();
        match target.info.kind {
            FileKind::File => {}
            FileKind::Directory => {
                if self.roots.iter().any(|root| root.canonical.starts_with(&target.path)) {
                    return Err(LinkProblem::ContainsRoot(path()).into());
                }
                if self.home.as_ref().is_some_and(|home| home.starts_with(&target.path)) {
                    return Err(LinkProblem::ContainsHome(path()).into());
                }
            }
            FileKind::Link | FileKind::Other => return Err(LinkProblem::Kind(path()).into()),
        }
        let is_own = match self.root_of(link) {
            Some(root) => links::belongs_to_user(&target.path, &root.canonical)?,
            None => false,
        };
        if is_own { Ok(target) } else { Err(LinkProblem::Owner(path()).into()) }
    }

    fn root_of(&self, path: &Path) -> Option<&RootDirectory> {
        self.roots.iter().find(|root| path.starts_with(&root.configured))
    }

    /// Returns true if the file at `path` is reached through a link below a root.
    pub(super) fn is_linked(&self, path: &Path) -> bool {
        let is_link = || file::inspect(path).is_ok_and(|info| info.kind == FileKind::Link);
        self.root_of(path).is_some_and(|root| {
            is_link() || !directory_walk::is_reached_without_symlinks(&root.configured, path)
        })
    }

    /// Returns true if `path`, which has no symlinks, is below a root.
    pub(super) fn is_in_root(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| path.starts_with(&root.canonical))
    }

    /// Returns kind and stamp of the file at `path`, or of the target of a link there.
    ///
    /// # Errors
    /// As [`LinkRules::resolve`].
    pub(super) fn inspect(&self, path: &Path) -> io::Result<FileInfo> {
        let info = file::inspect(path)?;
        if info.kind == FileKind::Link { Ok(self.resolve(path)?.info) } else { Ok(info) }
    }

    /// Opens the regular file at `path`, or at the end of a link there; `None` if there is something
    /// else.
    ///
    /// A file that is reached through a link must belong to the user. The open file is checked,
    /// because links and their targets can be replaced between a check of a path and its opening.
    ///
    /// # Errors
    /// As [`LinkRules::resolve`].
    pub(super) fn open(&self, path: &Path) -> io::Result<Option<(File, Stamp)>> {
        if let Some((file, stamp)) = file::open_regular(path)? {
            self.check_unless_without_links(path, &file)?;
            return Ok(Some((file, stamp)));
        }
        if file::inspect(path)?.kind != FileKind::Link {
            return Ok(None);
        }
        let target = self.resolve(path)?;
        // The target may have been replaced by a file that the rules forbid.
        let is_target = |stamp: &Stamp| stamp.id == target.info.stamp.id;
        let opened = file::open_regular(&target.path)?.filter(|(_, stamp)| is_target(stamp));
        let Some((file, stamp)) = opened else { return Ok(None) };
        let is_own = |root: &RootDirectory| links::file_belongs_to_user(&file, &root.canonical);
        match self.root_of(path).map(is_own).transpose()? {
            Some(true) => Ok(Some((file, stamp))),
            Some(false) | None => Err(LinkProblem::Owner(target.path).into()),
        }
    }

    /// Checks that the open file of `path` belongs to the user, or that no link leads to it. Most
    /// files belong to the user, for which the owner is sufficient.
    fn check_unless_without_links(&self, path: &Path, file: &File) -> io::Result<()> {
        let Some(root) = self.root_of(path) else { return Ok(()) };
        let Ok(below) = path.strip_prefix(&root.configured) else { return Ok(()) };
        if links::file_belongs_to_user(file, &root.canonical)?
            || links::is_reached_without_links(file, &root.canonical, below)?
        {
            return Ok(());
        }
        Err(LinkProblem::Owner(path.to_owned()).into())
    }
}

impl LinkProblem {
    /// Returns the problem in an error that [`LinkRules::resolve`] returned.
    pub(super) fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Reason in events.
    pub(super) fn reason(&self) -> UnreadableReason {
        match self {
            Self::Broken => UnreadableReason::LinkBroken,
            Self::Kind(_) => UnreadableReason::LinkTargetKind,
            Self::Owner(_) => UnreadableReason::LinkTargetOwner,
            Self::ContainsRoot(_) => UnreadableReason::LinkContainsRoot,
            Self::ContainsHome(_) => UnreadableReason::LinkContainsHome,
        }
    }
}

impl fmt::Display for LinkProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (target, text) = match self {
            Self::Broken => return f.write_str("the link leads to nothing"),
            Self::Kind(target) => (target, "neither a regular file nor a directory"),
            Self::Owner(target) => (target, "which belongs to another user"),
            Self::ContainsRoot(target) => (target, "which contains a directory that is read"),
            Self::ContainsHome(target) => (target, "which contains the home directory"),
        };
        write!(f, "the link is not followed: it leads to `{}`, {text}", target.display())
    }
}

impl std::error::Error for LinkProblem {}

impl From<LinkProblem> for io::Error {
    fn from(problem: LinkProblem) -> Self {
        Self::other(problem)
    }
}
