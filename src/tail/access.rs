//! Access to the files below the roots, by the rules for links and with a limited time for each call.
//!
//! A root is a place that answers as a whole, and so is each link in it: a link to a share that hangs
//! does not stop the reading of its root. Links to one other file system are one place.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io, mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    directory_walk::{self, RootDirectory},
    links::LinkRules,
};
use crate::platform::{
    bounded::{BoundedCalls, BoundedFile, DoesNotAnswer, OpenedFile},
    file::{self, FileInfo, Stamp},
    links,
};

/// Access to the files below the roots.
#[derive(Clone, Debug)]
pub(super) struct FileAccess {
    rules: Arc<LinkRules>,
    calls: BoundedCalls,
    places: Arc<Mutex<Places>>,
}

/// Places below the roots.
#[derive(Debug, Default)]
struct Places {
    roots: Vec<PathBuf>,
    /// Place of each link that this sweep has met.
    links: BTreeMap<PathBuf, PathBuf>,
    /// Those of the sweep before, which ended or is in progress.
    links_before: BTreeMap<PathBuf, PathBuf>,
    /// Place of each file system other than that of its root, by the id of the volume.
    volumes: HashMap<u64, PathBuf>,
    /// Time that calls took that did not return.
    lost: Duration,
}

impl Places {
    /// Returns the place of a path: the innermost link above it, or its root.
    fn of(&self, path: &Path) -> PathBuf {
        let link = |path: &Path| self.links.get(path).or_else(|| self.links_before.get(path));
        let has_links = !self.links.is_empty() || !self.links_before.is_empty();
        let above = path.ancestors().take_while(|_| has_links);
        if let Some(place) = above.filter_map(link).next() {
            return place.clone();
        }
        let roots = self.roots.iter().filter(|root| path.starts_with(root));
        let root = roots.max_by_key(|root| root.as_os_str().len());
        root.map_or_else(|| path.to_owned(), Clone::clone)
    }
}

impl FileAccess {
    /// Access to files below `roots`, without links.
    pub(super) fn new(calls: BoundedCalls, roots: &[PathBuf]) -> Self {
        let places = Places { roots: roots.to_vec(), ..Places::default() };
        let places = Arc::new(Mutex::new(places));
        Self { rules: Arc::default(), calls, places }
    }

    /// Replaces the runner of calls.
    pub(super) fn set_calls(&mut self, calls: BoundedCalls) {
        self.calls = calls;
    }

    /// Runner of calls.
    pub(super) fn calls(&self) -> &BoundedCalls {
        &self.calls
    }

    /// Returns true if the place of `path` does not answer.
    pub(super) fn is_silent(&self, path: &Path) -> bool {
        let place = self.places().of(path);
        self.calls.silent().iter().any(|(silent, _)| place.starts_with(silent))
    }

    /// Starts a sweep below these roots. Links are followed from then on.
    pub(super) fn start_sweep(
        &mut self,
        configured: &[PathBuf],
        found: &[RootDirectory],
        home: Option<&Path>,
    ) {
        let mut places = self.places();
        configured.clone_into(&mut places.roots);
        places.links_before = mem::take(&mut places.links);
        places.volumes.clear();
        drop(places);
        let canonical = |path: &Path| {
            let path = path.to_owned();
            let fallback = path.clone();
            self.run(&fallback, move || links::canonical(&path)).unwrap_or(fallback)
        };
        self.rules = Arc::new(LinkRules::new(home.map(canonical), found));
    }

    /// Returns the same access without rules: no link is followed.
    pub(super) fn without_links(&self) -> Self {
        Self { rules: Arc::default(), ..self.clone() }
    }

    /// The rules for links.
    pub(super) fn rules(&self) -> &LinkRules {
        &self.rules
    }

