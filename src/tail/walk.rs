//! Lists the files below the roots.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::platform::file::{self, Kind, Stamp};

/// A directory to list, by the name that it was configured with and by its real one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Root {
    /// As configured: what paths begin with.
    pub(super) configured: PathBuf,
    /// Without symlinks: what a watcher says.
    pub(super) canonical: PathBuf,
}

impl Root {
    /// The path as configured, of one that a watcher named.
    pub(super) fn path_of(&self, hinted: &Path) -> Option<PathBuf> {
        let below = hinted.strip_prefix(&self.canonical);
        let below = below.or_else(|_| hinted.strip_prefix(&self.configured)).ok()?;
        // Joining an empty path would add a separator.
        let is_root = below.as_os_str().is_empty();
        Some(if is_root { self.configured.clone() } else { self.configured.join(below) })
    }
}

/// The roots that are there, without those that lie in another or are the same directory.
pub(super) fn resolve(configured: &[PathBuf], mut fail: impl FnMut(&Path, io::Error)) -> Vec<Root> {
    let mut roots: Vec<Root> = Vec::new();
    for path in configured {
        match fs::canonicalize(path) {
            Ok(canonical) => roots.push(Root { configured: path.clone(), canonical }),
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

/// The directories that are still to be listed.
#[derive(Debug)]
pub(super) struct Walk {
    directories: Vec<PathBuf>,
    suffix: String,
}

impl Walk {
    /// A walk through all below `directories`.
    pub(super) fn new(directories: Vec<PathBuf>, suffix: &str) -> Self {
        Self { directories, suffix: suffix.to_owned() }
    }

    /// The directory that is listed next.
    pub(super) fn next(&self) -> Option<&Path> {
        self.directories.last().map(PathBuf::as_path)
    }

    /// Lists the next directory: calls `visit` for each regular file in it whose name ends in the
    /// suffix, and `fail` for what can't be listed. Symlinks are not followed. Says how many
    /// entries it had.
    pub(super) fn list(
        &mut self,
        mut visit: impl FnMut(PathBuf, Stamp),
        mut fail: impl FnMut(&Path, io::Error),
    ) -> usize {
        let Some(directory) = self.directories.pop() else { return 0 };
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                fail(&directory, error);
                return 0;
            }
        };
        let mut count = 0;
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    fail(&directory, error);
                    break;
                }
            };
            count += 1;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.directories.push(entry.path()),
                Ok(kind) if kind.is_file() && has_suffix(&entry.file_name(), &self.suffix) => {
                    match file::look_at_entry(&entry) {
                        Ok(sight) if sight.kind == Kind::File => visit(entry.path(), sight.stamp),
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => fail(&entry.path(), error),
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => fail(&entry.path(), error),
            }
        }
        count
    }
}

/// Whether a file's name ends in `suffix`.
pub(super) fn has_suffix(name: &std::ffi::OsStr, suffix: &str) -> bool {
    name.as_encoded_bytes().ends_with(suffix.as_bytes())
}

/// Whether nothing but directories lies between `root` and `path`.
pub(super) fn is_reached_without_symlinks(root: &Path, path: &Path) -> bool {
    path.ancestors()
        .skip(1)
        .take_while(|ancestor| *ancestor != root)
        .all(|ancestor| fs::symlink_metadata(ancestor).is_ok_and(|metadata| metadata.is_dir()))
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn found(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut visit = |path: PathBuf, _| {
            found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        };
        let mut walk = Walk::new(vec![root.to_owned()], ".jsonl");
        while walk.next().is_some() {
            walk.list(&mut visit, |path, error| panic!("{path:?}: {error}"));
        }
        found.sort();
        found
    }

    #[test]
    fn finds_files_at_any_depth_and_follows_no_symlink() {
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
    fn overlapping_roots_are_listed_once() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let link = root.path().join("link");
        symlink(&inner, &link).unwrap();
        let configured = |roots: &[&Path]| {
            let roots: Vec<_> = roots.iter().map(|root| root.to_path_buf()).collect();
            let roots = resolve(&roots, |path, error| panic!("{path:?}: {error}"));
            roots.into_iter().map(|root| root.configured).collect::<Vec<_>>()
        };
        let (root, inner, link) = (root.path(), &*inner, &*link);
        assert_eq!(configured(&[inner, root]), [root]);
        assert_eq!(configured(&[root, link]), [root]);
        assert_eq!(configured(&[link, inner]), [link]);
        assert_eq!(configured(&[inner, link]), [inner]);
    }
}
