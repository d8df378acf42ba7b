//! Lists the files below the roots.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};

use crate::platform::file::{self, FileKind, Stamp};

/// RootDirectory directory, under its configured path and its canonical one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RootDirectory {
    /// Configured path, the prefix of all paths below it.
    pub(super) configured: PathBuf,
    /// Path without symlinks, as reported by a watcher.
    pub(super) canonical: PathBuf,
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
    mut fail: impl FnMut(&Path, io::Error),
) -> Vec<RootDirectory> {
    let mut roots: Vec<RootDirectory> = Vec::new();
    for path in configured {
        match fs::canonicalize(path) {
            Ok(canonical) => roots.push(RootDirectory { configured: path.clone(), canonical }),
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

/// Directories that have not been listed yet.
#[derive(Debug)]
pub(super) struct Walk {
    directories: Vec<PathBuf>,
    names: Names,
}

impl Walk {
    /// Creates a walk through all directories below `directories`.
    pub(super) fn new(directories: Vec<PathBuf>, names: &Names) -> Self {
        Self { directories, names: names.clone() }
    }

    /// Returns the directory that is listed next.
    pub(super) fn next(&self) -> Option<&Path> {
        self.directories.last().map(PathBuf::as_path)
    }

    /// Lists the next directory: calls `visit` for each regular file with a followed name, and `fail`
    /// for each error. Does not follow symlinks. Returns the number of entries.
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
                Ok(kind) if kind.is_dir() => {
                    if self.names.is_recursive() {
                        self.directories.push(entry.path());
                    }
                }
                Ok(kind) if kind.is_file() && self.names.matches(Path::new(&entry.file_name())) => {
                    match file::inspect_entry(&entry) {
                        Ok(info) if info.kind == FileKind::File => visit(entry.path(), info.stamp),
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
    use std::os::unix::fs::symlink;

    use super::*;

    fn found(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut visit = |path: PathBuf, _| {
            found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        };
        let mut walk = Walk::new(vec![root.to_owned()], &Names::EndingIn(".jsonl".to_owned()));
        while walk.next().is_some() {
            walk.list(&mut visit, |path, error| panic!("{path:?}: {error}"));
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
    fn walk_lists_any_depth_and_follows_no_symlink() {
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
