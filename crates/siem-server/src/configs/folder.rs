//! Files of managed configurations, read when they change. A broken file never removes
//! the content that was served before; removing the file does.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use siem_protocol::{
    Digest,
    minisign::{MAX_SIGNATURE_BYTES, OrganisationKey},
};
use tracing::{error, info, warn};

use super::{
    file::{self, ConfigFile, FileProblem, MINISIG, ROLLOUT, beside, is_config_name},
    history::ConfigHistory,
    rollout::Rollout,
};
use crate::{
    clock::{Clock, SystemClock},
    regular_file::read_regular_file,
};

/// Maximum number of files.
const MAX_FILES: usize = 256;
/// Maximum size of all files together, in bytes.
const MAX_TOTAL: u64 = 64 << 20;
/// Maximum number of entries of the folder that are looked at.
const MAX_ENTRIES: usize = 10_000;
/// Age from which a file counts as unchanged if its time is. A younger one may have been written twice
/// at one time of a coarse clock.
const SETTLED: Duration = Duration::from_secs(2);

/// Places of the files.
#[derive(Clone)]
pub struct FolderOptions {
    /// Folder with the files `*.json` and the organisation's keys `*.pub`; it may be missing.
    pub folder: Option<PathBuf>,
    /// File for devices for which no file of the folder is meant; it may be missing.
    pub fallback: Option<PathBuf>,
    /// Directory for the contents that were served.
    pub history: Option<PathBuf>,
    /// True for a server, which logs problems and adds to the history.
    pub is_server: bool,
    /// Source of the current time.
    pub clock: Arc<dyn Clock>,
}

impl Default for FolderOptions {
    fn default() -> Self {
        let clock = Arc::new(SystemClock);
        Self { folder: None, fallback: None, history: None, is_server: false, clock }
    }
}

impl FolderOptions {
    /// Returns the places in a data directory.
    #[must_use]
    pub fn of_data(data: &Path) -> Self {
        Self {
            folder: Some(data.join("configs")),
            fallback: Some(data.join("config.json")),
            history: Some(data.join("config-history")),
            ..Self::default()
        }
    }
}

/// Configurations that can be served, and the problems of the others.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct FileSet {
    /// Configurations, those of the folder ordered by name, then the fallback.
    pub files: Vec<Arc<ConfigFile>>,
    /// Problems by name of the file. A file with problems may be in `files` with its content before.
    pub problems: Vec<(String, Vec<Arc<FileProblem>>)>,
    /// Signatures and roll-outs without a configuration.
    pub orphans: Vec<String>,
    /// Keys of the organisation.
    pub keys: Vec<OrganisationKey>,
    /// Problem of the fallback, if it is not in `files`.
    pub(crate) fallback_problem: Option<Arc<FileProblem>>,
}

impl FileSet {
    /// Reports whether there is nothing to serve, and nothing to report.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.problems.is_empty()
    }

    /// Reports whether the choice among the files can depend on the groups of a user.
    #[must_use]
    pub fn uses_groups(&self) -> bool {
        let has_groups = |file: &Arc<ConfigFile>| {
            !file.is_fallback && file.audience().is_some_and(|it| it.groups.is_some())
        };
        self.files.iter().any(has_groups)
    }

    /// Reduces the groups of a user to those on which the choice among the files can depend. A request
    /// can name any others, in any number.
    #[must_use]
    pub fn relevant_groups(&self, mut groups: Vec<String>) -> Vec<String> {
        let names = |file: &Arc<ConfigFile>, group: &String| {
            let named = file.audience().and_then(|audience| audience.groups.as_ref());
            !file.is_fallback && named.is_some_and(|named| named.contains(group))
        };
        groups.sort();
        groups.dedup();
        groups.retain(|group| self.files.iter().any(|file| names(file, group)));
        groups
    }

    /// Returns the configuration with a hash.
    #[must_use]
    pub fn by_hash(&self, hash: &Digest) -> Option<&Arc<ConfigFile>> {
        self.files.iter().find(|file| file.hash == *hash)
    }
}

