//! Lists the files below the roots.

use std::{
    collections::{BTreeSet, HashSet},
    ffi::{OsStr, OsString},
    fs, io, mem,
    path::{Path, PathBuf},
};

use super::{
    access::FileAccess,
    links::LinkProblem,
    listing::{FoundEntry, Listing, VisitedDirectory},
};
use crate::platform::{
    file::{self, FileKind, Stamp},
    links,
};

/// Root directory, under its configured path and its canonical one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RootDirectory {
    /// Configured path, the prefix of all paths below it.
    pub(super) configured: PathBuf,
    /// Path without symlinks, as reported by a watcher.
    pub(super) canonical: PathBuf,
    /// Id of its volume.
    pub(super) volume: Option<u64>,
}

impl RootDirectory {
    /// Translates a path from a watcher to one below the configured path.
    pub(super) fn configured_path(&self, hinted: &Path) -> Option<PathBuf> {
        let below = hinted.strip_prefix(&self.canonical);
        let below = below.or_else(|_| hinted.strip_prefix(&self.configured)).ok()?;
        // Joining an empty path would add a separator.
        let is_root = below.as_os_str().is_empty();
        Some(if is_root { self.configured.clone() } else { self.configured.join(below) })
    }
}

/// Returns the existing roots, without those that are within another or the same directory.
pub(super) fn resolve(
    configured: &[PathBuf],
    access: &FileAccess,
    mut fail: impl FnMut(&Path, io::Error),
) -> Vec<RootDirectory> {
    let mut roots: Vec<RootDirectory> = Vec::new();
    for path in configured {
        let of_call = path.clone();
        let resolved = access.run(path, move || {
            let canonical = links::canonical(&of_call)?;
            let id = file::inspect(&canonical)?.stamp.id;
            Ok((canonical, id.map(|id| id.volume)))
        });
        match resolved {
            Ok((canonical, volume)) => {
                roots.push(RootDirectory { configured: path.clone(), canonical, volume });
            }
            Err(error) => fail(path, error),
        }
    }
    let is_covered = |index: usize| {
        let root = &roots[index].canonical;
        roots.iter().enumerate().any(|(other_index, other)| {
            let is_before = other_index < index;
            root.starts_with(&other.canonical) && (*root != other.canonical || is_before)
        })
    };
    let mut covered = (0..roots.len()).map(is_covered).collect::<Vec<_>>().into_iter();
    roots.retain(|_| covered.next() == Some(false));
    roots
}

/// Names of the files that are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// Files with this suffix, at any depth.
    EndingIn(String),
    /// A log and its rotated files: `audit.log`, `audit.log.1`, `audit.log.2` … They are directly in
    /// the roots.
    Log(OsString),
}

/// Directories and links that have not been visited yet.
///
/// Links come last, in the order of their paths: a file that is below a root is found there, and one
/// to which several links lead is found under the same path each time.
#[derive(Debug)]
pub(super) struct Walk {
    directories: Vec<PathBuf>,
    /// Directories below links.
    linked: Vec<PathBuf>,
    links: BTreeSet<PathBuf>,
    /// Directories that were found through links.
    visited: HashSet<VisitedDirectory>,
    followed: Vec<RootDirectory>,
    access: FileAccess,
    names: Names,
}

/// A file that a walk found.
#[derive(Debug)]
pub(super) struct FoundFile {
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
    /// True if a link leads to it, or to a directory above it.
    pub(super) is_linked: bool,
}

impl Walk {
    /// Creates a walk through all directories below `directories`.
    pub(super) fn new(directories: Vec<PathBuf>, names: &Names, access: FileAccess) -> Self {
        Self {
            directories,
            linked: Vec::new(),
            links: BTreeSet::new(),
            visited: HashSet::new(),
            followed: Vec::new(),
            access,
            names: names.clone(),
        }
    }

    /// Returns true if everything was visited.
    pub(super) fn is_over(&self) -> bool {
        self.directories.is_empty() && self.linked.is_empty() && self.links.is_empty()
    }

    /// Returns true if a directory is visited next, and not a link.
    pub(super) fn has_directory(&self) -> bool {
        !self.directories.is_empty() || !self.linked.is_empty()
    }

    /// Returns true if there are links that were not followed; forgets them.
    pub(super) fn skip_links(&mut self) -> bool {
        !mem::take(&mut self.links).is_empty()
    }

