//! Detects changes of the configuration's files by comparing their metadata.
//!
//! A `stat` every two seconds is cheap and works on every file system; notifications are neither on
//! network homes nor behind symlinks.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::platform::{
    bounded::{BoundedCalls, Latest},
    file::{self, Stamp},
};

/// Interval between two inspections.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);
/// Interval while a file is changing: one that is still being written is left alone.
pub(super) const INTERVAL_WHILE_CHANGING: Duration = Duration::from_millis(500);

/// Longest wait for the stamps.
const PATIENCE: Duration = Duration::from_millis(500);

/// Stamp of each file; `None` where there is no file.
pub(super) type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// Stamps of the files that determine the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ConfigStamps {
    /// Files of its layers.
    pub(super) layers: Stamps,
    /// Files that it names: secrets, certificates.
    pub(super) named: Stamps,
}

/// Reads the stamps of files. Symlinks are followed, since some tools replace a configuration by
/// changing a symlink.
pub(super) fn stamps(paths: impl IntoIterator<Item = PathBuf>) -> Stamps {
    paths.into_iter().map(|path| (path.clone(), stamp(&path))).collect()
}

/// Reads the stamp of a file; `None` where there is no file.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    // Called often: only a symlink costs a walk along its path.
    let found = match file::inspect(path) {
        Ok(found) if found.kind == file::FileKind::Link => {
            fs::canonicalize(path).and_then(|path| file::inspect(&path))
        }
        found => found,
    };
    found.ok().map(|found| found.stamp)
}

/// Reads the stamps of files without waiting for a file system that does not answer: the stamp of such
/// a file stays the same.
///
/// One call reads all of them. While it has not returned, there is one for each file.
#[derive(Default)]
pub(super) struct StampReader {
    known: Stamps,
    all: Latest<Stamps>,
    single: BTreeMap<PathBuf, Latest<Option<Stamp>>>,
}

impl StampReader {
    /// Returns the stamps of `paths`; `None` also for a file that has never answered.
    pub(super) fn read(&mut self, calls: &BoundedCalls, paths: &[PathBuf]) -> Stamps {
        let Some(first) = paths.first() else { return Stamps::new() };
        let of_call = paths.to_vec();
        let is_new = self.all.refresh(calls, first, PATIENCE, move |current| {
            let stamp = |path: PathBuf| {
                current.set(&path);
                let stamp = stamp(&path);
                (path, stamp)
            };
            of_call.into_iter().map(stamp).collect()
        });
        match self.all.value().filter(|_| is_new) {
            Some(stamps) => {
                self.known.clone_from(stamps);
                self.single.clear();
            }
            None => paths.iter().for_each(|path| self.read_single(calls, path)),
        }
        let known = |path: &PathBuf| (path.clone(), self.known.get(path).copied().flatten());
        paths.iter().map(known).collect()
    }

    fn read_single(&mut self, calls: &BoundedCalls, path: &Path) {
        let of_call = path.to_owned();
        let latest = self.single.entry(path.to_owned()).or_default();
        latest.refresh(calls, path, PATIENCE, move |_| stamp(&of_call));
        if let Some(stamp) = latest.value() {
            self.known.insert(path.to_owned(), *stamp);
        }
    }
}

/// Compares stamps with those at the time when the configuration was read.
#[derive(Debug, Default)]
pub(crate) struct ConfigFileWatch {
    /// Stamps when the configuration was read last.
    read: ConfigStamps,
    /// Stamps at the last inspection, if they differed.
    changing: Option<ConfigStamps>,
}

/// Result of an inspection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The files are as they were when they were read.
    None,
    /// A file has just changed and may be incomplete.
    InProgress,
    /// A file has changed, and has stayed so since the last inspection.
    Complete,
}

impl ConfigFileWatch {
    /// Creates a watch. Must be called before the layers are read, so that no change is missed.
    pub(crate) fn before_reading(layers: impl IntoIterator<Item = PathBuf>) -> Self {
        let read = ConfigStamps { layers: stamps(layers), ..ConfigStamps::default() };
        Self { read, changing: None }
    }

    /// Notes that the configuration is read while the files have these stamps.
    pub(super) fn mark_read(&mut self, stamps: ConfigStamps) {
        (self.read, self.changing) = (stamps, None);
    }

    /// Replaces the set of named files. A file that was not named before counts as read; changes of
    /// the others are still to be detected.
    pub(super) fn set_named(&mut self, named: Stamps) {
        let known = &self.read.named;
        let stamp = |(path, stamp)| {
            let stamp = known.get(&path).copied().unwrap_or(stamp);
            (path, stamp)
        };
        self.read.named = named.into_iter().map(stamp).collect();
    }

    /// Compares the stamps of this moment.
    pub(super) fn compare(&mut self, stamps: &ConfigStamps) -> Change {
        if *stamps == self.read {
            self.changing = None;
            return Change::None;
        }
        if self.changing.as_ref() == Some(stamps) {
            return Change::Complete;
        }
        self.changing = Some(stamps.clone());
        Change::InProgress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_size(size: u64) -> ConfigStamps {
        let stamp = Stamp { size, ..Stamp::default() };
        ConfigStamps { layers: [("/c.toml".into(), Some(stamp))].into(), named: Stamps::new() }
    }

    #[test]
    fn a_change_is_complete_once_the_file_stays_the_same() {
        let mut watch = ConfigFileWatch::default();
        watch.mark_read(with_size(1));
        let sizes = [1, 2, 3, 3, 3, 1, 2, 2];
        let changes = sizes.map(|size| watch.compare(&with_size(size)));
        use Change::*;
        let expected =
            [None, InProgress, InProgress, Complete, Complete, None, InProgress, Complete];
        assert_eq!(changes, expected);
        watch.mark_read(with_size(2));
        assert_eq!(watch.compare(&with_size(2)), None);
        assert_eq!(watch.compare(&ConfigStamps::default()), InProgress, "a deleted file");
    }

    /// Regression: a file written while another configuration was applied counted as read.
    #[test]
    fn a_change_during_a_reload_is_detected() {
        let stamps = |files: &[(&str, u64)]| -> Stamps {
            let stamp = |size| Some(Stamp { size, ..Stamp::default() });
            files.iter().map(|(path, size)| ((*path).into(), stamp(*size))).collect()
        };
        let mut watch = ConfigFileWatch::default();
        watch
            .mark_read(ConfigStamps { named: stamps(&[("token", 1), ("old", 1)]), ..with_size(1) });
        let now = ConfigStamps { named: stamps(&[("token", 1), ("new", 1)]), ..with_size(1) };
        watch.set_named(now.named.clone());
        assert_eq!(watch.compare(&now), Change::None);
        watch.set_named(stamps(&[("token", 2), ("new", 1)]));
        let changed = ConfigStamps { named: stamps(&[("token", 2), ("new", 1)]), ..now };
        assert_eq!(watch.compare(&changed), Change::InProgress);
    }

    #[test]
    fn stamps_differ_when_a_file_appears_or_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        let seen = || stamps([path.clone()]);
        let none = seen();
        assert_eq!(none[&path], None);
        fs::write(&path, "a = 1").unwrap();
        let one = seen();
        fs::write(&path, "a = 12").unwrap();
        let two = seen();
        assert!(none != one && one != two);
        assert_eq!(two, seen());
    }
}