/// The folder with the managed configurations.
pub struct ConfigFolder {
    options: FolderOptions,
    history: Option<ConfigHistory>,
    cache: Mutex<Cache>,
}

impl std::fmt::Debug for ConfigFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigFolder").field("folder", &self.options.folder).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Cache {
    keys: Vec<OrganisationKey>,
    entries: BTreeMap<String, CachedFile>,
    fallback: Option<CachedFile>,
    set: Arc<FileSet>,
    /// Error of the folder that was logged last.
    failed: Option<String>,
    /// The folder was listed before.
    is_known: bool,
}

#[derive(Clone, Default)]
struct CachedFile {
    stamps: [Option<Stamp>; 3],
    is_settled: bool,
    /// The content that is served.
    served: Option<Arc<ConfigFile>>,
    problems: Vec<Arc<FileProblem>>,
}

/// Facts that differ between two versions of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: Option<SystemTime>,
    number: u64,
}

/// Names of the files in the folder.
#[derive(Default)]
struct Listing {
    configs: Vec<String>,
    keys: Vec<String>,
    others: Vec<String>,
}

impl ConfigFolder {
    /// Uses files at these places, which are read with the first use.
    #[must_use]
    pub fn new(options: FolderOptions) -> Self {
        let history = options.history.clone().map(ConfigHistory::new);
        Self { options, history, cache: Mutex::default() }
    }

    /// Returns the contents that were served, if they are kept.
    #[must_use]
    pub fn history(&self) -> Option<&ConfigHistory> {
        self.history.as_ref()
    }