    /// Links to directories that were followed: each path, and the path of its target.
    pub(super) fn take_followed(&mut self) -> Vec<RootDirectory> {
        mem::take(&mut self.followed)
    }

    /// Lists the next directory, or follows the next link: calls `visit` for each regular file with
    /// a followed name, and `fail` for each error. Returns the number of entries. `watch` is called
    /// with the directory before it is listed, on another thread.
    pub(super) fn list(
        &mut self,
        watch: impl FnOnce(&Path) + Send + 'static,
        mut visit: impl FnMut(FoundFile),
        mut fail: impl FnMut(&Path, io::Error),
    ) -> usize {
        let is_linked = self.directories.is_empty();
        let Some(directory) = self.directories.pop().or_else(|| self.linked.pop()) else {
            self.follow_link(visit, fail);
            return 0;
        };
        let (of_call, names) = (directory.clone(), self.names.clone());
        let mut batch = self.access.run(&directory, move || {
            Ok(Listing::start(of_call, names, is_linked, watch)?.next_batch())
        });
        let mut count = 0;
        loop {
            let (entries, rest) = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    fail(&directory, error);
                    return count;
                }
            };
            count += entries.len();
            for entry in entries {
                self.visit_entry(entry, is_linked, &mut visit, &mut fail);
            }
            let Some(rest) = rest else { return count };
            batch = self.access.run(&directory, move || Ok(rest.next_batch()));
        }
    }

    fn visit_entry(
        &mut self,
        entry: FoundEntry,
        is_linked: bool,
        visit: &mut impl FnMut(FoundFile),
        fail: &mut impl FnMut(&Path, io::Error),
    ) {
        match entry {
            FoundEntry::Directory { path, visited: None } => self.directories.push(path),
            FoundEntry::Directory { path, visited: Some(directory) } => {
                if self.visited.insert(directory) {
                    self.linked.push(path);
                }
            }
            FoundEntry::File { path, stamp } => visit(FoundFile { path, stamp, is_linked }),
            FoundEntry::Link { path } => {
                self.links.insert(path);
            }
            FoundEntry::Failed { path, error } => fail(&path, error),
            FoundEntry::Ignored => {}
        }
    }

    fn follow_link(
        &mut self,
        mut visit: impl FnMut(FoundFile),
        mut fail: impl FnMut(&Path, io::Error),
    ) {
        let Some(link) = self.links.pop_first() else { return };
        let is_named = self.names.matches(&link);
        let of_call = link.clone();
        let followed = self.access.follow(&link, move |rules| {
            let target = rules.resolve(&of_call)?;
            let visited = match target.info.kind {
                FileKind::Directory => {
                    Some(VisitedDirectory::new(target.info.stamp.id, &target.path)?)
                }
                _ => None,
            };
            Ok((target.info, (target.path, visited)))
        });
        let (info, (target, visited)) = match followed {
            Ok(followed) => followed,
            Err(error) => {
                // With another name only a directory would be read.
                let may_be_directory =
                    is_named || link.extension().is_none() || !is_about_a_file(&error);
                if may_be_directory {
                    fail(&link, error);
                }
                return;
            }
        };
        let is_in_root = self.access.rules().is_in_root(&target);
        if let Some(directory) = visited {
            if self.names.is_recursive() && !is_in_root && self.visited.insert(directory) {
                self.linked.push(link.clone());
                let volume = info.stamp.id.map(|id| id.volume);
                self.followed.push(RootDirectory { configured: link, canonical: target, volume });
            }
        } else if is_named && !(is_in_root && self.names.matches(&target)) {
            // Within the root it is found under its own name.
            visit(FoundFile { path: link, stamp: info.stamp, is_linked: true });
        }
    }
}

/// Returns true if a link is not followed although it may not lead to a directory.
fn is_about_a_file(error: &io::Error) -> bool {
    use LinkProblem::{Broken, Kind, Owner};
    matches!(LinkProblem::of(error), Some(Broken | Kind(_) | Owner(_)))
}

impl Names {
    /// Returns true if files in directories below the roots are followed.
    pub(super) fn is_recursive(&self) -> bool {
        matches!(self, Self::EndingIn(_))
    }

    /// Returns how often a log was rotated; `None` if files are not read in the order of rotations.
    pub(super) fn rotations(&self, path: &Path) -> Option<i64> {
        let Self::Log(_) = self else { return None };
        let number = path.extension().and_then(OsStr::to_str).and_then(|it| it.parse().ok());
        Some(number.unwrap_or(0))
    }

