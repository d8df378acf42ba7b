//! Contents that were served, for going back, and for a restart while a file is broken.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use siem_protocol::{ManagedConfig, managed::MAX_BYTES};

use super::{
    file::{ConfigFile, MINISIG, beside, is_config_name},
    write::replace_public_file,
};
use crate::{regular_file::read_regular_file, store::create_private};

/// Number of contents of each file that are kept.
const KEPT: usize = 20;

/// A content of a file that was served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Number of the entry; later ones have higher numbers.
    pub number: u64,
    path: PathBuf,
}

impl HistoryEntry {
    /// Reads the configuration and its signature.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn read(&self) -> io::Result<(Vec<u8>, Option<Vec<u8>>)> {
        let body = read_regular_file(&self.path, MAX_BYTES as u64)?;
        match read_regular_file(&beside(&self.path, MINISIG), MAX_BYTES as u64) {
            Ok(minisig) => Ok((body, Some(minisig))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((body, None)),
            Err(error) => Err(error),
        }
    }
}

/// Directory with the contents that were served: `NUMBER-NAME`, for the fallback `NUMBER+NAME`. The empty
/// file `removed-NAME` or `removed+NAME` says that the operator removed the file since.
#[derive(Clone, Debug)]
pub struct ConfigHistory {
    directory: PathBuf,
}

impl ConfigHistory {
    /// Uses a directory, which is created with the first entry.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Returns the entries of a file, the oldest first.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn entries(&self, name: &str, is_fallback: bool) -> io::Result<Vec<HistoryEntry>> {
        let all = self.all()?.into_iter();
        let mut entries: Vec<_> = all
            .filter_map(|(entry, file, of_fallback)| {
                (file == name && of_fallback == is_fallback).then_some(entry)
            })
            .collect();
        entries.sort_by_key(|entry| entry.number);
        Ok(entries)
    }

    /// Returns the highest serial of all contents; none if no content has one.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn highest_serial(&self) -> io::Result<Option<u64>> {
        let mut highest = None;
        for (entry, ..) in self.all()? {
            let config = ManagedConfig::parse(&entry.read()?.0);
            highest = highest.max(config.ok().and_then(|config| config.serial));
        }
        Ok(highest)
    }

    /// Returns the content that was served last; `None` if the operator removed the file since.
    pub(super) fn last(&self, name: &str, is_fallback: bool) -> io::Result<Option<HistoryEntry>> {
        if self.removed(name, is_fallback).try_exists()? {
            return Ok(None);
        }
        Ok(self.entries(name, is_fallback)?.pop())
    }

    /// Notes that the operator removed a file.
    pub(super) fn add_removal(&self, name: &str, is_fallback: bool) -> io::Result<()> {
        if self.entries(name, is_fallback)?.is_empty() {
            return Ok(());
        }
        replace_public_file(&self.removed(name, is_fallback), &[])
    }

    /// Returns the names of the files with entries, and true for the fallback.
    pub(super) fn names(&self) -> io::Result<BTreeSet<(String, bool)>> {
        Ok(self.all()?.into_iter().map(|(_, name, is_fallback)| (name, is_fallback)).collect())
    }

    fn removed(&self, name: &str, is_fallback: bool) -> PathBuf {
        let separator = if is_fallback { '+' } else { '-' };
        self.directory.join(format!("removed{separator}{name}"))
    }

    /// Adds a content, unless it is the last one of its file.
    pub(super) fn add(&self, file: &ConfigFile) -> io::Result<()> {
        if !is_config_name(&file.name) {
            return Ok(());
        }
        remove(&self.removed(&file.name, file.is_fallback))?;
        let entries = self.entries(&file.name, file.is_fallback)?;
        let is_last = |entry: &HistoryEntry| {
            entry.read().is_ok_and(|(body, minisig)| body == file.body && minisig == file.minisig)
        };
        if entries.last().is_some_and(is_last) {
            return Ok(());
        }
        create_private(&self.directory)?;
        let numbers = self.all()?.into_iter().map(|(entry, ..)| entry.number);
        let number = numbers.max().unwrap_or(0) + 1;
        let separator = if file.is_fallback { '+' } else { '-' };
        let path = self.directory.join(format!("{number:06}{separator}{}", file.name));
        if let Some(minisig) = &file.minisig {
            replace_public_file(&beside(&path, MINISIG), minisig)?;
        }
        replace_public_file(&path, &file.body)?;
        let superfluous = (entries.len() + 1).saturating_sub(KEPT);
        entries[..superfluous.min(entries.len())].iter().try_for_each(|old| remove(&old.path))
    }

    /// Returns all entries with the names of their files, and true for those of the fallback.
    fn all(&self) -> io::Result<Vec<(HistoryEntry, String, bool)>> {
        let directory = match fs::read_dir(&self.directory) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut entries = Vec::new();
        for entry in directory {
            let path = entry?.path();
            let Some(text) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let Some(at) = text.find(['-', '+']) else { continue };
            let (number, name) = (text[..at].parse(), text[at + 1..].to_owned());
            let of_fallback = text[at..].starts_with('+');
            if let (Ok(number), true) = (number, is_config_name(&name)) {
                entries.push((HistoryEntry { number, path }, name, of_fallback));
            }
        }
        Ok(entries)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    for path in [path.to_owned(), beside(path, MINISIG)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