    /// Returns the configurations, after changed files were read. Blocks for the file system.
    #[must_use]
    pub fn current(&self) -> Arc<FileSet> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match self.list() {
            Ok(listing) => {
                cache.failed = None;
                cache.set = Arc::new(self.update(&mut cache, listing));
            }
            Err(error) => self.log_folder(&mut cache, &error),
        }
        cache.set.clone()
    }

    fn log_folder(&self, cache: &mut Cache, error: &io::Error) {
        let text = Some(error.to_string());
        if self.options.is_server && cache.failed != text {
            let folder = self.options.folder.as_deref().unwrap_or(Path::new("")).display();
            error!(
                code = "managed_folder_unreadable",
                %folder,
                %error,
                "cannot list the managed configurations; those known so far are served"
            );
        }
        cache.failed = text;
    }

    fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing::default();
        let Some(folder) = &self.options.folder else { return Ok(listing) };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listing),
            Err(error) => return Err(error),
        };
        for entry in entries.take(MAX_ENTRIES) {
            let name = entry?.file_name();
            // A name that is not UTF-8 is shown, and not served.
            let name = name.to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            match Path::new(&name).extension().and_then(|ending| ending.to_str()) {
                Some("json") => listing.configs.push(name),
                Some("pub") => listing.keys.push(name),
                Some("minisig" | "rollout") => listing.others.push(name),
                _ => {}
            }
        }
        listing.configs.sort();
        listing.keys.sort();
        listing.others.sort();
        Ok(listing)
    }

    fn update(&self, cache: &mut Cache, listing: Listing) -> FileSet {
        let folder = self.options.folder.clone().unwrap_or_default();
        let mut set = FileSet::default();
        for name in &listing.keys {
            match read_key(&folder.join(name)) {
                Ok(key) => set.keys.push(key),
                Err(problem) => set.problems.push((name.clone(), vec![Arc::new(problem)])),
            }
        }
        if !set.problems.is_empty() {
            // Without the key that cannot be read now, files would be served without a signature.
            let lost = cache.keys.iter().filter(|key| !set.keys.contains(key)).cloned();
            let lost: Vec<_> = lost.collect();
            set.keys.extend(lost);
        }
        if set.keys != cache.keys {
            // A signature that was not needed before may be missing now.
            cache
                .entries
                .values_mut()
                .chain(&mut cache.fallback)
                .for_each(|it| it.is_settled = false);
            cache.keys.clone_from(&set.keys);
        }
        // Without any key that can be read, no new content can be verified.
        let can_verify = !set.keys.is_empty() || set.problems.is_empty();
        let keys = set.keys.clone();
        let keys = can_verify.then_some(&*keys);
        self.note_removed(cache, &listing);
        cache.entries.retain(|name, _| listing.configs.contains(name));
        let mut total = 0;
        for (at, name) in listing.configs.iter().enumerate() {
            let path = folder.join(name);
            total += fs::metadata(&path).map_or(0, |file| file.len());
            let refused = if !is_config_name(name) {
                Some(FileProblem::Name)
            } else if at >= MAX_FILES || total > MAX_TOTAL {
                Some(FileProblem::TooMany)
            } else {
                None
            };
            let known = cache.entries.remove(name).unwrap_or_default();
            let cached = match refused {
                Some(problem) => self.refuse(name, known, problem),
                None => self.refresh(&path, name, false, known, keys),
            };
            set.add(name, &cached);
            cache.entries.insert(name.clone(), cached);
        }
        if let Some(path) = &self.options.fallback {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let known = cache.fallback.take().unwrap_or_default();
            let cached = self.refresh(path, &name, true, known, keys);
            set.add(&name, &cached);
            if cached.served.is_none() {
                set.fallback_problem = cached.problems.first().cloned();
            }
            cache.fallback = Some(cached);
        }
        let is_orphan = |name: &&String| {
            let config = name.strip_suffix(MINISIG).or_else(|| name.strip_suffix(ROLLOUT));
            config.is_some_and(|config| !listing.configs.iter().any(|it| it == config))
        };
        set.orphans = listing.others.iter().filter(is_orphan).cloned().collect();
        set
    }

    /// Notes which files were removed, also before the start: a broken file of the same name is a new
    /// one, and has no content before.
    fn note_removed(&self, cache: &mut Cache, listing: &Listing) {
        let is_removed = |name: &&String| !listing.configs.contains(*name);
        for name in cache.entries.keys().filter(is_removed) {
            self.remember_removal(name, false);
        }
        if std::mem::replace(&mut cache.is_known, true) {
            return;
        }
        let names = self.history.as_ref().and_then(|history| history.names().ok());
        for (name, is_fallback) in names.unwrap_or_default() {
            let is_there = match (&self.options.fallback, is_fallback) {
                (Some(path), true) => stamp(path).is_some(),
                _ => listing.configs.contains(&name),
            };
            if !is_there {
                self.remember_removal(&name, is_fallback);
            }
        }
    }

    fn remember_removal(&self, name: &str, is_fallback: bool) {
        let Some(history) = self.history.as_ref().filter(|_| self.options.is_server) else {
            return;
        };
        if let Err(error) = history.add_removal(name, is_fallback) {
            warn!(
                code = "managed_history_failed",
                file = name,
                %error,
                "cannot note that a managed configuration was removed"
            );
        }
    }

    /// Refuses a file that is not read.
    fn refuse(&self, name: &str, known: CachedFile, problem: FileProblem) -> CachedFile {
        let problems = vec![Arc::new(problem)];
        let cached = CachedFile { problems, served: known.served.clone(), ..CachedFile::default() };
        self.log(name, &known, &cached);
        cached
    }

    /// Reads a file again if it changed. Without `keys`, no content can be verified.
    fn refresh(
        &self,
        path: &Path,
        name: &str,
        is_fallback: bool,
        known: CachedFile,
        keys: Option<&[OrganisationKey]>,
    ) -> CachedFile {
        let stamps = stamps(path);
        if known.is_settled && known.stamps == stamps {
            return known;
        }
        if stamps[0].is_none() {
            // It was removed on purpose, or never there.
            if known.served.is_some() {
                self.remember_removal(name, is_fallback);
            }
            return CachedFile::default();
        }
        let (read, mut problems) = match keys {
            Some(keys) => file::read(path, name, is_fallback, keys),
            None => (None, vec![FileProblem::Unverified]),
        };
        // No further device gets a configuration whose roll-out is not known.
        let (rollout, is_rollout_broken) = match file::read_rollout(path, name) {
            Ok(rollout) => (rollout, false),
            Err(problem) => {
                problems.push(problem);
                (Some(Rollout::new(0)), true)
            }
        };
        let is_new = read.as_ref().is_some_and(|read| {
            known
                .served
                .as_ref()
                .is_none_or(|served| (served.hash, &served.minisig) != (read.hash, &read.minisig))
        });
        if let (true, Some(read)) = (is_new, &read) {
            self.remember(read);
        }
        let before = || known.served.as_deref().cloned();
        let last_good = || keys.and_then(|keys| self.last_good(name, is_fallback, keys));
        let served = read.or_else(before).or_else(last_good);
        let served =
            served.map(|served| Arc::new(ConfigFile { rollout, is_rollout_broken, ..served }));
        let cached = CachedFile {
            is_settled: keys.is_some() && self.is_settled(&stamps) && self::stamps(path) == stamps,
            stamps,
            served,
            problems: problems.into_iter().map(Arc::new).collect(),
        };
        self.log(name, &known, &cached);
        cached
    }

    fn is_settled(&self, stamps: &[Option<Stamp>; 3]) -> bool {
        let now = self.options.clock.now();
        let is_old = |stamp: &Stamp| {
            let age = stamp.modified.and_then(|modified| now.duration_since(modified).ok());
            age.is_some_and(|age| age > SETTLED)
        };
        stamps.iter().flatten().all(is_old)
    }

    /// Returns the content that was served last, for a file that is broken since before a restart.
    fn last_good(
        &self,
        name: &str,
        is_fallback: bool,
        keys: &[OrganisationKey],
    ) -> Option<ConfigFile> {
        let last = self.history.as_ref()?.last(name, is_fallback).ok()??;
        let (body, minisig) = last.read().ok()?;
        let file = file::parse(name, is_fallback, body, minisig).ok()?;
        file::verify(&file, keys).is_empty().then_some(file)
    }

    fn remember(&self, file: &ConfigFile) {
        let Some(history) = self.history.as_ref().filter(|_| self.options.is_server) else {
            return;
        };
        if let Err(error) = history.add(file) {
            warn!(
                code = "managed_history_failed",
                file = file.name,
                %error,
                "cannot keep a managed configuration for going back to it"
            );
        }
    }

    /// Logs problems once, and their end.
    fn log(&self, name: &str, before: &CachedFile, now: &CachedFile) {
        if !self.options.is_server {
            return;
        }
        let text = |cached: &CachedFile| {
            cached.problems.iter().map(|problem| problem.text()).collect::<Vec<_>>().join("; ")
        };
        let (was, is) = (text(before), text(now));
        if is.is_empty() && !was.is_empty() {
            info!(file = name, "managed configuration is valid again");
        } else if is != was {
            let in_force = now.served.as_ref().map(|file| file.hash.to_string());
            let effect = match in_force {
                Some(_) => "its content before stays in force",
                None => "it has no content before, and none of it is served",
            };
            error!(
                code = "managed_file_broken",
                file = name,
                reason = is,
                in_force,
                effect,
                "managed configuration cannot be served"
            );
        }
    }
}

impl FileSet {
    fn add(&mut self, name: &str, cached: &CachedFile) {
        self.files.extend(cached.served.clone());
        if !cached.problems.is_empty() {
            self.problems.push((name.to_owned(), cached.problems.clone()));
        }
    }
}

fn stamps(path: &Path) -> [Option<Stamp>; 3] {
    [path.to_owned(), beside(path, MINISIG), beside(path, ROLLOUT)].map(|path| stamp(&path))
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = match fs::metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        // Reading the file says what is wrong with it.
        Err(_) => return Some(Stamp { size: 0, modified: None, number: 0 }),
    };
    #[cfg(unix)]
    let number = std::os::unix::fs::MetadataExt::ino(&file);
    #[cfg(not(unix))]
    let number = 0;
    Some(Stamp { size: file.len(), modified: file.modified().ok(), number })
}

fn read_key(path: &Path) -> Result<OrganisationKey, FileProblem> {
    let text = read_regular_file(path, MAX_SIGNATURE_BYTES as u64);
    let text = text.map_err(FileProblem::KeyUnreadable)?;
    String::from_utf8_lossy(&text).parse().map_err(FileProblem::Key)
}