    /// Returns true if a file with this path is followed.
    pub(super) fn matches(&self, path: &Path) -> bool {
        let Some(name) = path.file_name().map(OsStr::as_encoded_bytes) else { return false };
        match self {
            Self::EndingIn(suffix) => name.ends_with(suffix.as_bytes()),
            Self::Log(log) => match name.strip_prefix(log.as_encoded_bytes()) {
                Some([]) => true,
                Some([b'.', number @ ..]) => {
                    !number.is_empty() && number.iter().all(u8::is_ascii_digit)
                }
                _ => false,
            },
        }
    }
}

/// Returns true if every component between `root` and `path` is a directory and not a symlink.
pub(super) fn is_reached_without_symlinks(root: &Path, path: &Path) -> bool {
    path.ancestors()
        .skip(1)
        .take_while(|ancestor| *ancestor != root)
        .all(|ancestor| fs::symlink_metadata(ancestor).is_ok_and(|metadata| metadata.is_dir()))
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::{os::unix::fs::symlink, sync::Arc};

    use super::*;
    use crate::platform::{SystemClock, bounded::BoundedCalls};

    fn access() -> FileAccess {
        FileAccess::new(BoundedCalls::new(Arc::new(SystemClock)), &[])
    }

    fn found(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut visit = |file: FoundFile| {
            found.push(file.path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        };
        let names = Names::EndingIn(".jsonl".to_owned());
        let mut walk = Walk::new(vec![root.to_owned()], &names, access());
        while walk.has_directory() {
            walk.list(|_| (), &mut visit, |path, error| panic!("{path:?}: {error}"));
        }
        found.sort();
        found
    }

    #[test]
    fn log_names_match_before_and_after_rotation() {
        let names = Names::Log("audit.log".into());
        let is_log = |name: &str| names.matches(&Path::new("/var/log/audit").join(name));
        assert!(["audit.log", "audit.log.1", "audit.log.27"].iter().all(|name| is_log(name)));
        let others = ["audit.logs", "audit.log.", "audit.log.gz", "audit.log.1.gz", "my-audit.log"];
        assert!(!others.iter().any(|name| is_log(name)));
        let rotations = |name: &str| names.rotations(Path::new(name));
        assert_eq!([rotations("audit.log"), rotations("audit.log.12")], [Some(0), Some(12)]);
    }

    #[test]
    fn walk_lists_any_depth_before_it_follows_links() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("outside.jsonl"), "").unwrap();
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b/c/directory.jsonl/d");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("deep.jsonl"), "").unwrap();
        fs::write(root.path().join("top.jsonl"), "").unwrap();
        fs::write(root.path().join("top.json"), "").unwrap();
        symlink(outside.path(), root.path().join("link")).unwrap();
        symlink(outside.path().join("outside.jsonl"), root.path().join("link.jsonl")).unwrap();
        assert_eq!(found(root.path()), ["a/b/c/directory.jsonl/d/deep.jsonl", "top.jsonl"]);
        assert!(!is_reached_without_symlinks(root.path(), &root.path().join("link/outside.jsonl")));
        assert!(is_reached_without_symlinks(root.path(), &deep.join("deep.jsonl")));
    }

    #[test]
    fn directory_without_file_id_is_visited_once() {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("p")).unwrap();
        symlink(".", outside.path().join("again")).unwrap();
        let directory =
            |path: &str| VisitedDirectory::new(None, &outside.path().join(path)).unwrap();
        assert_eq!(directory("p"), directory("again/again/p"));
        assert_ne!(directory("p"), directory("again"));
    }

    #[test]
    fn overlapping_roots_are_listed_once() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let link = root.path().join("link");
        symlink(&inner, &link).unwrap();
        let configured = |roots: &[&Path]| {
            let roots: Vec<_> = roots.iter().map(|root| root.to_path_buf()).collect();
            let roots = resolve(&roots, &access(), |path, error| panic!("{path:?}: {error}"));
            roots.into_iter().map(|root| root.configured).collect::<Vec<_>>()
        };
        let (root, inner, link) = (root.path(), &*inner, &*link);
        assert_eq!(configured(&[inner, root]), [root]);
        assert_eq!(configured(&[root, link]), [root]);
        assert_eq!(configured(&[link, inner]), [link]);
        assert_eq!(configured(&[inner, link]), [inner]);
    }
}