    /// Runs `call`, which is about `path`.
    ///
    /// # Errors
    /// The error of the call, or [`DoesNotAnswer`] with the place of the path.
    pub(super) fn run<T: Send + 'static>(
        &self,
        path: &Path,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let place = self.places().of(path);
        self.run_in(&place, call)
    }

    fn run_in<T: Send + 'static>(
        &self,
        place: &Path,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let begun = Instant::now();
        let result = self.calls.run(place, call);
        if let Err(error) = &result
            && DoesNotAnswer::of(error).is_some()
        {
            self.places().lost += begun.elapsed();
        }
        result
    }

    /// Returns the time that calls took that did not return, since the last call of this function.
    pub(super) fn take_lost(&self) -> Duration {
        mem::take(&mut self.places().lost)
    }

    /// Runs `call` with the rules; it follows `link`, which becomes a place.
    ///
    /// # Errors
    /// As [`LinkRules::resolve`].
    pub(super) fn follow<T: Send + 'static>(
        &self,
        link: &Path,
        call: impl FnOnce(&LinkRules) -> io::Result<(FileInfo, T)> + Send + 'static,
    ) -> io::Result<(FileInfo, T)> {
        let mut places = self.places();
        let known = places.links_before.get(link).cloned();
        let place = places.links.entry(link.to_owned());
        let place = place.or_insert_with(|| known.unwrap_or_else(|| link.to_owned())).clone();
        drop(places);
        let rules = Arc::clone(&self.rules);
        let (info, result) = self.run_in(&place, move || call(&rules))?;
        if let Some(id) = info.stamp.id
            && self.rules.volume_of_root(link) != Some(id.volume)
        {
            let mut places = self.places();
            let place = places.volumes.entry(id.volume).or_insert(place).clone();
            places.links.insert(link.to_owned(), place);
        }
        Ok((info, result))
    }

    /// Returns kind and stamp of the file at `path`, or of the target of a link there.
    ///
    /// # Errors
    /// As [`LinkRules::resolve`].
    pub(super) fn inspect(&self, path: &Path) -> io::Result<FileInfo> {
        let (rules, its_path) = (Arc::clone(&self.rules), path.to_owned());
        self.run(path, move || rules.inspect(&its_path))
    }

    /// Same as [`inspect`](Self::inspect) for each of `paths`, with one call for each place.
    pub(super) fn inspect_all(
        &self,
        paths: Vec<PathBuf>,
    ) -> HashMap<PathBuf, io::Result<FileInfo>> {
        let mut by_place: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
        for path in paths {
            let place = self.places().of(&path);
            by_place.entry(place).or_default().push(path);
        }
        let mut all = HashMap::new();
        for (place, paths) in by_place {
            let (rules, of_call) = (Arc::clone(&self.rules), paths.clone());
            let inspected = self.run_in(&place, move || {
                Ok(of_call.iter().map(|path| rules.inspect(path)).collect::<Vec<_>>())
            });
            match inspected {
                Ok(found) => all.extend(paths.into_iter().zip(found)),
                Err(error) => {
                    let failed = |path| (path, Err(repeated(&error)));
                    all.extend(paths.into_iter().map(failed));
                }
            }
        }
        all
    }

    /// Opens the regular file at `path`, or at the end of a link there; `None` if there is something
    /// else.
    ///
    /// # Errors
    /// As [`LinkRules::resolve`].
    pub(super) fn open(&self, path: &Path) -> io::Result<Option<(BoundedFile, Stamp)>> {
        let place = self.places().of(path);
        let (rules, path) = (Arc::clone(&self.rules), path.to_owned());
        let opened = self.run_in(&place, move || {
            Ok(rules.open(&path)?.map(|(file, stamp)| (OpenedFile::new(file), stamp)))
        })?;
        Ok(opened.map(|(file, stamp)| (file.into_bounded(&self.calls, &place), stamp)))
    }

    /// Returns true if the file at `path` is reached through a link below a root.
    pub(super) fn is_linked(&self, path: &Path) -> bool {
        let (rules, its_path) = (Arc::clone(&self.rules), path.to_owned());
        self.run(path, move || Ok(rules.is_linked(&its_path))).unwrap_or(false)
    }

    /// Returns kind and stamp of the entry at `path`; `None` if a link leads there from `root`.
    ///
    /// # Errors
    /// The error of the system, or [`DoesNotAnswer`].
    pub(super) fn inspect_below(&self, root: &Path, path: &Path) -> io::Result<Option<FileInfo>> {
        let (root, its_path) = (root.to_owned(), path.to_owned());
        self.run(path, move || {
            let info = file::inspect(&its_path)?;
            let is_reached = directory_walk::is_reached_without_symlinks(&root, &its_path);
            Ok(is_reached.then_some(info))
        })
    }

    /// Returns true if a root that was absent exists, even if its file system does not answer.
    pub(super) fn exists(&self, root: &Path) -> bool {
        let path = root.to_owned();
        self.run(root, move || fs::metadata(path).map(drop)).is_ok()
    }

    /// Returns true if two paths lead to one directory entry, through different links.
    ///
    /// # Errors
    /// The error of the system, or [`DoesNotAnswer`].
    pub(super) fn is_same_entry(&self, one: &Path, other: &Path) -> io::Result<bool> {
        let canonical = |path: &Path| {
            let its_path = path.to_owned();
            self.run(path, move || links::canonical(&its_path))
        };
        Ok(canonical(one)? == canonical(other)?)
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns an error of the same cause.
fn repeated(error: &io::Error) -> io::Error {
    match DoesNotAnswer::of(error) {
        Some(silent) => silent.clone().into(),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_is_the_innermost_link_or_root() {
        let links = [("/r/link", "/r/link"), ("/r/other/link", "/r/link")];
        let links = links.map(|(link, place)| (link.into(), place.into()));
        let roots = vec!["/r".into(), "/r/inner".into()];
        let places = Places { roots, links: links.into(), ..Places::default() };
        let table = [
            ("/r/p/s.jsonl", "/r"),
            ("/r/inner/s.jsonl", "/r/inner"),
            ("/r/link/p/s.jsonl", "/r/link"),
            ("/r/other/link", "/r/link"),
            ("/r/other/s.jsonl", "/r"),
            ("/elsewhere", "/elsewhere"),
        ];
        for (path, place) in table {
            assert_eq!(places.of(Path::new(path)), Path::new(place), "{path}");
        }
    }
}
