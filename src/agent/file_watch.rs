//! Whether files of the configuration have changed: seen by looking, which is cheap and never lies.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use crate::platform::file::{self, Stamp};

/// How often files are looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(2);
/// How soon again once one looks different: a file that is being written is left alone.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How each file looks; none where nothing lies.
pub(crate) type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// How the files look that decide about the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sights {
    /// Those of its layers.
    pub(crate) layers: Stamps,
    /// Those that it names: secrets, certificates.
    pub(crate) named: Stamps,
}

/// Looks at files. Symlinks are followed: some tools replace a configuration by turning one.
pub(crate) fn look(paths: impl IntoIterator<Item = PathBuf>) -> Stamps {
    let sight = |path: PathBuf| {
        // It is asked for all the time: only what is a symlink costs a walk along its path.
        let sight = match file::inspect(&path) {
            Ok(sight) if sight.kind == file::FileKind::Other => {
                fs::canonicalize(&path).and_then(|path| file::inspect(&path))
            }
            sight => sight,
        };
        (path, sight.ok().map(|sight| sight.stamp))
    };
    paths.into_iter().map(sight).collect()
}

/// Remembers how files looked.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// When the configuration was read last.
    read: Sights,
    /// At the last look, if that was another.
    seen: Option<Sights>,
}

/// What a look tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// All is as it was when it was read.
    Same,
    /// Something is changing.
    Changing,
    /// Something has changed, and stays so.
    Changed,
}

impl Watched {
    /// The configuration is read while files look like this.
    pub(crate) fn read(&mut self, sights: Sights) {
        (self.read, self.seen) = (sights, None);
    }

    /// The configuration names these files by now. One that it did not name before was read as it
    /// is; what else has changed meanwhile is still to be seen.
    pub(crate) fn name(&mut self, named: Stamps) {
        let known = &self.read.named;
        let stamp = |(path, stamp)| {
            let stamp = known.get(&path).copied().unwrap_or(stamp);
            (path, stamp)
        };
        self.read.named = named.into_iter().map(stamp).collect();
    }

    /// What has come of files that look like this now.
    pub(crate) fn look(&mut self, sights: Sights) -> Look {
        if sights == self.read {
            self.seen = None;
            return Look::Same;
        }
        if self.seen.as_ref() == Some(&sights) {
            return Look::Changed;
        }
        self.seen = Some(sights);
        Look::Changing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sights(size: u64) -> Sights {
        let stamp = Stamp { size, ..Stamp::default() };
        Sights { layers: [("/c.toml".into(), Some(stamp))].into(), named: Stamps::new() }
    }

    #[test]
    fn a_file_has_changed_once_it_stays_as_it_is() {
        let mut watched = Watched::default();
        watched.read(sights(1));
        let sizes = [1, 2, 3, 3, 3, 1, 2, 2];
        let looks = sizes.map(|size| watched.look(sights(size)));
        use Look::*;
        let expected = [Same, Changing, Changing, Changed, Changed, Same, Changing, Changed];
        assert_eq!(looks, expected);
        watched.read(sights(2));
        assert_eq!(watched.look(sights(2)), Same);
        assert_eq!(watched.look(Sights::default()), Changing, "a file that is gone");
    }

    /// What is written while another configuration is put in force must not be taken for read.
    #[test]
    fn a_change_while_another_is_put_in_force_is_seen() {
        let stamps = |files: &[(&str, u64)]| -> Stamps {
            let stamp = |size| Some(Stamp { size, ..Stamp::default() });
            files.iter().map(|(path, size)| ((*path).into(), stamp(*size))).collect()
        };
        let mut watched = Watched::default();
        watched.read(Sights { named: stamps(&[("token", 1), ("old", 1)]), ..sights(1) });
        let now = Sights { named: stamps(&[("token", 1), ("new", 1)]), ..sights(1) };
        watched.name(now.named.clone());
        assert_eq!(watched.look(now.clone()), Look::Same);
        watched.name(stamps(&[("token", 2), ("new", 1)]));
        assert_eq!(
            watched.look(Sights { named: stamps(&[("token", 2), ("new", 1)]), ..now }),
            Look::Changing
        );
    }

    #[test]
    fn sees_files_come_change_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        let seen = || look([path.clone()]);
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
